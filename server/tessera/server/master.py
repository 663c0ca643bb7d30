"""Where the store's passphrase comes from: `file:PATH`, `env:NAME` or `fd:NUMBER`.

The setting names a place, never the passphrase, so it may stand in a file, a flag or a process list. An environment
variable is removed once read, so that no child inherits it.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

from tessera.keystore.errors import Denied, Malformed, NotFound
from tessera.keystore.secrets import Passphrase

MAX_PASSPHRASE_BYTES = 4096


def read_master(source: str, *, environment: MutableMapping[str, str] = os.environ) -> Passphrase:
    """Return the passphrase that `source` names, without a final line end.

    Raises `NotFound` when it is not there, `Denied` when others may read the file, `Malformed` when it is empty, too
    long or no such source. The text of `source` is not repeated, for the case that somebody put the passphrase itself
    there.
    """
    scheme, _, where = source.partition(":")
    match scheme:
        case "file":
            raw = _from_file(Path(where))
        case "env":
            raw = environment.pop(where, "").encode("utf-8", "surrogateescape")
            if not raw:
                raise NotFound("the environment variable that master names is not set")
        case "fd" if where.isascii() and where.isdigit():
            raw = _from_descriptor(int(where))
        case _:
            raise Malformed("master is file:PATH, env:NAME or fd:NUMBER")
    raw = raw.removesuffix(b"\n").removesuffix(b"\r")
    if not 0 < len(raw) <= MAX_PASSPHRASE_BYTES:
        raise Malformed(f"a passphrase has 1 to {MAX_PASSPHRASE_BYTES} bytes")
    return Passphrase(raw)


def _from_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise Denied("others may read the passphrase file", reason="key-file-exposed", remedy="chmod 600 it")
            return file.read(MAX_PASSPHRASE_BYTES + 3)
    except OSError:
        raise NotFound("the passphrase file cannot be read") from None


def _from_descriptor(number: int) -> bytes:
    try:
        with open(number, "rb") as file:
            return file.read(MAX_PASSPHRASE_BYTES + 3)
    except (OSError, OverflowError):
        raise NotFound("the passphrase cannot be read from that file descriptor") from None
