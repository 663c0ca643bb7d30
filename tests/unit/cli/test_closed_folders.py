"""A folder that may not be written is found before any work, and said to be that."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tessera.cli import loading
from tessera.keystore._files import write_atomically
from tessera.keystore.errors import Denied

NOBODY = 65_534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run the block as a user who owns nothing, where we are root, to whom nothing is closed."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that can be looked into and not written, beside nothing else of ours."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others already
        folder = Path(name)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o700)


@pytest.mark.parametrize(
    "check",
    [
        lambda folder: loading.new_file(folder / "a.licence"),
        lambda folder: loading.new_folder(folder / "bundle"),
        lambda folder: loading.new_folder(folder / "deep" / "bundle"),
        lambda folder: loading.possible_folder(folder),
        lambda folder: loading.replaceable_file(folder / "demo.json"),
    ],
    ids=["file", "folder", "folder below", "folder itself", "replaceable"],
)
def test_checks_before_work_see_a_closed_folder(check: Callable[[Path], None], closed: Path) -> None:
    """Hours of training must not end with "cannot be made a folder"."""
    with as_nobody(), pytest.raises(Denied) as caught:
        check(closed)
    assert str(closed) in caught.value.public
    assert "owner and permissions" in (caught.value.remedy or "")


def test_checks_before_work_pass_an_open_folder(closed: Path) -> None:
    """The same folder, opened."""
    closed.chmod(0o777)
    with as_nobody():
        loading.new_file(closed / "a.licence")
        loading.new_folder(closed / "deep" / "bundle")


def test_a_file_that_cannot_be_written_is_no_question_for_the_node_s_operator(closed: Path) -> None:
    """The remedy is about the folder: nobody who runs a node or issues licences can help."""
    with as_nobody(), pytest.raises(Denied) as caught:
        write_atomically(closed / "ada.key", b"", mode=0o600, overwrite=False)
    assert caught.value.remedy == "check the owner and permissions of its folder"
