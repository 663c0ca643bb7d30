"""Files of a store: private modes, and never half of one."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tessera.keystore.errors import Denied, Unavailable
from tessera.keystore.package.files import PackageFile

PRIVATE_DIRECTORY = 0o700
PRIVATE_FILE = 0o600
INCOMING = ".incoming-"
COPY_BYTES = 1 << 20


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn an `OSError` of the block into `Denied` (permissions) or `Unavailable`; the sentence names `what` only."""
    try:
        yield
    except PermissionError as error:
        raise Denied(f"{what} may not be written or read", remedy="check owner and permissions") from error
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno else "input/output error"
        raise Unavailable(f"{what} cannot be written or read: {cause.lower()}") from error


def make_private(path: Path) -> None:
    """Create directory `path` where it is missing, and take group and world their access to it."""
    with storage_errors("the key store's directory"):
        path.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
    close_to_others(path)


def close_to_others(path: Path) -> None:
    """Take group and world their access to `path`, if it exists. Raises `Denied` when it is not ours to do so."""
    with storage_errors("the key store's directory"):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:  # SQLite's -wal vanishes when another process closes the store
            return
    if not mode & 0o077:
        return
    try:
        path.chmod(mode & ~0o077)
    except OSError as error:
        remedy = f"as its owner: chmod go= {path.name}"
        raise Denied(
            "others have access to the key store and this process may not take it away", remedy=remedy
        ) from error


@contextlib.contextmanager
def temporary_in(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Give a new private file in `folder`, open for writing; it is removed at the end unless it was renamed."""
    temporary = folder / f"{INCOMING}{secrets.token_hex(8)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        with open(descriptor, "wb") as target:
            yield temporary, target
    finally:
        temporary.unlink(missing_ok=True)


def settle(target: BinaryIO) -> None:
    """Flush `target` to the disk itself."""
    target.flush()
    os.fsync(target.fileno())


def sync_directory(path: Path) -> None:
    """Make the names inside directory `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_package(source: Path, target: BinaryIO) -> int:
    """Copy the package file `source` into `target` and return its size in bytes. Raises what `PackageFile` raises."""
    file = PackageFile(source)
    try:
        begins = range(0, file.size, COPY_BYTES)
        target.writelines(file.read(begin, min(COPY_BYTES, file.size - begin)) for begin in begins)
    finally:
        file.close()
    return file.size


def remove_stale(folder: Path, *, before_s: float) -> None:
    """Remove what crashed copies left in `folder`, if it was last written before `before_s` (seconds since 1970)."""
    for path in folder.glob(f"{INCOMING}*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < before_s:
                path.unlink()
