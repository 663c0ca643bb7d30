"""Small files are there whole or not at all, whatever happens while they are written."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera.keystore._files import PRIVATE_MODE, write_atomically
from tessera.keystore.errors import Conflict, Unavailable

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from tessera.keystore._files import write_atomically

def pieces():
    yield b"x" * 1_000_000
    os.kill(os.getpid(), signal.SIGKILL)

write_atomically(Path(sys.argv[1]), pieces(), mode=0o600, overwrite=sys.argv[2] == "overwrite")
"""


@pytest.mark.parametrize("how", ["overwrite", "new"])
def test_a_writer_that_is_killed_leaves_nothing_under_the_name(tmp_path: Path, how: str) -> None:
    """Half a key file would neither be read nor make way for a whole one."""
    target = tmp_path / "a.key"
    if how == "overwrite":
        target.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, target, how], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert (target.read_bytes() if target.exists() else None) == (b"old" if how == "overwrite" else None)
    write_atomically(target, b"whole", mode=PRIVATE_MODE, overwrite=how == "overwrite")
    assert target.read_bytes() == b"whole"


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    """What was written so far is removed."""

    def pieces() -> Iterator[bytes]:
        yield b"x" * 100_000
        raise OSError(errno.EIO, "gone")

    with pytest.raises(Unavailable):
        write_atomically(tmp_path / "a", pieces(), mode=PRIVATE_MODE, overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_what_exists_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Also where somebody was faster, and on file systems on which a file has one name only."""

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "not here")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    target = tmp_path / "a.key"

    def pieces() -> Iterator[bytes]:
        target.write_bytes(b"theirs")  # while ours is being written
        yield b"ours"

    with pytest.raises(Conflict):
        write_atomically(target, pieces(), mode=PRIVATE_MODE, overwrite=False)
    assert target.read_bytes() == b"theirs"
    with pytest.raises(Conflict):
        write_atomically(target, b"ours", mode=PRIVATE_MODE, overwrite=False)
    fresh = tmp_path / ("n" * 250)
    write_atomically(fresh, b"ours", mode=PRIVATE_MODE, overwrite=False)
    assert (fresh.read_bytes(), fresh.stat().st_mode & 0o777) == (b"ours", PRIVATE_MODE)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([target.name, fresh.name])
