"""A guess of the transform as an attacker holds it: permutations, masks and tables, not the 32 bytes behind them.

The spec is public, so a guess has one part for each of its steps. Searching the key itself would be hopeless; its
permutations and masks can be improved piece by piece, which is why their number says nothing about safety.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.keystore.secrets import InputKey
from tessera.transforms import Step, TransformSpec, block_positions, mask, permutation
from tessera.transforms.passes import step_tables

_IDENTITY: Final = np.arange(256, dtype=np.uint8)
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class StepGuess:
    """One step on a block of L values: they are moved, and those under the mask are inverted or looked up.

    `order` is int64 (L,), `chosen` bool (L,), `tables` uint8 (L, 256); what the step's kind does not use is neutral.
    """

    step: Step
    order: NDArray[np.int64]
    chosen: NDArray[np.bool_]
    tables: NDArray[np.uint8]


Guess = tuple[StepGuess, ...]


@dataclass(frozen=True)
class Move:
    """One change of a guess: two places of a permutation swapped, or one place of a mask changed (`second` None)."""

    step: int
    first: int
    second: int | None = None

    def places(self) -> frozenset[tuple[int, int]]:
        """Return the (step, place) pairs that it changes."""
        others = () if self.second is None else (self.second,)
        return frozenset((self.step, place) for place in (self.first, *others))


def random_guess(spec: TransformSpec, channels: int, draws: np.random.Generator) -> Guess:
    """Return what a random key would give: half of a mask chosen, tables that are random permutations."""
    return tuple(_random_step(step, channels, draws) for step in spec.steps)


def true_guess(spec: TransformSpec, key: InputKey, channels: int) -> Guess:
    """Return what `key` gives: for judging guesses, and as secret as the key."""
    return tuple(_true_step(key, number, step, channels) for number, step in enumerate(spec.steps))


def moves_of(guess: Guess) -> list[Move]:
    """Return every single change: swaps of permutations, flips and balanced exchanges of masks. Tables stay."""
    found: list[Move] = []
    for number, part in enumerate(guess):
        places = len(part.order)
        if part.step.kind != "shf":
            found += [Move(number, place) for place in range(places)]
        found += [Move(number, first, second) for first, second in combinations(range(places), 2)]
    return found


def changed(guess: Guess, *moves: Move) -> Guess:
    """Return `guess` after `moves`. An exchange of two equal mask places changes nothing."""
    parts = list(guess)
    for move in moves:
        part = parts[move.step]
        if part.step.kind == "shf":
            parts[move.step] = replace(part, order=_swapped(part.order, move))
        else:
            parts[move.step] = replace(part, chosen=_swapped(part.chosen, move))
    return tuple(parts)


def idle(guess: Guess, move: Move) -> bool:
    """Tell whether `move` would change nothing."""
    part = guess[move.step]
    return part.step.kind != "shf" and move.second is not None and part.chosen[move.first] == part.chosen[move.second]


def share_right(guess: Guess, truth: Guess) -> float:
    """Return the share of places in permutations and masks that agree."""
    agree = [
        mine.order == right.order if mine.step.kind == "shf" else mine.chosen == right.chosen
        for mine, right in zip(guess, truth, strict=True)
    ]
    return float(np.concatenate(agree).mean())


class GuessTransform:
    """Applies a guess to uint8 (N, C, H, W) on `device`; what a right guess gives is the keyed transform itself."""

    def __init__(self, guess: Guess, shape: tuple[int, int, int], device: torch.device) -> None:
        self._steps = [_applied(part, shape, device) for part in guess]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the transformed copy of `x`."""
        flat = x.reshape(len(x), -1)
        for step in self._steps:
            flat = step(flat)
        return flat.reshape(x.shape)


def _applied(part: StepGuess, shape: tuple[int, int, int], device: torch.device) -> Callable[[Tensor], Tensor]:
    blocks = block_positions(*shape, part.step.block)
    if part.step.kind == "shf":
        source = torch.from_numpy(_everywhere(blocks, blocks[:, part.order])).to(device)
        return lambda flat: flat.index_select(1, source)
    if part.step.kind == "np":
        flips = torch.from_numpy(_everywhere(blocks, part.chosen.astype(np.uint8) * np.uint8(255))).to(device)
        return lambda flat: flat ^ flips
    used = np.where(part.chosen, np.arange(len(part.order)), len(part.order)).astype(np.int32)
    offsets = torch.from_numpy(_everywhere(blocks, used * np.int32(256))).to(device)
    tables = torch.from_numpy(np.concatenate([part.tables, _IDENTITY[np.newaxis]]).reshape(-1)).to(device)
    return lambda flat: tables.index_select(0, (offsets + flat.int()).reshape(-1)).reshape(flat.shape)


def _everywhere(blocks: NDArray[np.int64], values: NDArray[_Scalar]) -> NDArray[_Scalar]:
    found = np.empty(blocks.size, dtype=values.dtype)
    found[blocks] = values
    return found


def _neutral(step: Step, channels: int) -> StepGuess:
    places = channels * step.block**2
    tables = np.broadcast_to(_IDENTITY, (places, 256))
    return StepGuess(step, np.arange(places, dtype=np.int64), np.zeros(places, dtype=np.bool_), tables)


def _random_step(step: Step, channels: int, draws: np.random.Generator) -> StepGuess:
    part = _neutral(step, channels)
    places = len(part.order)
    if step.kind == "shf":
        return replace(part, order=draws.permutation(places).astype(np.int64))
    chosen = np.zeros(places, dtype=np.bool_)
    chosen[draws.permutation(places)[: places // 2]] = True
    if step.kind == "np":
        return replace(part, chosen=chosen)
    count = places if step.positions else 1
    tables = np.stack([draws.permutation(256) for _ in range(count)]).astype(np.uint8)
    return replace(part, chosen=chosen, tables=np.broadcast_to(tables, (places, 256)))


def _true_step(key: InputKey, number: int, step: Step, channels: int) -> StepGuess:
    part = _neutral(step, channels)
    if step.kind == "shf":
        return replace(part, order=permutation(key, number, "shf", step.block, channels))
    chosen = mask(key, number, step.kind, step.block, channels) != 0
    if step.kind == "np":
        return replace(part, chosen=chosen)
    tables, which = step_tables(key, number, step, channels)
    return replace(part, chosen=chosen, tables=tables[which])


def _swapped(values: NDArray[_Scalar], move: Move) -> NDArray[_Scalar]:
    after = values.copy()
    if move.second is None:
        after[move.first] = ~after[move.first]  # a mask: flips have no second place
    else:
        after[[move.first, move.second]] = after[[move.second, move.first]]
    return after
