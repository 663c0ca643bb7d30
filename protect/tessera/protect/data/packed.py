"""Archives in memory: gzip and xz files with a cap on what they unpack to, and tar files. Nothing goes to disk."""

import gzip
import io
import lzma
import tarfile
import zlib
from pathlib import Path
from typing import Final

from tessera.keystore._files import read_limited
from tessera.keystore.errors import Malformed

MAX_BYTES: Final = 2**31
"""Most bytes of a file, and of what it unpacks to."""

_TAR_END: Final = bytes(1024)


def read_unpacked(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes of a file, unpacked when it is called `.gz` or `.xz`.

    Raises `NotFound`, or `Malformed` when it is damaged, cut short or unpacks to more than `max_bytes`.
    """
    raw = read_limited(path, max_bytes=max_bytes)
    try:
        with _opened(path.suffix, raw) as file:
            found = file.read(max_bytes + 1)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise Malformed(
            f"{path} is damaged or cut short ({error or type(error).__name__})", remedy="Fetch the file again."
        ) from error
    if len(found) > max_bytes:
        raise Malformed(f"{path} unpacks to more than {max_bytes} bytes")
    return found


def read_tar(path: Path) -> dict[str, bytes]:
    """Return the regular files of a plain tar archive by name, in its order; links and devices are passed over.

    Raises `NotFound`, or `Malformed` when it is no tar archive, is cut short or names a file twice.
    """
    raw = read_limited(path, max_bytes=MAX_BYTES)
    found: dict[str, bytes] = {}
    if not raw.endswith(_TAR_END):  # tarfile itself takes a header that is cut short for the end
        raise Malformed(f"{path} is not a whole tar archive", remedy="Fetch the file again.")
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:", errorlevel=2) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isreg() and not member.issparse() else None
                if file is None:
                    continue
                if member.name in found:
                    raise Malformed(f"{path} names {member.name} twice")
                found[member.name] = file.read()
    except Malformed:
        raise
    except Exception as error:  # a damaged header fails in any way
        raise Malformed(
            f"{path} is not a whole tar archive ({error or type(error).__name__})", remedy="Fetch the file again."
        ) from error
    return found


def _opened(suffix: str, raw: bytes) -> io.BufferedIOBase:
    file = io.BytesIO(raw)
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=file)
    return lzma.LZMAFile(file) if suffix == ".xz" else file
