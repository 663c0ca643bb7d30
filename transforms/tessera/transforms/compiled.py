"""Stacks run by the compiled extension, and whether there is one (docs/adr/0014).

`_kernel` is built when Tessera is installed where a C compiler is; without it running.py does the same with NumPy
alone, bit for bit.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tessera.transforms.passes import Bytes, Pass
from tessera.transforms.running import NumpyStack, kinds_of

try:
    from tessera.transforms import _kernel
except ImportError:  # not built, or not for this interpreter
    _kernel = None  # type: ignore[assignment]

Implementation = Literal["compiled", "numpy"]

IMPLEMENTATION: Final[Implementation] = "numpy" if _kernel is None else "compiled"
"""What transforms run with here: `compiled` where the extension was built, else `numpy`, slower with the same bits."""


MOST_TABLES: Final = 1 << 16
"""Most tables of one kernel: what `choice`, uint16, can name."""


class CompiledStack:
    """Runs the `passes` of one `unit` x `unit` tile over images of `shape` (C, H, W); see `NumpyStack`, which runs a
    pass that has more tables than a kernel takes, as tables for positions of images of many channels may.
    """

    __slots__ = ("images_last", "run")

    def __init__(self, passes: Sequence[Pass], unit: int, shape: tuple[int, int, int]) -> None:
        kernels = [_kernel_of(done, unit, shape) or NumpyStack((done,), unit, shape) for done in passes]
        self.run = _chained([kernel.run for kernel in kernels])
        self.images_last = _chained([kernel.images_last for kernel in kernels])


def _kernel_of(done: Pass, unit: int, shape: tuple[int, int, int]) -> "_kernel.Kernel | None":
    kinds, choice = np.unique(kinds_of(done), return_inverse=True)
    if len(kinds) > MOST_TABLES:
        return None
    return _kernel.Kernel(*shape, unit, done.index, _tables_of(done, kinds), choice.astype(np.uint16))


def _tables_of(done: Pass, kinds: NDArray[np.int64]) -> Bytes:
    """Return the table of each kind, (K, 256), with the inversions of the pass in it."""
    tables = done.tables[kinds // 4]
    turned = kinds & 2 != 0
    tables[turned] = tables[turned, ::-1]
    tables[kinds & 1 != 0] ^= 255
    return tables


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
