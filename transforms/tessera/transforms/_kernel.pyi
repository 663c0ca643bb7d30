"""Passes of keyed transforms, compiled; the source is _kernel.c, and it may be missing (see compiled.py)."""

from typing import final

import numpy as np
from numpy.typing import NDArray

@final
class Kernel:
    """y[p] = tables[choice[p]][x[index[p]]] for the values of each `unit` x `unit` tile of an image.

    `index`, int64, or None for places that stay, and `choice`, uint16, have channels * unit * unit values in the order of
    (channel, row, column); `tables` is uint8 (K, 256), K from 1 to 65,536. All are contiguous, checked, and
    copied. Raises `ValueError` for everything that does not fit, `index` and `choice` out of range among it.
    """

    def __new__(
        cls,
        channels: int,
        height: int,
        width: int,
        unit: int,
        index: NDArray[np.int64] | None,
        tables: NDArray[np.uint8],
        choice: NDArray[np.uint16],
        /,
    ) -> Kernel: ...
    def run(self, x: object, /) -> NDArray[np.uint8] | None:
        """Return the pass of `x`, contiguous uint8 (C, H, W) or (N, C, H, W), as a new array; None for all else."""

    def images_last(self, x: object, /) -> NDArray[np.uint8] | None:
        """Return the pass of `x`, contiguous uint8 (C, H, W, N), as a new array; None for all else."""
