"""What each tier answers as it is: to somebody who has its weights, the right input key and no data to train with."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from tessera.keystore.errors import ApiMisuse
from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.cut import Cut
from tessera.protect.audit.measure import chance, reached
from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform

NAME: Final = "tier-quality"
FLOOR: Final = "chance"
"""The detail that holds what blind guessing reaches."""


def run(
    subject: Subject,
    sample: Sample,
    budget: Budget,  # noqa: ARG001 - one measurement a tier is few enough
    meter: Meter,
    *,
    seed: int,  # noqa: ARG001 - nothing is drawn
    device: torch.device,
) -> AttackResult:
    """Measure the file alone and every tier up to the full model; none is left out for time."""
    cut = cut_of(subject)
    meter.expect(cut.tiers + 1)
    rows = []
    for tier in range(cut.tiers + 1):
        model = cut.model(cut.state(tier)).to(device)
        rows.append(
            Row(
                label=cut.title(tier),
                score=reached(model, sample.held_out, device, licensed(subject, device)),
                at=tier,
                images=0,
                work=1,
                unit="tier",
                series="as it is",
            )
        )
        meter.did()
    details = {FLOOR: round(chance(sample.attacker, sample.held_out), 4)}
    return AttackResult(name=NAME, rows=tuple(rows), details=details)


def cut_of(subject: Subject) -> Cut:
    """Return how `subject` is cut. Raises `ApiMisuse` for a model without tiers."""
    if subject.cut is None:
        raise ApiMisuse(f"{subject.name} has no tiers; this attack needs a model that was encrypted selectively")
    return subject.cut


def licensed(subject: Subject, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """Return the transform that a licence for any tier brings the key of; None where inputs are plain."""
    if subject.lock is None:
        return None
    return TorchTransform(Transform(subject.lock.spec, subject.lock.key, *subject.shape), device)
