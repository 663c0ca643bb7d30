"""Training the protected model further on plain images, beside training the same network from nothing.

What protects a model against somebody with data is not that fine-tuning fails: it never does. It is that the thief
gains nothing over training from scratch. The gap between the two is what the stolen file is worth.
"""

from typing import Final

import torch
from torch import nn

from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.measure import reached
from tessera.protect.audit.result import NO_TIME, AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject, some
from tessera.protect.audit.training import fit
from tessera.protect.evaluate import LabelledImages

NAME = "fine-tuning"
SHARES: Final = (0.01, 0.05, 0.10)
"""Shares of the attacker's part of the sample; with a recipe that is the training set itself."""
FEWEST: Final = 2
"""Fewest images that can be trained on: batch norms need a variance."""
LEARNING_RATE: Final = 2e-3


def run(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Train on 1, 5 and 10 % of the images, all weights: the protected model and a fresh one, alike in all else."""
    meter.expect(2 * budget.steps * len(SHARES))
    rows = []
    for at, share in enumerate(SHARES):
        count = round(share * len(sample.attacker))
        label = f"{share:.0%} of the training data"
        if count < FEWEST:
            note = f"not run: {share:.0%} of {len(sample.attacker)} images are too few"
            rows.append(Row(label=label, score=None, at=share, images=count, work=0, unit=_UNIT, note=note))
            continue
        own = some(sample.attacker, count, seed)
        part = meter.part(2 * (len(SHARES) - at))
        tuned, done = _trained(subject, subject.victim(), own, sample, budget, part, seed, device)
        # As many steps from scratch, and they take as long: the comparison is fair where time cuts both short.
        fresh, _ = _trained(subject, subject.fresh(seed), own, sample, budget, part, seed, device, exactly=done)
        rows.append(
            Row(
                label=label,
                score=tuned if done else None,
                beside=fresh if done else None,
                at=share,
                images=count,
                work=done,
                unit=_UNIT,
                cut_short=done < budget.steps,
                note="" if done else NO_TIME,
            )
        )
    return AttackResult(name=NAME, rows=tuple(rows), details={"training": subject.training})


_UNIT = "training steps"


def _trained(
    subject: Subject,
    model: nn.Module,
    own: LabelledImages,
    sample: Sample,
    budget: Budget,
    meter: Meter,
    seed: int,
    device: torch.device,
    exactly: int | None = None,
) -> tuple[float, int]:
    """Return (held-out score, steps done) of `model` after training on `own`."""
    model = model.to(device)
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    for weight in weights:
        weight.requires_grad_()
    done = fit(
        model, weights, own, steps=budget.steps, rate=LEARNING_RATE, seed=seed, meter=meter, device=device,
        training=True, augment=subject.augment, exactly=exactly,
    )  # fmt: skip
    return reached(model, sample.held_out, device), done
