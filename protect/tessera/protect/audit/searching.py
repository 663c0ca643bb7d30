"""Searching for the key's effect: by chance, and by changing a guess piece by piece.

A keyed transform has no avalanche: a permutation with most places right works most of the time. So a search that keeps
whatever helps climbs towards the key, however many keys there are. Every search compares guesses on a few labelled
images of the attacker's own and is judged on held-out ones.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.guesses import (
    Guess,
    GuessTransform,
    Move,
    changed,
    idle,
    moves_of,
    random_guess,
    share_right,
    true_guess,
)
from tessera.protect.audit.measure import Compared, reached
from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject, some

BY_ACCURACY, BY_LOSS, MASK = "pairwise, by accuracy", "pairwise, by loss", "mask bits, by loss"
"""The labels of the rows of the greedy searches."""
UNIT = "keys tried"
GIVEN = "given"
"""The detail of a result that says that its attacker was given a part of the key; verdicts then leave it out."""
_LEAST_GAIN = 1e-6
_KICK = 4
"""Random moves that lead out of where a climb ended."""
_CURVE_RATIO = 1.5
"""The held-out score is measured whenever the work has grown by this factor."""


def run_random(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Try random keys on a batch of labelled images and keep the best."""
    meter.expect(budget.random_keys)
    desk = _Desk(subject, sample, budget, seed, device)
    draws = np.random.default_rng(seed)
    best, best_right, tried = None, -1.0, 0
    while tried < budget.random_keys and not (meter.over and tried):
        count = min(desk.compared.width, budget.random_keys - tried)
        guesses = [random_guess(subject.spec, subject.shape[0], draws) for _ in range(count)]
        for guess, (_, right) in zip(guesses, desk.compared.both(guesses), strict=True):
            if right > best_right:
                best, best_right = guess, right
        tried += count
        meter.did(count)
    assert best is not None
    row = Row(
        label="best of the random keys",
        score=desk.judged(best),
        images=desk.images,
        work=tried,
        unit=UNIT,
        cut_short=tried < budget.random_keys,
        note=f"{best_right:.1%} on the images it was chosen by",
    )
    return AttackResult(name="random-search", rows=(row,))


