"""Where data sets lie: a path that is given, or the folder that the environment variable TESSERA_DATA names."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tessera.keystore.errors import Malformed, NotFound, Unavailable

ENVIRONMENT: Final = "TESSERA_DATA"


def data_path(explicit: Path | None) -> Path:
    """Return `explicit`, else the folder that TESSERA_DATA names. Raises `NotFound` when there is neither."""
    if explicit is not None:
        return explicit
    found = os.environ.get(ENVIRONMENT, "")
    if not found:
        raise NotFound(
            "no folder with data sets is given",
            remedy=f"Give it with --data PATH, or set the environment variable {ENVIRONMENT}.",
        )
    return Path(found)


def dataset_folder(path: Path, name: str, holds: Callable[[Path], bool], layout: str) -> Path:
    """Return the first of `path` and `path / name` for which `holds` says that the data set lies there.

    `layout` says in a sentence what is expected. Raises `NotFound` when the folder is missing, `Malformed` when neither
    of the two holds the data set, `Unavailable` when the system refuses to look.
    """
    with looking_into(path):
        if not path.is_dir():
            raise NotFound(
                f"there is no folder {path}",
                remedy=f"Give the folder of {name} with --data PATH or the variable {ENVIRONMENT}. Expected: {layout}",
            )
        for folder in (path, path / name):
            if folder.is_dir() and holds(folder):
                return folder
    raise Malformed(f"{path} holds no {name} data set", remedy=f"Expected in it or in its folder {name}: {layout}")


@contextmanager
def looking_into(path: Path) -> Iterator[None]:
    """Make an `OSError` of the block an `Unavailable` that names `path`."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"{path} cannot be read ({error.strerror})", remedy="Check the path and its permissions."
        ) from error


def entries(folder: Path) -> list[Path]:
    """Return what lies in `folder`, by name. Raises `Unavailable` when it cannot be read."""
    with looking_into(folder):
        return sorted(folder.iterdir())


def first_file(folder: Path, names: Iterable[str]) -> Path | None:
    """Return the first of `names` that is a file of `folder`, or None."""
    return next((folder / name for name in names if (folder / name).is_file()), None)
