"""Other people's memory as plain bytes, without a copy."""

from typing import TYPE_CHECKING, Final

from tessera.keystore.errors import ApiMisuse

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc.Buffer begins with Python 3.12

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


def wipe(view: memoryview) -> None:
    """Set every byte of a writable view of bytes to zero."""
    for begin in range(0, len(view), len(_ZEROS)):
        piece = view[begin : begin + len(_ZEROS)]
        piece[:] = _ZEROS[: len(piece)]
