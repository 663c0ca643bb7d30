"""Memory for weights: anonymous pages of the process's own, large ones where the system gives them.

A tensor that is filled for the first time costs a page fault for each of its pages, and with pages of 4 KiB that is
more than decrypting costs. Tensors of a few MiB and more therefore ask for pages of 2 MiB; they are unmapped when the
last view of them goes, so that weights which were unloaded do not stay in an allocator's free lists.
"""

import contextlib
import math
import mmap
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

LARGE_PAGE: Final = 1 << 21
"""Bytes of a large page on the processors that servers have."""


def fresh(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return a contiguous tensor on the CPU with undefined content, in memory that nothing else uses."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_PAGE:
        return torch.empty(tuple(shape), dtype=dtype)
    pages = _large_pages(size)
    return torch.from_numpy(pages).view(dtype).view(tuple(shape))


def raw(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, in place."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)


def _large_pages(size: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    """Return `size` bytes that begin on a large page; whole large pages are asked for, what is left has small ones."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory, the default, is slow to fill
    mapped = mmap.mmap(-1, size + LARGE_PAGE, flags=private)  # what is never touched takes no memory
    memory = np.frombuffer(mapped, np.uint8)
    begin = -memory.ctypes.data % LARGE_PAGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE, begin, size - size % LARGE_PAGE)
    return memory[begin : begin + size]
