"""CIFAR's python batches, read without running what a pickle may ask for.

A batch is a pickled dictionary with an array of pixels. Plain `pickle.load` would call whatever function the file
names. Here the four names that such a file needs stand for inert objects of ours, which only remember the bytes of the
array; any other name is refused.
"""

import io
import math
import pickle
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.keystore._files import read_limited
from tessera.keystore.errors import Malformed

MAX_BYTES: Final = 2**28


def read_batch(path: Path, *, values: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return pixels uint8 (N, values) and labels int64 (N,) of one batch file, N >= 1.

    Raises `NotFound`, or `Malformed` for a file that is no such pickle or names anything but arrays of bytes.
    """
    raw = read_limited(path, max_bytes=MAX_BYTES)
    try:
        found = _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # a damaged pickle fails in any way
        raise Malformed(
            f"{path} is not a CIFAR python batch ({error or type(error).__name__})",
            remedy="Fetch the file again from its official source.",
        ) from error
    fields = {_text(name): value for name, value in found.items()} if isinstance(found, dict) else {}
    pixels, labels = fields.get("data"), fields.get("labels")
    if not isinstance(pixels, _Bytes) or pixels.value is None or not isinstance(labels, list) or not labels:
        raise Malformed(f"{path} has no pictures with labels", remedy="CIFAR's batches have the keys data and labels.")
    if pixels.value.shape != (len(labels), values) or not all(type(label) is int for label in labels):
        raise Malformed(f"{path} has {len(labels)} labels and pixels of the shape {pixels.value.shape}")
    if not all(0 <= label < values for label in labels):
        raise Malformed(f"{path} has labels from {min(labels)} to {max(labels)}")
    return pixels.value, np.array(labels, dtype=np.int64)


def _text(name: object) -> str:
    return name.decode("latin-1") if isinstance(name, bytes) else str(name)


class _Bytes:
    """Stands for an array; holds it once the pickle has given a state of plain bytes in C order."""

    def __init__(self) -> None:
        self.value: NDArray[np.uint8] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        if not isinstance(kind, _Kind) or kind.name not in ("u1", "uint8") or fortran or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array that is not of bytes in C order")
        if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) != len(raw):
            raise pickle.UnpicklingError("an array whose shape does not fit its bytes")
        self.value = np.frombuffer(raw, dtype=np.uint8).reshape(shape).copy()


class _Kind:
    """Stands for a dtype; remembers its name and ignores its state, as bytes have no byte order."""

    def __init__(self, name: object) -> None:
        self.name = _text(name)

    def __setstate__(self, state: object) -> None:
        pass


class _ArraysOnly(pickle.Unpickler):
    """Gives inert objects for the names of an array of bytes, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a fresh stand-in, so that one file's tricks with it are gone with the file."""
        match module, name:
            case ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct"):
                return lambda *_: _Bytes()
            case ("numpy", "ndarray"):
                return object()
            case ("numpy", "dtype"):
                return lambda name, *_: _Kind(name)
            case ("_codecs", "encode"):  # how Python 3 writes bytes in protocol 2
                return lambda text, _: str(text).encode("latin-1")
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
