"""One audit: every chosen attack in turn, each with its share of the time that is left."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.proof import input_key_id
from tessera.protect.audit.budget import Advance, Budget, Meter
from tessera.protect.audit.result import AttackResult
from tessera.protect.audit.subject import Sample, Subject, some
from tessera.protect.audit.table import Attack, chosen_attacks
from tessera.protect.audit.tier_verdict import TIER_RULES, tier_verdicts, tiers_measured
from tessera.protect.audit.verdict import RULES, Verdict, measured, to_json, verdicts
from tessera.protect.optimise import usable_device

FORMAT: Final = "tessera-audit-report/1"
SMALL_IMAGE_VALUES: Final = 1024
"""Up to this size of an image one thread is used: for such small work several threads mostly wait for each other."""

Bars = Callable[[str], AbstractContextManager[Advance]]
"""From an attack's title to a progress bar that is shown while the attack runs."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an audit found. Holds no key material, only the public key id."""

    subject: Subject
    sample: Sample
    budget: Budget
    seed: int
    device: str
    attacks: tuple[Attack, ...]
    results: tuple[AttackResult, ...]
    seconds: float

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdicts on those whom the attacks stand for; none where what they start from was not measured."""
        found, tiers = measured(self.results), tiers_measured(self.results)
        return [*(verdicts(found) if found is not None else ()), *(tier_verdicts(tiers) if tiers is not None else ())]

    def to_json(self) -> dict[str, Any]:
        """Return the object kept in report.json."""
        subject, sample = self.subject, self.sample
        return {
            "format": FORMAT,
            "model": subject.name,
            "protection": ", ".join(sorted(subject.protections)),
            "transform": None if subject.lock is None else str(subject.lock.spec),
            "input_key_id": None if subject.lock is None else input_key_id(subject.lock.key),
            "tiers": [] if subject.cut is None else list(subject.cut.names),
            "kind": subject.kind,
            "metric": sample.metric,
            "classes": subject.classes,
            "input_shape": list(subject.shape),
            "sample": {
                "source": sample.source,
                "attacker_images": len(sample.attacker),
                "held_out_images": len(sample.held_out),
            },
            "budget": {name: getattr(self.budget, name) for name in self.budget.__dataclass_fields__},
            "seed": self.seed,
            "device": self.device,
            "seconds": round(self.seconds, 1),
            "cut_short": any(row.cut_short for result in self.results for row in result.rows),
            "torch_version": torch.__version__,
            "verdicts": to_json(self.verdicts),
            "verdict_rules": RULES | (TIER_RULES if subject.cut is not None else {}),
            "attacks": [result.to_json() for result in self.results],
        }


def audit(
    subject: Subject,
    sample: Sample,
    budget: Budget,
    *,
    attacks: Sequence[str] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    bars: Bars | None = None,
) -> Report:
    """Attack `subject` with `sample` within `budget` and return what was found.

    All attacks on what protects it are run unless `attacks` names some. Deterministic for the same arguments and
    machine, as long as no row says that time cut it short. Raises `NotFound` for an unknown attack, `ApiMisuse` when
    sample and subject do not belong together, `Unavailable` for an absent device.
    """
    where, chosen = usable_device(device), chosen_attacks(attacks)
    if attacks is None:
        chosen = [attack for attack in chosen if attack.fits(subject)]
    judged = _checked(subject, sample, budget, seed)
    begun = time.monotonic()
    results = []
    with _threads(subject):
        for at, attack in enumerate(chosen):
            left = budget.minutes * 60 - (time.monotonic() - begun)
            share = attack.share / sum(other.share for other in chosen[at:])
            with (bars or _no_bar)(attack.title) as advance:
                results.append(_attacked(attack, subject, judged, budget, max(0.0, left * share), seed, where, advance))
    return Report(
        subject=subject,
        sample=judged,
        budget=budget,
        seed=seed,
        device=str(where),
        attacks=tuple(chosen),
        results=tuple(results),
        seconds=time.monotonic() - begun,
    )


def _attacked(
    attack: Attack,
    subject: Subject,
    sample: Sample,
    budget: Budget,
    seconds: float,
    seed: int,
    device: torch.device,
    advance: Advance,
) -> AttackResult:
    why = attack.unfit(subject)
    if why:
        return AttackResult(name=attack.name, skipped=why)
    meter = Meter(seconds, advance)
    with torch.random.fork_rng(devices=[]), torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        torch.manual_seed(seed)
        return replace(attack.run(subject, sample, budget, meter, seed=seed, device=device), seconds=meter.seconds)


def _checked(subject: Subject, sample: Sample, budget: Budget, seed: int) -> Sample:
    """Return the sample with as many held-out images as the budget allows. Raises `ApiMisuse`."""
    if sample.held_out.shape != subject.shape:
        raise ApiMisuse(
            f"{sample.source} holds images of {sample.held_out.shape}, and the model takes {subject.shape}",
            remedy="Give images of the model's own size, as they are before the transform.",
        )
    if max(sample.attacker.classes, sample.held_out.classes) > subject.classes:
        raise ApiMisuse(
            f"{sample.source} has labels up to {max(sample.attacker.classes, sample.held_out.classes) - 1}, "
            f"and the model has {subject.classes} classes",
            remedy="Give the labels that the model was trained with, counted from 0.",
        )
    return replace(sample, held_out=some(sample.held_out, budget.held_out, seed))


@contextmanager
def _threads(subject: Subject) -> Iterator[None]:
    before = torch.get_num_threads()
    if math.prod(subject.shape) <= SMALL_IMAGE_VALUES:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _no_bar(_title: str) -> AbstractContextManager[Advance]:
    return nullcontext(lambda _done, _total: None)
