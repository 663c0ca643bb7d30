"""The file system's part: what is opened, what is left behind, and what a disk's faults become."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.packages import (
    CONTENT_KEY,
    CREATED_AT_S,
    SmallPackage,
    Weights,
    a_draft,
    open_and_read,
    pattern,
    read_all,
    seeded_issuer,
    small_package,
)
from tessera.keystore.errors import ApiMisuse, Denied, Malformed, NotFound, Tampered, TesseraError, Unavailable
from tessera.keystore.package import inspect_package, open_package, write_package
from tessera.keystore.package.files import refuse_path
from tessera.keystore.secrets import ContentKey


@pytest.fixture
def package(tmp_path: Path) -> SmallPackage:
    """A package alone in its folder."""
    return small_package(tmp_path / "a.tessera")


@pytest.mark.parametrize("name", ["none", "none/none", "a.tessera/b", "x" * 300, "zero\0byte"])
def test_no_such_file(package: SmallPackage, name: str) -> None:
    """A path where no file is, or can be, is not found."""
    with pytest.raises(NotFound):
        open_package(package.path.parent / name, package.issuers)


def test_only_regular_files(package: SmallPackage) -> None:
    """Links (even to a good package), folders, pipes and devices are refused, and opening a pipe does not hang."""
    folder = package.path.parent
    (folder / "link").symlink_to(package.path)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    for path in (folder / "link", folder / "loop", folder / "pipe", folder, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(Tampered) as caught:
            open_package(path, package.issuers)
        assert caught.value.reason == "package-tampered"
        with pytest.raises(Tampered):
            inspect_package(path)


def test_an_empty_file(package: SmallPackage) -> None:
    """An empty file is no package."""
    package.rewrite(b"")
    with pytest.raises(Tampered):
        open_package(package.path, package.issuers)


def test_shortened_after_opening(tmp_path: Path) -> None:
    """A file that somebody truncates while it is open ends in `Tampered` and a zeroed buffer, not in a signal."""
    package = small_package(tmp_path / "a.tessera", weights=(Weights("t", "U8", (20_000,)),))
    with open_package(package.path, package.issuers) as sealed:
        unlocked = sealed.unlock(package.content_key)
        os.truncate(package.path, package.part_begin("w/t") + 10_000)
        out = bytearray(b"\x55" * 20_000)
        with pytest.raises(Tampered):
            unlocked.read_tensor_into("t", out)
        assert out == bytes(20_000)
        with pytest.raises(Tampered):
            sealed.verify_digests()


def test_replaced_after_opening(package: SmallPackage) -> None:
    """A package that is replaced while open stays the one that was opened."""
    with open_package(package.path, package.issuers) as sealed:
        small_package(package.path, weights=())
        sealed.verify_digests()
        assert read_all(sealed.unlock(package.content_key))["conv.bias"] == package.plain["conv.bias"]


def test_closed_package(package: SmallPackage) -> None:
    """Reading after the close is the caller's bug; closing twice is not."""
    with open_package(package.path, package.issuers) as sealed:
        unlocked = sealed.unlock(package.content_key)
    sealed.close()
    for read in (sealed.verify_digests, unlocked.read_program):
        with pytest.raises(ApiMisuse):
            read()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to count open files")
def test_refused_files_are_closed(package: SmallPackage) -> None:
    """Neither refusals nor forgotten packages leave a file open."""
    before = _descriptors()
    open_package(package.path, package.issuers)
    inspect_package(package.path)
    with pytest.raises(TesseraError):
        open_package(package.path, {})
    package.rewrite(package.raw[:-1])
    with pytest.raises(Tampered):
        open_package(package.path, package.issuers)
    with pytest.raises(Tampered):
        open_package(package.path.parent, package.issuers)
    assert _descriptors() == before


def test_written_file_is_alone_and_public(package: SmallPackage) -> None:
    """Writing leaves one file, readable by everyone and writable by its owner."""
    assert list(package.path.parent.iterdir()) == [package.path]
    assert stat.S_IMODE(package.path.stat().st_mode) == 0o644


def test_writing_replaces(package: SmallPackage) -> None:
    """A second writing to the same path replaces the file; to a link, it replaces the link and not its target."""
    link = package.path.parent / "link"
    link.symlink_to(package.path)
    before = package.raw
    again = small_package(link)
    assert not link.is_symlink()
    assert package.raw == before
    assert open_and_read(again) == open_and_read(package)


