"""Errors that say which file, and what to do: the context in which commands read what they were given.

    with reading(path, kinds.LICENCE):
        held = read_licence_file(path)      # "ada.key is the key file of an identity, not a licence file"

What a room says of the bytes (`a compact JWS has three parts`) is kept as a detail and never stands alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tessera.cli.kinds import Kind, recognised
from tessera.keystore.errors import Denied, Malformed, NotFound, Tampered, TesseraError, Unavailable, WrongKey


@contextmanager
def reading(path: Path, kind: Kind) -> Iterator[Path]:
    """Give `path` to the block; every `TesseraError` and `OSError` that leaves it names the file and a remedy.

    Raises `NotFound` when there is nothing at `path`, `Malformed` for a folder in place of a file or the other way
    round. The class and the reason of an error raised inside stay as they are.
    """
    _check_place(path, kind)
    with explaining(path, kind):
        yield path


@contextmanager
def explaining(path: Path, kind: Kind) -> Iterator[None]:
    """As `reading`, for a path that need not exist yet."""
    try:
        yield
    except TesseraError as error:
        _explain(error, path, kind)
        raise
    except PermissionError:
        raise _denied(path) from None
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror}", remedy=_REMEDIES[Unavailable]) from None


@contextmanager
def argument(
    option: str, remedy: str = "", *, only: tuple[type[TesseraError], ...] = (Malformed, NotFound)
) -> Iterator[None]:
    """Name the option in the errors of the kinds `only` that leave the block, with `remedy` where they have none."""
    try:
        yield
    except only as error:
        _retell(error, f"{option}: {error.public}", error.remedy or remedy or "see --help")
        raise


def _check_place(path: Path, kind: Kind) -> None:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise NotFound(
            f"there is no {_bare(kind)} at {path}", reason=kind.absent, remedy=f"check the path; {kind.remedy}"
        ) from None
    except PermissionError:
        raise _denied(path) from None
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}", remedy="check the path") from None
    if path.is_dir() != kind.folder:
        is_what = recognised(path) or "a file"
        raise Malformed(f"{path} is {is_what}, not {kind.name}", remedy=kind.remedy)


def _explain(error: TesseraError, path: Path, kind: Kind) -> None:
    """Put the file's name into the error, and what the file is when it is another kind than was wanted."""
    if hasattr(error, _EXPLAINED):  # by a context within this one, which knew the file better
        return
    remedy = error.remedy
    if isinstance(error, Malformed | Tampered) and not _fits(what := recognised(path), kind):
        public = f"{path} is {what}, not {kind.name}" if what else f"{path} is not {kind.name}: {error.public}"
        remedy = kind.remedy
    elif str(path) in error.public:
        public = error.public
    elif isinstance(error, Malformed):
        public = f"{path} is damaged or not {kind.name} of this version: {error.public}"
    else:
        public = f"{path}: {error.public}"
    _retell(error, public, remedy or _REMEDIES.get(type(error), kind.remedy))


def _fits(what: str | None, kind: Kind) -> bool:
    """Tell whether a file that looks like `what` can be meant for `kind`, so that only its content is at fault."""
    return what == kind.name or what in kind.looks


_REMEDIES: dict[type[TesseraError], str] = {
    WrongKey: "give the passphrase or key that belongs to this file",
    Denied: "check the file's owner and permissions",
    NotFound: "check the path",
    Unavailable: "check owner and permissions, and that the disk is there and has room; then run it again",
}


def _denied(path: Path) -> Denied:
    return Denied(f"{path} may not be read by you", remedy="check the owner and permissions of the file and its folder")


_EXPLAINED = "explained_to_the_user"


def _retell(error: TesseraError, public: str, remedy: str) -> None:
    setattr(error, _EXPLAINED, True)
    error.args = (public, *error.args[1:])
    error.public, error.remedy = public, remedy


def _bare(kind: Kind) -> str:
    return kind.name.removeprefix("an ").removeprefix("a ").removeprefix("the ")