def run_greedy(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Climb from random keys by swapping pairs: keeping what loses no accuracy (as published), or what wins loss."""
    meter.expect(2 * budget.evaluations)
    desk = _Desk(subject, sample, budget, seed, device)
    by_accuracy = _by_accuracy(desk, budget.evaluations, meter.part(2), np.random.default_rng(seed))
    by_loss = _by_loss(desk, None, budget.evaluations, meter.part(1), np.random.default_rng(seed))
    rows = (
        by_accuracy.row(BY_ACCURACY, desk, budget.evaluations),
        by_loss.row(BY_LOSS, desk, budget.evaluations),
    )
    note = _tables_note(subject)
    return AttackResult(name="greedy-search", rows=rows, details={"note": note} if note else {})


def run_mask(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Find the masks of the `np` steps bit by bit, the rest of the key being known: what NP adds to the other steps."""
    meter.expect(budget.evaluations)
    desk = _Desk(subject, sample, budget, seed, device)
    climb = _by_loss(desk, desk.truth, budget.evaluations, meter, np.random.default_rng(seed))
    others = subject.kinds - {"np"}
    known = f"the {' and '.join(sorted(others))} part of the key was given to the attacker" if others else ""
    row = climb.row(MASK, desk, budget.evaluations, note=known)
    return AttackResult(name="mask-search", rows=(row,), details={GIVEN: True} if known else {})


class _Desk:
    """Where the attacker sits: the model, the images that guesses are compared by, and the judge's."""

    def __init__(self, subject: Subject, sample: Sample, budget: Budget, seed: int, device: torch.device) -> None:
        self.subject, self._device = subject, device
        self._model: nn.Module = subject.victim().to(device)
        own = some(sample.attacker, budget.search_images, seed)
        self.compared, self.images = Compared(subject, self._model, own, device), len(own)
        self.truth = true_guess(subject.spec, subject.key, subject.shape[0])
        self._held_out = sample.held_out

    def judged(self, guess: Guess) -> float:
        """Return the held-out score of `guess`."""
        front = GuessTransform(guess, self.subject.shape, self._device)
        return reached(self._model, self._held_out, self._device, front)


@dataclass
class _Climb:
    """A search on its way: where it stands, what it has cost, and the held-out score along it."""

    guess: Guess
    tried: int
    ended: bool
    """Whether the last round of all moves brought nothing."""
    curve: list[tuple[int, float]] | None
    """None where nobody wants it."""
    starts: int = 1

    def told(self, desk: _Desk) -> None:
        """Measure the held-out score when enough has been tried since the last time."""
        if self.curve is None:
            return
        if not self.curve or self.tried >= _CURVE_RATIO * max(self.curve[-1][0], 8):
            self.curve.append((self.tried, desk.judged(self.guess)))

    def row(self, label: str, desk: _Desk, planned: int, note: str = "") -> Row:
        """Return its row; the curve ends with the final guess."""
        score = desk.judged(self.guess)
        right = f"{share_right(self.guess, desk.truth):.0%} of the places of permutations and masks right"
        starts = f"best of {self.starts} starts" if self.starts > 1 else ""
        return Row(
            label=label,
            score=score,
            images=desk.images,
            work=self.tried,
            unit=UNIT,
            cut_short=self.tried < planned,
            note="; ".join(text for text in (right, starts, note) if text),
            curve=(*(self.curve or ()), (self.tried, score)),
        )


def _by_accuracy(desk: _Desk, planned: int, meter: Meter, draws: np.random.Generator) -> _Climb:
    """Swap pair after pair and keep whatever does not lower the accuracy, as the papers' own attack does."""
    climb = _Climb(random_guess(desk.subject.spec, desk.subject.shape[0], draws), 0, False, [])
    ((_, right),) = desk.compared.both([climb.guess])
    climb.tried = 1
    moves = moves_of(climb.guess)
    while climb.tried < planned and not meter.over:
        for move in moves:
            if climb.tried >= planned or meter.over:
                break
            if idle(climb.guess, move):
                continue
            candidate = changed(climb.guess, move)
            ((_, after),) = desk.compared.both([candidate])
            climb.tried += 1
            meter.did()
            if after >= right:
                climb.guess, right = candidate, after
            climb.told(desk)
    return climb


def _by_loss(desk: _Desk, known: Guess | None, planned: int, meter: Meter, draws: np.random.Generator) -> _Climb:
    """Climb by loss, from one start after the other; `known` gives all but the masks of `np` steps.

    Every other start is the best guess so far with a few moves at random, which leads out of a small hollow.
    """
    best: _Climb | None = None
    best_loss, tried, starts = float("inf"), 0, 0
    curve: list[tuple[int, float]] = []
    while tried < planned and not (meter.over and starts):
        start = _start(desk, known, draws) if best is None or starts % 2 == 0 else best.guess
        moves = _moves(start, known)
        if starts % 2:
            start = changed(start, *(moves[at] for at in draws.integers(len(moves), size=_KICK)))
        climb = _Climb(start, tried, False, curve if best is None else None)
        loss = _descend(desk, climb, moves, planned, meter, draws)
        tried, starts = climb.tried, starts + 1
        if loss < best_loss:
            best, best_loss = climb, loss
    assert best is not None
    return _Climb(best.guess, tried, best.ended, curve, starts)


def _start(desk: _Desk, known: Guess | None, draws: np.random.Generator) -> Guess:
    guess = random_guess(desk.subject.spec, desk.subject.shape[0], draws)
    if known is None:
        return guess
    return tuple(mine if mine.step.kind == "np" else right for mine, right in zip(guess, known, strict=True))


def _moves(guess: Guess, known: Guess | None) -> list[Move]:
    return [move for move in moves_of(guess) if known is None or guess[move.step].step.kind == "np"]


def _descend(
    desk: _Desk, climb: _Climb, moves: list[Move], planned: int, meter: Meter, draws: np.random.Generator
) -> float:
    """Take every move that lowers the loss until a whole round brings none; return the loss. Moves `climb` along."""
    (loss,) = desk.compared.losses([climb.guess])
    climb.tried += 1
    while not climb.ended:
        before = loss
        order = [moves[at] for at in draws.permutation(len(moves))]
        width = min(desk.compared.width, max(1, len(moves) // 4))
        for first in range(0, len(order), width):
            if climb.tried >= planned or meter.over:
                return loss
            some_moves = [move for move in order[first : first + width] if not idle(climb.guess, move)]
            loss = _best_of(desk, climb, some_moves[: planned - climb.tried], loss, meter)
            climb.told(desk)
        climb.ended = loss > before - _LEAST_GAIN
    return loss


def _best_of(desk: _Desk, climb: _Climb, moves: list[Move], loss: float, meter: Meter) -> float:
    """Compare `moves` with the present guess and take the best, or all that help at once if that is better still."""
    if not moves:
        return loss
    found = desk.compared.losses([changed(climb.guess, move) for move in moves])
    climb.tried += len(moves)
    meter.did(len(moves))
    better = sorted((after, at) for at, after in enumerate(found) if after < loss - _LEAST_GAIN)
    if not better:
        return loss
    best_loss, best = better[0][0], changed(climb.guess, moves[better[0][1]])
    together = _apart([moves[at] for _, at in better])
    if len(together) > 1:
        joint = changed(climb.guess, *together)
        (joint_loss,) = desk.compared.losses([joint])
        climb.tried += 1
        meter.did()
        if joint_loss < best_loss:
            best_loss, best = joint_loss, joint
    climb.guess = best
    return best_loss


def _apart(moves: list[Move]) -> list[Move]:
    """Return the moves that touch no place of an earlier one."""
    taken: set[tuple[int, int]] = set()
    found = []
    for move in moves:
        if not taken & move.places():
            taken |= move.places()
            found.append(move)
    return found


def _tables_note(subject: Subject) -> str:
    if "ffx" not in subject.kinds:
        return ""
    return "the tables of ffx are not searched: a random one is kept, and the adapter is what learns tables"
