"""Stacks run by the compiled extension, and whether there is one (docs/adr/0014).

`_kernel` is built when Tessera is installed where a C compiler is; without it running.py does the same with NumPy
alone, bit for bit.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tessera.transforms.passes import Bytes, Pass
from tessera.transforms.running import kinds_of

try:
    from tessera.transforms import _kernel
except ImportError:  # not built, or not for this interpreter
    _kernel = None  # type: ignore[assignment]

Implementation = Literal["compiled", "numpy"]

IMPLEMENTATION: Final[Implementation] = "numpy" if _kernel is None else "compiled"
"""What transforms run with here: `compiled` where the extension was built, else `numpy`, slower with the same bits."""


class CompiledStack:
    """Runs the `passes` of one `unit` x `unit` tile over images of `shape` (C, H, W); see `NumpyStack`."""

    __slots__ = ("images_last", "run")

    def __init__(self, passes: Sequence[Pass], unit: int, shape: tuple[int, int, int]) -> None:
        kernels = [_kernel.Kernel(*shape, unit, done.index, *_tables_of(done)) for done in passes]
        self.run = _chained([kernel.run for kernel in kernels])
        self.images_last = _chained([kernel.images_last for kernel in kernels])


def _tables_of(done: Pass) -> tuple[Bytes, NDArray[np.uint16]]:
    """Return tables with the inversions of the pass in them, (K, 256), and which one each value takes."""
    kinds, choice = np.unique(kinds_of(done), return_inverse=True)
    tables = done.tables[kinds // 4]
    turned = kinds & 2 != 0
    tables[turned] = tables[turned, ::-1]
    tables[kinds & 1 != 0] ^= 255
    return tables, choice.astype(np.uint16)  # there are at most four kinds of each of MAX_TABLES


def _chained(runs: Sequence[Callable[[object], Bytes | None]]) -> Callable[[object], Bytes | None]:
    """Return what does one run after the other; None, when the first one refuses, goes through all of them."""
    if len(runs) == 1:
        return runs[0]

    def run(x: object) -> Bytes | None:
        found: Bytes | None = runs[0](x)
        for more in runs[1:]:
            found = more(found)
        return found

    return run
