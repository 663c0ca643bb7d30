"""Reading the mask and the tables of `ffx` off keyed images that somebody saw pass, without a label or a pair.

The thief has images after the transform, as the operator of a node has them, and perhaps ordinary images of the same
kind beside them, which are other images. What `histograms` reads off them becomes a guess of the transform, and a few
labelled images then correct its mask, place by place, as the other searches do.
"""

import math
from typing import Final

import numpy as np
import torch

from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.climbing import UNIT as KEYS
from tessera.protect.audit.climbing import Climb, Desk, descend
from tessera.protect.audit.guesses import Guess, Move, StepGuess, moves_of, true_guess
from tessera.protect.audit.histograms import Bytes, ReadOff, read_off
from tessera.protect.audit.result import NO_TIME, AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Step, Transform, block_positions

NAME: Final = "ffx-statistics"
IMAGES: Final = (10, 100, 1000)
"""How many keyed images the attacker saw, row by row; at most half of those that the sample gives to attackers."""
ALONE, BESIDE, CORRECTED = "seen alone", "beside as many other plain images", "corrected by labelled images"
"""The series of rows, and the label of the last one."""
UNIT: Final = "images, without labels"
MAX_VALUES: Final = 2**24
"""Most pixel values that are read: large images are fewer."""
MOST_PLACES: Final = 192
"""Largest block whose masks are corrected by exchanging places as well as by changing single ones."""


def run(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Read the step off each number of keyed images, alone and beside plain ones; correct the last reading."""
    if len(subject.spec.steps) > 1:
        return AttackResult(name=NAME, skipped="it reads one ffx step off, and here others move or change values too")
    step = subject.spec.steps[0]
    meter.expect(2 * len(IMAGES) + budget.evaluations)
    desk = Desk(subject, sample, budget, seed, device)
    judge = _Judge(subject, sample)
    keyed, plain = _seen(subject, sample, seed)
    counts = sorted({min(count, len(keyed)) for count in IMAGES})
    rows: list[Row] = []
    best: Guess | None = None
    for beside, series in ((False, ALONE), (True, BESIDE)):
        for count in counts:
            if meter.over and rows:
                rows.append(_not_run(count, series))
                continue
            found = read_off(step, keyed[:count], plain[:count] if beside else None)
            best = guess_of(step, found)
            rows.append(
                Row(
                    label=_label(count, series),
                    score=desk.judged(best),
                    at=count,
                    images=0,
                    work=count,
                    unit=UNIT,
                    note=judge.note(found),
                    series=series,
                )
            )
            meter.did()
    rows += _corrected(desk, best, budget, meter, seed)
    return AttackResult(name=NAME, rows=tuple(rows), details={"correlation": _EXPLAINED})


_EXPLAINED = (
    "between the true values of replaced pixels of other images and those that the table read off gives back; near 1 "
    "the pictures are legible, though few bytes may be right to the last step"
)


def guess_of(step: Step, found: ReadOff) -> Guess:
    """Return what was read as a guess; a table that serves all places serves those too that may be added later."""
    tables = found.tables()
    if not step.positions and found.chosen.any():
        tables = np.broadcast_to(tables[np.flatnonzero(found.chosen)[0]], tables.shape)
    return (StepGuess(step, np.arange(len(tables), dtype=np.int64), found.chosen, tables),)


def _seen(subject: Subject, sample: Sample, seed: int) -> tuple[Bytes, Bytes]:
    """Return keyed images that the attacker saw, and others before the transform: no image is in both."""
    images = sample.attacker.images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    half, most = len(images) // 2, max(1, min(max(IMAGES), MAX_VALUES // math.prod(subject.shape)))
    lock = TorchTransform(Transform(subject.spec, subject.key, *subject.shape))
    return lock(images[order[:half][:most]]).cpu().numpy(), images[order[half:][:most]].cpu().numpy()


def _corrected(desk: Desk, guess: Guess | None, budget: Budget, meter: Meter, seed: int) -> list[Row]:
    """Return the row of the guess whose mask was improved by loss; none where nothing was read."""
    if guess is None:
        return []
    if meter.over:
        return [Row(label=CORRECTED, score=None, images=0, work=0, unit=KEYS, cut_short=True, note=NO_TIME)]
    climb = Climb(guess, 0, False, [])
    descend(desk, climb, _moves(guess), budget.evaluations, meter, np.random.default_rng(seed))
    return [climb.row(CORRECTED, desk, climb.tried if climb.ended else budget.evaluations)]


def _moves(guess: Guess) -> list[Move]:
    places = len(guess[0].chosen)
    return moves_of(guess) if places <= MOST_PLACES else [Move(0, place) for place in range(places)]


def _not_run(count: int, series: str) -> Row:
    return Row(
        label=_label(count, series), score=None, at=count, images=0, work=0, unit=UNIT, note=NO_TIME, series=series,
        cut_short=True,
    )  # fmt: skip


def _label(count: int, series: str) -> str:
    return f"{count:,} keyed images, {series}"


class _Judge:
    """Who knows the key, and tells how much of it was read."""

    def __init__(self, subject: Subject, sample: Sample) -> None:
        self._truth = true_guess(subject.spec, subject.key, subject.shape[0])[0]
        self._plain = sample.held_out.images[:256].cpu().numpy()
        lock = TorchTransform(Transform(subject.spec, subject.key, *subject.shape))
        self._keyed = lock(sample.held_out.images[:256].cpu()).cpu().numpy()
        blocks = block_positions(*subject.shape, subject.spec.steps[0].block)
        place = np.empty(blocks.size, dtype=np.int64)
        place[blocks] = np.arange(blocks.shape[1])
        self._place = place.reshape(subject.shape)

    def note(self, found: ReadOff) -> str:
        """Return what is right, in words: mask, tables, bytes."""
        places = len(found.chosen)
        right = int((found.chosen == self._truth.chosen).sum())
        replaced = self._truth.chosen[self._place]
        back = found.plain[self._place[None], self._keyed][:, replaced].astype(np.float64).reshape(-1)
        true = self._plain[:, replaced].astype(np.float64).reshape(-1)
        level = float(np.corrcoef(back, true)[0, 1]) if back.std() > 0 and true.std() > 0 else 0.0
        exact = float((back == true).mean())
        return f"{right} of {places} mask bits right; correlation {level:.3f}; {exact:.0%} of replaced bytes read right"