class Stop(Exception):
    """Something that goes wrong in the middle."""


def test_failed_writing_leaves_nothing_new(package: SmallPackage) -> None:
    """When sealing stops half way, the old file stays as it was and no hidden file remains."""
    before = package.raw

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise Stop

    with pytest.raises(Stop):
        small_package(package.path, progress=stop)
    assert package.raw == before
    assert list(package.path.parent.iterdir()) == [package.path]


def test_only_ciphertext_touches_the_disk(tmp_path: Path) -> None:
    """The hidden file holds no plaintext at any moment of the writing."""
    secret = pattern(2_000)
    seen = 0

    def look(done: int, total: int) -> None:
        nonlocal seen
        for path in tmp_path.iterdir():
            raw = path.read_bytes()
            seen += len(raw)
            assert not any(secret[begin : begin + 16] in raw for begin in range(0, len(secret) - 16, 16))
            assert CONTENT_KEY not in raw

    small_package(tmp_path / "a.tessera", weights=(Weights("t", "U8", (2_000,), secret),), progress=look)
    look(0, 0)
    assert seen > 2_000


def _write(path: Path, tensors: list[tuple[str, str, tuple[int, ...], bytes]], program: bytes = b"p") -> None:
    write_package(
        path,
        a_draft(),
        tensors=tensors,
        program=program,
        issuer=seeded_issuer(),
        content_key=ContentKey(CONTENT_KEY),
        created_at_s=CREATED_AT_S,
    )


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ([("t", "U8", (3,), b"abcd")], ApiMisuse),
        ([("t", "F32", (1,), b"abc")], ApiMisuse),
        ([("t", "U8", (1,), b"a"), ("t", "U8", (1,), b"a")], ApiMisuse),
        ([("t t", "U8", (1,), b"a")], Malformed),
        ([("", "U8", (1,), b"a")], Malformed),
        ([("t" * 256, "U8", (1,), b"a")], Malformed),
        ([("t", "FP32", (1,), b"abcd")], Malformed),
        ([("t", "U8", (-1,), b"")], Malformed),
        ([("t", "U8", (2**40, 2**40), b"")], Malformed),
        ([("t", "U8", ("1",), b"a")], ApiMisuse),
        ([("t", "U8", 1, b"a")], ApiMisuse),
        ([("t", "U8", (1,), "a")], ApiMisuse),
        ([(1, "U8", (1,), b"a")], Malformed),
        ([("t", None, (0,), b"")], Malformed),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, tensors: list[Any], error: type[TesseraError]) -> None:
    """Bytes that do not match shape and dtype, names twice, and what the format lacks are refused before writing."""
    with pytest.raises(error):
        _write(tmp_path / "a.tessera", tensors)
    assert list(tmp_path.iterdir()) == []


def test_a_program_is_needed(tmp_path: Path) -> None:
    """A package without a program is refused."""
    with pytest.raises(Malformed):
        _write(tmp_path / "a.tessera", [], program=b"")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that its owner may not write to."""
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    yield folder
    folder.chmod(0o700)


def test_targets_that_cannot_be(tmp_path: Path, read_only: Path) -> None:
    """A missing folder is not found; a folder in the target's place, or one without permission, is denied."""
    with pytest.raises(NotFound):
        _write(tmp_path / "none" / "a.tessera", [])
    (tmp_path / "folder").mkdir()
    with pytest.raises(Denied):
        _write(tmp_path / "folder", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "read-only"]
    if os.geteuid() != 0:  # nothing is denied to root
        with pytest.raises(Denied):
            _write(read_only / "a.tessera", [])


def test_every_fault_of_a_disk_is_typed() -> None:
    """Any `OSError` on the path becomes one of our errors."""
    for number in range(1, 134):
        with pytest.raises((NotFound, Tampered, Denied, Unavailable)):
            refuse_path("a.tessera", OSError(number, "x"))


def test_a_full_disk_is_unavailable() -> None:
    """No space left is our side's fault, to be tried again."""
    with pytest.raises(Unavailable):
        refuse_path("a.tessera", OSError(28, "No space left on device"))
