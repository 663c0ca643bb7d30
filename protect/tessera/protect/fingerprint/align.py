"""Putting a leaked tensor back beside the original: channels that were moved, rows and columns that were rescaled.

A network computes the same when the channels of a layer change places, if the next layer's inputs do too, and when a
row is scaled, if a batch norm or the next layer undoes it. Neither costs a thief anything. Everything here is worked
out from the original and the leaked weights alone, never from anybody's chips, so that the significance of an
identification stays what it is (docs/spec.md, rule F-7).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tessera.protect.fingerprint.matching import Floats, assign, distances, thinned

NEAR: Final = 0.25
"""A tensor whose values are this near, in root mean squares of their rows, has its channels where they were."""
_GAIN: Final = 0.9
"""A change counts as one for the better when what remains is below this share."""
_BALANCE_ROUNDS: Final = 12
_SCALE_ROUNDS: Final = 4
_QUANTILES: Final = 32


@dataclass(frozen=True)
class Aligned:
    """A leaked tensor beside the original, both (outputs, rest)."""

    rows: Floats
    distance: float
    """Median difference of values, in root mean squares of their rows; about 0.01 for an untouched copy."""
    how: str
    """What was undone: `as it is`, `moved`, `rescaled` or `moved and rescaled`."""


def align(original: Floats, leaked: Floats, scales: Floats) -> Aligned:
    """Return `leaked` (outputs, inputs, rest) as near to `original` as channels and scales allow, never further off.

    All values are finite, and small enough for their squares to be.
    `scales` are the root mean squares of the original's rows, (outputs, 1).
    """
    shape = (len(original), -1)
    target = original.reshape(shape)

    def measured(values: Floats, how: str, freedom: int = 0) -> Aligned:
        rows = values.reshape(shape)
        spare = 1 - freedom / max(int(usable(target, rows).sum()), 1)
        seen = median_distance(target, rows, scales)
        return Aligned(rows, seen / math.sqrt(spare) if spare > 0 else math.inf, how)

    best = measured(leaked, "as it is")
    if best.distance == 0:
        return best
    tried: list[tuple[Floats, str]] = [(leaked, "")]
    if best.distance > NEAR:
        rows, columns = channel_order(original, leaked)
        if (rows != np.arange(len(rows))).any() or (columns != np.arange(len(columns))).any():
            tried.append((leaked[rows][:, columns], "moved"))
    for values, moved in tried:
        candidates = [measured(values, moved)] if moved else []
        for freedom, scaled in _rescaled(original, values, scales):
            candidates.append(measured(scaled, f"{moved} and rescaled" if moved else "rescaled", freedom))
        for candidate in candidates:
            if candidate.distance < _GAIN * best.distance:
                best = candidate
    return best


def median_distance(original: Floats, leaked: Floats, scales: Floats) -> float:
    """Return the median of the differences that say something, in root mean squares of rows; 1.0 if none does."""
    differences = np.abs(leaked - original) / np.where(scales > 0, scales, 1)
    told = differences[usable(original, leaked)]
    return float(np.median(told)) if told.size else 1.0


def usable(original: Floats, leaked: Floats) -> NDArray[np.bool_]:
    """Tell which values may say something: those that carry a chip and were not cut to zero."""
    found: NDArray[np.bool_] = (original != 0) & (leaked != 0)
    return found


def channel_order(original: Floats, leaked: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows and then the columns of `leaked` (outputs, inputs, rest) that stand for the original's.

    Rows are first paired by their sorted values, which do not tell in which order columns stand, then columns by all
    rows, and both once more by everything. Both tensors are balanced before, so that scales do not matter, and
    compared without signs.
    """
    ours, theirs = balanced(original), balanced(leaked)
    rows = assign(distances(_sorted_rows(ours), _sorted_rows(theirs)))
    columns = np.arange(ours.shape[1])
    for _ in range(2):
        columns = assign(distances(_by_column(ours), _by_column(theirs[rows])))
        rows = assign(distances(_by_row(ours), _by_row(theirs[:, columns])))
    return rows, columns


def balanced(values: Floats) -> Floats:
    """Return |values| (outputs, inputs, rest) scaled so that all rows, and all columns, have the same energy.

    This is the iteration of Sinkhorn and Knopp 1967 on the energies: its result does not depend on how rows and
    columns were scaled before, and channels that change places change places in it.
    """
    found = np.abs(values)
    energy = np.square(found).sum(2)
    rows, columns = np.ones(len(energy)), np.ones(energy.shape[1])
    for _ in range(_BALANCE_ROUNDS):
        rows = _inverse(energy @ columns / len(columns))
        columns = _inverse(rows @ energy / len(rows))
    result: Floats = found * np.sqrt(rows)[:, None, None] * np.sqrt(columns)[None, :, None]
    return result


def tensor_signature(values: Floats) -> Floats:
    """Return a vector that tells tensors of one shape apart whatever the order and scale of their channels."""
    found = balanced(values)
    ordered = np.sort(found.reshape(-1, found.shape[2]), axis=0).T
    return thinned(ordered, _QUANTILES).reshape(-1)


def _sorted_rows(values: Floats) -> Floats:
    return thinned(np.sort(values.transpose(0, 2, 1), axis=2), _QUANTILES).reshape(len(values), -1)


def _by_row(values: Floats) -> Floats:
    return values.reshape(len(values), -1)


def _by_column(values: Floats) -> Floats:
    return values.transpose(1, 0, 2).reshape(values.shape[1], -1)


def _rescaled(original: Floats, leaked: Floats, scales: Floats) -> Iterator[tuple[int, Floats]]:
    """Yield `leaked` with the scales of its rows divided out, then those of rows and columns, each with their number.

    Least squares, in which values far off count less: where weights were retrained or cut, the others decide.
    """
    scaled = _without_scales(original, leaked, scales, 0)
    yield len(original), scaled
    for _ in range(_SCALE_ROUNDS):
        scaled = _without_scales(original, scaled, scales, 1)
        scaled = _without_scales(original, scaled, scales, 0)
    yield len(original) + original.shape[1], scaled


def _without_scales(original: Floats, leaked: Floats, scales: Floats, axis: int) -> Floats:
    """Divide out one factor for each index of `axis`; an index without values keeps its own."""
    others = tuple(number for number in range(3) if number != axis)
    told = usable(original, leaked)
    factor = np.ones(original.shape[axis])
    weight: Floats = told.astype(np.float64)
    safe = np.where(told, leaked, 0.0)
    for _ in range(_SCALE_ROUNDS):
        factor = (weight * safe * original).sum(others) / np.maximum((weight * original**2).sum(others), 1e-300)
        factor = np.where(np.abs(factor) > 1e-12, factor, 1.0)
        spread = np.expand_dims(factor, others)
        rest = np.abs(safe / spread - original) / np.where(scales > 0, scales, 1)[:, :, None]
        middle = float(np.median(rest[told])) if told.any() else 0.0
        if middle == 0:
            break
        weight = np.where(told, np.minimum(1.0, 2 * middle / np.maximum(rest, 1e-300)), 0.0)
    result: Floats = leaked / np.expand_dims(factor, others)
    return result


def _inverse(values: Floats) -> Floats:
    found: Floats = np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
    return found
