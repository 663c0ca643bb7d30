"""The package file on disk: opened without following links, read by position; every failure is a typed error."""

import errno
import os
import stat
import weakref
from typing import NoReturn

from tessera.keystore.errors import ApiMisuse, Denied, NotFound, Tampered, Unavailable


class PackageFile:
    """A regular file opened for reading; `size` is its length in bytes when it was opened.

    Raises `NotFound`, `Denied` (permissions), `Tampered` (a symbolic link, folder or device), `Unavailable` (the disk
    fails).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor = _open(path)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise Tampered(f"{path} is a folder, a pipe or a device, not a package", reason="package-tampered")

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        self._close()

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset`. Raises as `read_into`."""
        out = bytearray(size)
        self.read_into(memoryview(out), offset)
        return bytes(out)

    def read_into(self, out: memoryview, offset: int) -> None:
        """Fill `out` (bytes) from `offset`. Raises `Tampered` at an early end, `Unavailable` when the disk fails."""
        done = 0
        while done < len(out):
            count = self._read_some(out[done:], offset + done)
            if not count:
                raise Tampered("the package has become shorter since it was opened", reason="package-tampered")
            done += count

    def _read_some(self, out: memoryview, offset: int) -> int:
        if not self._close.alive:
            raise ApiMisuse("the package is closed")
        try:
            return os.preadv(self._descriptor, [out], offset)
        except OSError as error:
            raise Unavailable("the package cannot be read from its disk now") from error


def _open(path: str | os.PathLike[str]) -> int:
    try:
        # O_NONBLOCK: a pipe in place of the file must not make the open wait for its writer.
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        refuse_path(path, error)
    except ValueError as error:  # a zero byte in the path
        raise NotFound("a path with a zero byte names no file") from error


def refuse_path(path: str | os.PathLike[str], error: OSError) -> NoReturn:
    """Raise the typed error for an `OSError` on a package's path."""
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}:
        raise NotFound(f"there is no file or folder {path}", remedy="check the path") from error
    if error.errno in {errno.ELOOP, errno.EMLINK}:
        raise Tampered(
            f"{path} is a symbolic link, not a package",
            reason="package-tampered",
            remedy="name the file that the link points to",
        ) from error
    if error.errno in {errno.EACCES, errno.EPERM, errno.EISDIR, errno.EROFS}:
        raise Denied(f"the file system does not allow {path}", remedy="check owner and permissions") from error
    raise Unavailable(f"the disk refuses {path} now", remedy="check free space and the disk") from error
