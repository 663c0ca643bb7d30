"""Climbing towards a key: where a guess stands, and how moves that help are found and taken.

A keyed transform has no avalanche, so whatever lowers the loss on a few labelled images leads towards the key.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.guesses import Guess, GuessTransform, Move, changed, idle, share_right, true_guess
from tessera.protect.audit.measure import Compared, reached
from tessera.protect.audit.result import Row
from tessera.protect.audit.subject import Sample, Subject, some

UNIT = "keys tried"
_LEAST_GAIN = 1e-6
_CURVE_RATIO = 1.5
"""The held-out score is measured whenever the work has grown by this factor."""


class Desk:
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
class Climb:
    """A search on its way: where it stands, what it has cost, and the held-out score along it."""

    guess: Guess
    tried: int
    ended: bool
    """Whether the last round of all moves brought nothing."""
    curve: list[tuple[int, float]] | None
    """None where nobody wants it."""
    starts: int = 1

    def told(self, desk: Desk) -> None:
        """Measure the held-out score when enough has been tried since the last time."""
        if self.curve is None:
            return
        if not self.curve or self.tried >= _CURVE_RATIO * max(self.curve[-1][0], 8):
            self.curve.append((self.tried, desk.judged(self.guess)))

    def row(self, label: str, desk: Desk, planned: int, note: str = "") -> Row:
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


def descend(
    desk: Desk, climb: Climb, moves: list[Move], planned: int, meter: Meter, draws: np.random.Generator
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


def _best_of(desk: Desk, climb: Climb, moves: list[Move], loss: float, meter: Meter) -> float:
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
