"""Where a passphrase comes from: a file, the environment, or a hidden prompt; never the command line."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from tessera.cli import kinds
from tessera.cli.reading import reading
from tessera.keystore.errors import Denied, Malformed, WrongKey
from tessera.keystore.secrets import Passphrase

ENVIRONMENT = "TESSERA_PASSPHRASE"
MAX_FILE_BYTES = 4096


def given(file: Path | None) -> Passphrase | None:
    """Return the passphrase of `file`, else of the environment, else None; nobody is asked. Raises as `passphrase`."""
    if file is not None:
        return _from_file(file)
    text = os.environ.get(ENVIRONMENT)
    return Passphrase(text.encode("utf-8", "surrogateescape")) if text else None


def passphrase(what: str, file: Path | None = None) -> Passphrase:
    """Return the passphrase for `what` (named in the prompt), from `file`, `$TESSERA_PASSPHRASE` or a hidden prompt.

    A file counts whole, without its final line end. Raises `NotFound` (no such file), `Denied` (others may read it),
    `Malformed` (empty or too long) and `WrongKey` (nobody to ask).
    """
    if (found := given(file)) is not None:
        return found
    return _ask(f"Passphrase for {what}: ", what)


def new_passphrase(what: str, file: Path | None = None) -> Passphrase:
    """As `passphrase`, for one that is being chosen: a prompt asks twice. Raises `Malformed` when the two differ."""
    if (found := given(file)) is not None:
        return found
    return _ask_twice(what)


def replacement(what: str, file: Path | None = None) -> Passphrase:
    """As `new_passphrase`, never from the environment: that holds the one being replaced."""
    return _from_file(file) if file is not None else _ask_twice(what)


def lazily(what: str, file: Path | None = None) -> Callable[[], Passphrase]:
    """Return a callable that fetches the passphrase only when a key file turns out to need one."""
    return lambda: passphrase(what, file)


def _from_file(file: Path) -> Passphrase:
    with reading(file, kinds.PASSPHRASE):
        with file.open("rb") as stream:
            exposed = os.fstat(stream.fileno()).st_mode & 0o077 and not _is_credential(file)
            raw = stream.read(MAX_FILE_BYTES + 3)
        if exposed:
            raise Denied(f"others may read {file}", reason="key-file-exposed", remedy=f"chmod 600 {file}")
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        if not 0 < len(raw) <= MAX_FILE_BYTES:
            raise Malformed(f"{file} does not hold 1 to {MAX_FILE_BYTES} bytes of passphrase")
        return Passphrase(raw)


def _is_credential(file: Path) -> bool:
    """Tell whether systemd keeps the file: it admits the service by an access list, which shows as a group's right."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return folder is not None and file.absolute().parent == Path(folder).absolute()


def _ask_twice(what: str) -> Passphrase:
    first = _ask(f"New passphrase for {what}: ", what)
    if first != _ask("Once more: ", what):
        raise Malformed("the two passphrases differ", remedy="try again")
    return first


def _ask(prompt: str, what: str) -> Passphrase:
    if not sys.stdin.isatty():
        raise WrongKey(
            f"no passphrase for {what}, and nobody to ask",
            reason="wrong-passphrase",
            remedy=f"give --passphrase-file FILE or set {ENVIRONMENT}",
        )
    import getpass

    text = getpass.getpass(prompt)
    if not text:
        raise Malformed("the passphrase is empty", remedy="type at least one character")
    return Passphrase(text.encode())
