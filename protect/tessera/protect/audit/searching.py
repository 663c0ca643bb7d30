"""Searching for the key's effect: by chance, and by changing a guess piece by piece.

A keyed transform has no avalanche: a permutation with most places right works most of the time. So a search that keeps
whatever helps climbs towards the key, however many keys there are. Every search compares guesses on a few labelled
images of the attacker's own and is judged on held-out ones.
"""

import numpy as np
import torch

from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.climbing import UNIT, Climb, Desk, descend
from tessera.protect.audit.guesses import Guess, Move, changed, idle, moves_of, random_guess
from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject

BY_ACCURACY, BY_LOSS, MASK = "pairwise, by accuracy", "pairwise, by loss", "mask bits, by loss"
"""The labels of the rows of the greedy searches."""
GIVEN = "given"
"""The detail of a result that says that its attacker was given a part of the key; verdicts then leave it out."""
_KICK = 4
"""Random moves that lead out of where a climb ended."""


def run_random(
    subject: Subject, sample: Sample, budget: Budget, meter: Meter, *, seed: int, device: torch.device
) -> AttackResult:
    """Try random keys on a batch of labelled images and keep the best."""
    meter.expect(budget.random_keys)
    desk = Desk(subject, sample, budget, seed, device)
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
    desk = Desk(subject, sample, budget, seed, device)
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
    desk = Desk(subject, sample, budget, seed, device)
    climb = _by_loss(desk, desk.truth, budget.evaluations, meter, np.random.default_rng(seed))
    others = subject.kinds - {"np"}
    known = f"the {' and '.join(sorted(others))} part of the key was given to the attacker" if others else ""
    row = climb.row(MASK, desk, budget.evaluations, note=known)
    return AttackResult(name="mask-search", rows=(row,), details={GIVEN: True} if known else {})


def _by_accuracy(desk: Desk, planned: int, meter: Meter, draws: np.random.Generator) -> Climb:
    """Swap pair after pair and keep whatever does not lower the accuracy, as the papers' own attack does."""
    climb = Climb(random_guess(desk.subject.spec, desk.subject.shape[0], draws), 0, False, [])
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


def _by_loss(desk: Desk, known: Guess | None, planned: int, meter: Meter, draws: np.random.Generator) -> Climb:
    """Climb by loss, from one start after the other; `known` gives all but the masks of `np` steps.

    Every other start is the best guess so far with a few moves at random, which leads out of a small hollow.
    """
    best: Climb | None = None
    best_loss, tried, starts = float("inf"), 0, 0
    curve: list[tuple[int, float]] = []
    while tried < planned and not (meter.over and starts):
        start = _start(desk, known, draws) if best is None or starts % 2 == 0 else best.guess
        moves = _moves(start, known)
        if starts % 2:
            start = changed(start, *(moves[at] for at in draws.integers(len(moves), size=_KICK)))
        climb = Climb(start, tried, False, curve if best is None else None)
        loss = descend(desk, climb, moves, planned, meter, draws)
        tried, starts = climb.tried, starts + 1
        if loss < best_loss:
            best, best_loss = climb, loss
    assert best is not None
    return Climb(best.guess, tried, best.ended, curve, starts)


def _start(desk: Desk, known: Guess | None, draws: np.random.Generator) -> Guess:
    guess = random_guess(desk.subject.spec, desk.subject.shape[0], draws)
    if known is None:
        return guess
    return tuple(mine if mine.step.kind == "np" else right for mine, right in zip(guess, known, strict=True))


def _moves(guess: Guess, known: Guess | None) -> list[Move]:
    return [move for move in moves_of(guess) if known is None or guess[move.step].step.kind == "np"]


def _tables_note(subject: Subject) -> str:
    if "ffx" not in subject.kinds:
        return ""
    return "the tables of ffx are not searched: a random one is kept, and the adapter is what learns tables"
