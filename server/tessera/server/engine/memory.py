"""Memory for weights: anonymous pages of the process's own, large ones where the system gives them.

Large tensors are unmapped when the last view of them goes, so that weights which were unloaded do not stay in an
allocator's free lists; small ones have the alignment that torch gives its own.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from tessera.keystore.package.buffers import LARGE_PAGE, fresh_bytes


def fresh(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return a contiguous tensor on the CPU with undefined content, in memory that nothing else uses."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_PAGE:
        return torch.empty(tuple(shape), dtype=dtype)
    pages = np.frombuffer(fresh_bytes(size), np.uint8)
    return torch.from_numpy(pages).view(dtype).view(tuple(shape))


def raw(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, in place."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
