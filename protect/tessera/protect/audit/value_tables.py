"""Reading an `ffx` step off a first layer that looks values up in learned tables, as a `ValueStem` does.

Such a table gives every value of a place a number, and a network needs these in the order of the brightness that they
stand for. In a place that is not replaced they rise or fall with the value itself; in a replaced one their ranks are
the keyed table. No picture is needed.
"""

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tessera.protect.audit.guesses import Guess
from tessera.protect.audit.histograms import ReadOff
from tessera.protect.audit.programs import first_weights
from tessera.protect.audit.substitution import guess_of
from tessera.transforms import Step, block_positions


def first_tables(model: nn.Module, places: int) -> NDArray[np.float64] | None:
    """Return the tables of the first layer, float64 (places, 256), or None if it has none for each of `places`."""
    weights = first_weights(model)
    if not weights or tuple(weights[0].shape) != (places, 256):
        return None
    return weights[0].detach().cpu().double().numpy()


def tables_read(step: Step, shape: tuple[int, int, int], tables: NDArray[np.float64]) -> Guess:
    """Return the guess of `step` for a block of `shape` (C, M, M); `tables` (L, 256) are in that shape's order.

    Half of the places are replaced, as the spec says: those whose numbers follow the value itself least. The direction
    is that of the others.
    """
    own = tables[block_positions(*shape, step.block)[0]]
    levels = np.arange(256)
    centred = own - own.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).sum(axis=1) * ((levels - levels.mean()) ** 2).sum())
    follows = centred @ (levels - levels.mean()) / np.maximum(spread, 1e-12)
    chosen = np.zeros(len(own), dtype=np.bool_)
    chosen[np.argsort(np.abs(follows), kind="stable")[: len(own) // 2]] = True
    rising = own * np.sign(np.median(follows[~chosen]) or 1.0)
    if not step.positions:
        rising[chosen] = rising[chosen].mean(axis=0)
    plain = np.broadcast_to(levels, own.shape).copy()
    plain[chosen] = rising[chosen].argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return guess_of(step, ReadOff(chosen, plain.astype(np.uint8), np.repeat(chosen[:, None], 256, axis=1)))
