"""Named arrays from an .npz file, size-capped and without pickles."""

import io
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tessera.keystore._files import read_limited
from tessera.keystore.errors import Malformed

MAX_BYTES: Final = 2**31
"""Most bytes of the file, and of all its arrays together once unpacked."""


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Return every array of the file by name.

    Raises `NotFound`, or `Malformed` for a file that is no .npz, is damaged, unpacks to more than `MAX_BYTES` or holds
    Python objects.
    """
    raw = read_limited(path, max_bytes=MAX_BYTES)
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            # The reader unpacks as much as an entry claims and checks its CRC, so these claims are the whole cost.
            claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > MAX_BYTES:
            raise Malformed(f"{path} unpacks to {claimed} bytes, more than {MAX_BYTES}")
        with np.load(io.BytesIO(raw), allow_pickle=False) as found:
            return {name: np.asarray(found[name]) for name in found.files}
    except Malformed:
        raise
    except Exception as error:  # zip, zlib and numpy each have their own ways to fail on damaged bytes
        raise Malformed(
            f"{path} is not a readable .npz file ({type(error).__name__})", remedy="Fetch or write the file again."
        ) from error


def take(arrays: dict[str, NDArray[Any]], name: str, path: Path) -> NDArray[Any]:
    """Return the array called `name` of what `read_npz` gave for `path`. Raises `Malformed` when there is none."""
    if name not in arrays:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise Malformed(f"{path} has no array {name}; it has {found}")
    return arrays[name]
