"""Pruning, then training further: cut off what ordinary images hardly use, in the hope that the lock sits there.

After fine-pruning (Liu, Dolan-Gavitt, Garg, RAID 2018), by magnitude: the smallest weights of every convolution and
linear layer become zero and stay so, then the rest is trained on the thief's own images.
"""

import functools
from typing import Final

import torch
from torch import nn

from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.measure import reached
from tessera.protect.audit.result import NO_TIME, AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject, some
from tessera.protect.audit.training import fit

NAME: Final = "pruning"
SHARES: Final = (0.3, 0.6, 0.9)
"""Of the weights of each layer, how many are cut off."""
DATA_SHARE: Final = 0.05
"""Of the training data, what the thief has."""
FEWEST: Final = 2
LEARNING_RATE: Final = 2e-3


def run(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Prune each share, measure, train on 5 % of the data, measure; the row's score is the better of the two."""
    meter.expect(budget.steps * len(SHARES))
    count = round(DATA_SHARE * len(sample.attacker))
    rows = []
    for at, share in enumerate(SHARES):
        label = f"{share:.0%} of the weights cut off, then {DATA_SHARE:.0%} of the data"
        if count < FEWEST:
            note = f"not run: {DATA_SHARE:.0%} of {len(sample.attacker)} images are too few"
            rows.append(Row(label=label, score=None, at=share, images=count, work=0, unit=_UNIT, note=note))
            continue
        model = subject.victim().to(device)
        weights = _pruned(model, share)
        before = reached(model, sample.held_out, device)
        hooks = [weight.register_hook(functools.partial(torch.mul, kept)) for weight, kept in weights]  # type: ignore[no-untyped-call]
        trained = [weight for weight in model.parameters() if weight.is_floating_point()]
        for weight in trained:
            weight.requires_grad_()
        done = fit(
            model, trained, some(sample.attacker, count, seed), steps=budget.steps, rate=LEARNING_RATE, seed=seed,
            meter=meter.part(len(SHARES) - at), device=device, training=True, augment=subject.augment,
        )  # fmt: skip
        for hook in hooks:
            hook.remove()
        after = reached(model, sample.held_out, device)
        note = f"{before:.1%} before training" if done else NO_TIME
        rows.append(
            Row(
                label=label,
                score=max(before, after) if done else None,
                at=share,
                images=count,
                work=done,
                unit=_UNIT,
                cut_short=done < budget.steps,
                note=note,
            )
        )
    return AttackResult(name=NAME, rows=tuple(rows), details={"training": subject.training})


_UNIT: Final = "training steps"


@torch.no_grad()
def _pruned(model: nn.Module, share: float) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Set the smallest weights of every matrix or kernel to zero; return each with the mask of those that are kept."""
    found = []
    for weight in model.parameters():
        if weight.ndim < 2 or not weight.is_floating_point():
            continue
        weight.requires_grad_()
        cut = round(share * weight.numel())
        order = weight.abs().reshape(-1).argsort()
        kept = torch.ones(weight.numel(), device=weight.device)
        kept[order[:cut]] = 0.0
        kept = kept.reshape(weight.shape)
        weight.mul_(kept)
        found.append((weight, kept))
    return found
