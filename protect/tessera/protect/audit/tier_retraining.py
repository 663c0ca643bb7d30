"""Training a lower tier up to the full model: what withheld weights are worth against somebody with a few images.

The thief has the weights of a lower tier, the right input key where there is one, and a few labelled images. All
weights are trained, or those of the locked layers alone, which the thief is told. Beside them: the same network from
fresh weights, with as many images and steps. Only what lies above both the tier as it was and that is the file's gift.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import torch
from torch import nn

from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.cut import Cut, weights_called
from tessera.protect.audit.measure import Fronted, reached
from tessera.protect.audit.result import NO_TIME, AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject, some
from tessera.protect.audit.tier_use import cut_of, licensed
from tessera.protect.audit.training import fit
from tessera.protect.evaluate import LabelledImages

NAME: Final = "tier-retraining"
IMAGES: Final = (2, 10, 100)
SHARES: Final = (0.01, 0.10)
"""Of the attacker's part of the sample; with a recipe that is the training set itself."""
ALL, LOCKED = "all weights", "locked layers only"
UNIT: Final = "training steps"
LEARNING_RATE: Final = 1e-3
SCRATCH_RATE: Final = 2e-3
"""From fresh weights more has to be learned, and batch norms learn their statistics; else they keep the file's."""
LOOKS: Final = 4
"""How often quality is measured along the way, besides before."""

Curve = tuple[tuple[int, float], ...]


def run(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Train from the file alone and from lower tiers, with 2, 10, 100 images and 1, 10 % of the data."""
    cut = cut_of(subject)
    starts = _starts(cut, budget.lower_tiers)
    trainer = _Trainer(subject, sample, budget, seed, device)
    wanted = _amounts(len(sample.attacker))
    left = len(wanted) * (2 * len(starts) + 1)
    meter.expect(budget.steps * left)
    rows: list[Row] = []
    for count, words in wanted:
        if count > len(sample.attacker):
            rows += _not_run(cut, starts, count, words, f"the attacker's part holds {len(sample.attacker)} images")
            continue
        own = some(sample.attacker, count, seed)
        curves = []
        for start, target in product(starts, (ALL, LOCKED)):
            curves.append(trainer.trained(cut, start, target, own, meter.part(left)))
            left -= 1
        most = max(curve[-1][0] for curve in curves)
        fresh = trainer.from_scratch(own, meter.part(left), most)
        left -= 1
        for (start, target), curve in zip(product(starts, (ALL, LOCKED)), curves, strict=True):
            rows.append(_row(_series(cut, start, target), count, words, curve, fresh, budget.steps))
    order = {_series(cut, *pair): place for place, pair in enumerate(product(starts, (ALL, LOCKED)))}
    rows.sort(key=lambda row: order[row.series])
    return AttackResult(name=NAME, rows=tuple(rows), details=_EXPLAINED)


_EXPLAINED = {
    "gain": "the best along the way, less the better of what it was before and of training from scratch",
    "best": "along the way, chosen by the judge's own images, and what the picture shows: no attacker who stops at "
    "another moment does better in these runs",
    "training": "the file's batch norms keep their statistics; from scratch they learn their own",
}


@dataclass(frozen=True)
class _Trainer:
    """Trains victims and fresh networks alike, in front of the judge."""

    subject: Subject
    sample: Sample
    budget: Budget
    seed: int
    device: torch.device

    def trained(self, cut: Cut, start: int, target: str, own: LabelledImages, meter: Meter) -> Curve:
        """Return (steps done, held-out score) along the training of a tier's weights, from before the first step."""
        model = cut.model(cut.state(start)).to(self.device)
        every = [weight for weight in model.parameters() if weight.is_floating_point()]
        chosen = every if target == ALL else weights_called(model, cut.units(0))
        for weight in every:
            weight.requires_grad_(any(weight is one for one in chosen))
        return tuple(self._curve(model, chosen, own, meter, LEARNING_RATE, training=False))

    def from_scratch(self, own: LabelledImages, meter: Meter, exactly: int) -> Curve:
        """Return the same of the network with fresh weights, after as many steps however long they take."""
        model = self.subject.fresh(self.seed).to(self.device)
        weights = [weight for weight in model.parameters() if weight.is_floating_point()]
        for weight in weights:
            weight.requires_grad_()
        return tuple(self._curve(model, weights, own, meter, SCRATCH_RATE, training=True, exactly=exactly))

    def _curve(
        self,
        model: nn.Module,
        weights: list[nn.Parameter],
        own: LabelledImages,
        meter: Meter,
        rate: float,
        *,
        training: bool,
        exactly: int | None = None,
    ) -> Iterator[tuple[int, float]]:
        front = licensed(self.subject, self.device)
        found = [(0, reached(model, self.sample.held_out, self.device, front))]

        def look(step: int) -> None:
            found.append((step, reached(model, self.sample.held_out, self.device, front)))
            if training:
                model.train()

        steps = self.budget.steps
        every = math.ceil(steps / LOOKS)
        done = fit(
            Fronted(front, model), weights, own, steps=steps, rate=rate, seed=self.seed, meter=meter,
            device=self.device, training=training, augment=self.subject.augment, exactly=exactly,
            watch=lambda step: look(step) if step % every == 0 else None,
        )  # fmt: skip
        if found[-1][0] != done:
            look(done)
        yield from found


def _starts(cut: Cut, most: int) -> tuple[int, ...]:
    """Return where training starts: the file alone, and so many of the lower tiers, the middle one first."""
    lower = [tier for tier in cut.starts() if tier]
    middle = sorted(lower, key=lambda tier: (abs(tier - cut.tiers / 2), tier))
    return (0, *sorted(middle[:most]))


def _amounts(there: int) -> list[tuple[int, str]]:
    """Return each number of images with what it is called, rising; what falls together is trained once."""
    found = {count: f"{count} images" for count in IMAGES}
    for share in SHARES:
        count = round(share * there)
        if count >= min(IMAGES):
            found[count] = f"{count:,} images ({share:.0%} of the data)"
    return sorted(found.items())


def _series(cut: Cut, start: int, target: str) -> str:
    return f"{cut.title(start)}, {target}"


def _row(series: str, count: int, words: str, curve: Curve, fresh: Curve, planned: int) -> Row:
    done = curve[-1][0]
    row = Row(
        label=f"{series}, {words}",
        score=curve[-1][1] if done else None,
        before=curve[0][1],
        at=count,
        images=count,
        work=done,
        unit=UNIT,
        cut_short=done < planned,
        series=series,
    )
    if not done:
        return replace(row, note=NO_TIME)
    return replace(row, best=max(score for _, score in curve), beside=max(score for _, score in fresh), curve=curve)


def _not_run(cut: Cut, starts: tuple[int, ...], count: int, words: str, why: str) -> list[Row]:
    return [
        Row(
            label=f"{_series(cut, start, target)}, {words}", score=None, at=count, images=count, work=0, unit=UNIT,
            note=f"not run: {why}", series=_series(cut, start, target),
        )
        for start, target in product(starts, (ALL, LOCKED))
    ]  # fmt: skip
