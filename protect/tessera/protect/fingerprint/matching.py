"""Pairing things that were put in another order: rows with rows, columns with columns, tensors with tensors.

An assignment need not be the best one of all: whoever leaks a copy moves channels about, and what was moved is far
nearer to itself than to anything else. What is paired wrongly adds noise to an identification, never a name.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_ROUNDS: Final = 64


def assign(costs: Floats) -> NDArray[np.int64]:
    """Return for each row of a square matrix of costs a column of its own, mutual favourites first.

    What is left after many rounds, as in a matrix of equal costs, is paired in order.
    """
    count = len(costs)
    found = np.full(count, -1, np.int64)
    rows, columns = np.arange(count), np.arange(count)
    for _ in range(_ROUNDS):
        if not len(rows):
            return found
        open_costs = costs[np.ix_(rows, columns)]
        best, wooer = open_costs.argmin(1), open_costs.argmin(0)
        mutual = wooer[best] == np.arange(len(rows))
        found[rows[mutual]] = columns[best[mutual]]
        columns = np.delete(columns, best[mutual])
        rows = rows[~mutual]
    found[rows] = columns
    return found


def distances(one: Floats, other: Floats) -> Floats:
    """Return the squared distances (n, m) between the vectors of two matrices (n, k) and (m, k)."""
    square = np.einsum("ij,ij->i", one, one)[:, None] + np.einsum("ij,ij->i", other, other)
    found: Floats = np.maximum(square - 2 * one @ other.T, 0)
    return found


def thinned(values: Floats, most: int) -> Floats:
    """Return the last axis in at most `most` places, each the mean of its neighbours."""
    length = values.shape[-1]
    if length <= most:
        return values
    begins = np.arange(most) * length // most
    widths = np.diff(np.append(begins, length))
    found: Floats = np.add.reduceat(values, begins, axis=-1) / widths
    return found
