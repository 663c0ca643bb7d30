"""Small files, read with a size cap and written so that a crash leaves the old file or the new one."""

import errno
import os
import secrets as _random
import stat
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path

from tessera.keystore.errors import Conflict, Denied, Malformed, NotFound, Unavailable

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""How file systems say that a file has one name only: FAT, some network and user-space ones."""


def read_limited(path: Path, *, max_bytes: int, private: bool = False) -> bytes:
    """Return the bytes of a regular file of at most `max_bytes`.

    `private` refuses a file that group or others may touch (`Denied`, reason `key-file-exposed`). Raises `NotFound`,
    `Denied`, `Malformed` (no regular file, or too large) or `Unavailable`; never an `OSError`.
    """
    with open_regular(path, private=private) as file:
        try:
            raw = file.read(min(max_bytes, os.fstat(file.fileno()).st_size) + 1)
        except OSError as error:
            raise _read_error(path, error) from error
    if len(raw) > max_bytes:
        raise Malformed(f"{path} is larger than {max_bytes} bytes")
    return raw


def open_regular(path: Path, *, private: bool = False) -> BufferedReader:
    """Open a regular file for reading; errors as `read_limited`. The caller closes it."""
    try:
        # O_NONBLOCK: opening a FIFO must not hang before fstat has seen that it is one.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise _read_error(path, error) from error
    try:
        _check_status(path, os.fstat(descriptor), private)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def write_atomically(path: Path, raw: bytes | Iterable[bytes], *, mode: int, overwrite: bool) -> None:
    """Write `raw`, in one piece or several, with permission bits `mode` and flush it to the disk.

    Whatever interrupts it, `path` then has nothing, the old file or all of the new one. Without `overwrite` a file that
    exists is left alone (`Conflict`). Raises `Denied`, `NotFound` (no such folder) or `Unavailable` when the disk
    refuses.
    """
    path = Path(path)
    try:
        if not overwrite and os.path.lexists(path):
            raise FileExistsError
        complete = path.with_name(f".{_random.token_hex(8)}.tmp")
        _create(complete, raw, mode)
        try:
            if overwrite:
                complete.replace(path)
            else:
                _name(complete, path)
        finally:
            complete.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except FileExistsError as error:
        raise Conflict(
            f"{path} exists already", remedy="choose another path, or say that it may be overwritten"
        ) from error
    except FileNotFoundError as error:
        raise NotFound(f"there is no folder {path.parent}") from error
    except PermissionError as error:
        raise Denied(f"{path} cannot be written", remedy="check the owner and permissions of its folder") from error
    except (OSError, ValueError) as error:
        raise Unavailable(f"{path} cannot be written") from error


def _check_status(path: Path, status: os.stat_result, private: bool) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Malformed(f"{path} is not a regular file")
    if private and status.st_mode & 0o077:
        raise Denied(
            f"{path} holds a secret and others may read or write it",
            reason="key-file-exposed",
            remedy=f"chmod 600 {path}",
        )


def _read_error(path: Path, error: Exception) -> Denied | NotFound | Unavailable:
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return NotFound(f"there is no file {path}")
        case PermissionError():
            return Denied(f"{path} cannot be read")
        case _:
            return Unavailable(f"{path} cannot be read")


def _create(path: Path, raw: bytes | Iterable[bytes], mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.writelines([raw] if isinstance(raw, bytes) else raw)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _name(complete: Path, path: Path) -> None:
    """Give a complete file the name `path`, which nothing has. Raises `FileExistsError` when something has it."""
    try:
        os.link(complete, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_MODE))  # keeps others away
        complete.replace(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
