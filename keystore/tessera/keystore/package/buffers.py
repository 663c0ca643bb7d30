"""Memory as plain bytes: other people's without a copy, and our own."""

import contextlib
import mmap
from typing import TYPE_CHECKING, Final

import numpy as np

from tessera.keystore.errors import ApiMisuse

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc.Buffer begins with Python 3.12

LARGE_PAGE: Final = 1 << 21
"""Bytes of a large page on the processors that servers have."""

_NUMBERS: Final = frozenset("?bBhHiIlLqQnNefdc")
"""Formats of the `struct` module that are numbers; an array of Python objects casts to bytes too, and must not."""

_ZEROS: Final = bytes(1 << 16)


def plain_bytes(buffer: "Buffer") -> memoryview:
    """Return the bytes of a C-contiguous buffer of numbers, in place. Raises `ApiMisuse` for anything else."""
    try:
        view = memoryview(buffer)
    except (TypeError, ValueError, BufferError) as error:
        raise ApiMisuse(f"{type(buffer).__name__} gives no access to its bytes") from error
    if not view.c_contiguous or view.format not in _NUMBERS:
        raise ApiMisuse("a tensor's memory is C-contiguous and holds numbers of the machine's own kind")
    if not view.nbytes:  # an empty axis cannot be cast
        return memoryview(b"" if view.readonly else bytearray())
    return view.cast("B")


def fresh_bytes(size: int, *, lasting: bool = True) -> memoryview:
    """Return `size` writable bytes of undefined content that nothing else uses, unmapped with the last view of them.

    Memory that is filled for the first time costs a page fault for each page, and with pages of 4 KiB that is more than
    decrypting costs; a bytearray is moreover filled with zeros under the interpreter's lock. From 2 MiB on, large pages
    are asked for where the system gives them, as many as are filled whole; memory that does not last may take one more,
    from 256 KiB on.
    """
    wanted = size if lasting or size < LARGE_PAGE // 8 else -(-size // LARGE_PAGE) * LARGE_PAGE
    if wanted < LARGE_PAGE:
        return memoryview(np.empty(size, np.uint8).data)
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory, the default, is slow to fill
    mapped = mmap.mmap(-1, wanted + LARGE_PAGE, flags=private)  # what is never touched takes no memory
    memory = np.frombuffer(mapped, np.uint8)
    begin = -memory.ctypes.data % LARGE_PAGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE, begin, wanted - wanted % LARGE_PAGE)
    return memoryview(memory[begin : begin + size].data)


def wipe(view: memoryview) -> None:
    """Set every byte of a writable view of bytes to zero."""
    for begin in range(0, len(view), len(_ZEROS)):
        piece = view[begin : begin + len(_ZEROS)]
        piece[:] = _ZEROS[: len(piece)]
