"""Which place of a shuffled block is which: two matrices of correlations laid over each other.

The quadratic assignment problem, by steepest exchange from many starts (2-opt; iterated local search after Lourenço,
Martin & Stützle 2003). Correlations of natural pictures fall with distance, which makes the slopes long; what traps a
climb is that a block turned, mirrored, or with its colours exchanged looks nearly the same, so those are tried at last.
"""

from collections.abc import Callable, Iterator
from itertools import permutations, product
from typing import Final

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Order = NDArray[np.int64]

Over = Callable[[], bool]

STARTS: Final = 2000
"""Climbs of a small block; of L places as many as take the same time, and at least `LEAST_STARTS`."""
LEAST_STARTS: Final = 20
_PLACES: Final = 48
"""What `STARTS` is meant for: a block of 4x4 in three colours."""
_FRESH: Final = 10
"""Every so many starts one is random; the others are the best so far with a part of its places exchanged."""
_LEAST_GAIN: Final = 1e-7
_MOST_COLOURS: Final = 4
"""Up to here all orders of the channels are tried."""


def _patient() -> bool:
    return False


def starts_for(places: int) -> int:
    """Return how many climbs a block of `places` values gets."""
    return max(LEAST_STARTS, round(STARTS * (_PLACES / places) ** 2)) if places > _PLACES else STARTS


def matched(
    known: Matrix,
    seen: Matrix,
    shape: tuple[int, int, int],
    draws: np.random.Generator,
    over: Over = _patient,
) -> tuple[list[Order], bool]:
    """Return orders p with `seen[i, j]` most like `known[p[i], p[j]]`, best first, and whether time ran out (`over`).

    Both are symmetric (L, L), L = C * M * M for a block of `shape` (C, M, M), and places are in that shape's order.
    Their diagonals are not looked at. The orders after the first are where the best one's turns lead: which of them is
    right, differences as small as a sample's chance decide. A climb takes O(L ** 2) for each exchange.
    """
    known, seen = (matrix - np.diag(np.diag(matrix)) for matrix in (known, seen))
    places, planned, done = len(known), starts_for(len(known)), 0
    best, best_fit = climbed(known, seen, draws.permutation(places), over)
    while done < planned and not over():
        start = draws.permutation(places) if done % _FRESH == 0 else _shaken(best, draws)
        order, fit = climbed(known, seen, start, over)
        if fit > best_fit:
            best, best_fit = order, fit
        done += 1
    found = {tuple(best.tolist()): best_fit}
    for turn in turns(shape):
        order, fit = climbed(known, seen, turn[best], over)
        found[tuple(order.tolist())] = fit
    return [np.array(order, dtype=np.int64) for order in sorted(found, key=lambda order: -found[order])], over()


def climbed(known: Matrix, seen: Matrix, start: Order, over: Over = _patient) -> tuple[Order, float]:
    """Exchange the two places that gain most until none gains; return the order and how well it fits.

    Diagonals are zero. When time runs out (`over`), it returns where it stands.
    """
    order = start.copy()
    laid = known[np.ix_(order, order)]
    met = laid @ seen
    while True:
        own = np.diag(met)
        gain = met + met.T - own[:, None] - own[None, :] + 2 * laid * seen
        first, second = divmod(int(gain.argmax()), len(order))
        if gain[first, second] <= _LEAST_GAIN or over():
            return order, float((laid * seen).sum())
        pair, swapped = [first, second], [second, first]
        before = laid[:, pair]
        order[pair] = order[swapped]
        laid[:, pair] = laid[:, swapped]
        laid[pair] = laid[swapped]
        met += (laid[:, pair] - before) @ seen[pair]  # all rows but the pair's own
        met[pair] = laid[pair] @ seen


def turns(shape: tuple[int, int, int]) -> Iterator[Order]:
    """Yield for each turn, mirroring and order of colours of a block the place that each place goes to."""
    places = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    colours = permutations(range(shape[0])) if shape[0] <= _MOST_COLOURS else [tuple(range(shape[0]))]
    for order, upside, mirror, swap in product(list(colours), *((False, True),) * 3):
        turned = places[list(order)]
        turned = turned[:, ::-1] if upside else turned
        turned = turned[:, :, ::-1] if mirror else turned
        yield (turned.transpose(0, 2, 1) if swap else turned).reshape(-1)


def _shaken(order: Order, draws: np.random.Generator) -> Order:
    shaken = order.copy()
    most = min(len(order), max(4, len(order) // 6))
    some = draws.choice(len(order), int(draws.integers(2, most + 1)), replace=False)
    shaken[some] = order[draws.permutation(some)]
    return shaken
