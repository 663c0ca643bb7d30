"""Publishing: what is verified, what is copied, what is refused (rules S-19 to S-21)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import keys
from support.packages import SmallPackage, a_draft, small_package
from support.stores import make_store, trusted_package
from tessera.keystore.errors import Conflict, NotFound, Tampered, TesseraError, Unauthenticated, Unavailable
from tessera.keystore.package import open_package
from tessera.keystore.store import Store


@pytest.fixture
def package(store: Store, tmp_path: Path) -> SmallPackage:
    """A package whose issuer the store trusts."""
    return trusted_package(store, tmp_path / "digits.tessera")


def _models(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "models").iterdir())


def test_a_published_package_is_a_verified_private_copy(store: Store, directory: Path, package: SmallPackage) -> None:
    """The store lists it, keeps the same bytes under the package's id with mode 0600, and shows its manifest."""
    published = store.publish(package.path, now_s=keys.NOW_S + 0.9)
    package_id = package.manifest.package_id
    assert published.path == directory / "models" / f"{package_id}.tessera"
    assert published.path.read_bytes() == package.raw
    assert published.path.stat().st_mode & 0o777 == 0o600
    assert (published.package_id, published.model, published.version) == (package_id, "digits", 1)
    assert (published.size_bytes, published.published_at_s) == (len(package.raw), keys.NOW_S)
    assert published.manifest == package.manifest
    assert store.packages() == [published]
    assert store.package("digits", 1) == store.package("digits") == published


def test_publishing_works_while_sealed(store: Store, package: SmallPackage) -> None:
    """A package is ciphertext and its check needs no secret."""
    store.seal()
    assert store.publish(package.path, now_s=keys.NOW_S).model == "digits"


def test_publishing_again_changes_nothing_and_repairs_the_copy(
    store: Store, directory: Path, package: SmallPackage
) -> None:
    """The same package is accepted again, keeps its date, and a damaged copy is replaced by a good one."""
    first = store.publish(package.path, now_s=keys.NOW_S)
    first.path.write_bytes(b"rust")
    assert store.publish(package.path, now_s=keys.NOW_S + 60) == first
    assert first.path.read_bytes() == package.raw
    assert _models(directory) == [first.path.name]


def test_another_package_of_the_same_version_conflicts(
    store: Store, directory: Path, package: SmallPackage, tmp_path: Path
) -> None:
    """Model and version name one package; the second one is refused and leaves no file."""
    store.publish(package.path, now_s=keys.NOW_S)
    other = small_package(tmp_path / "other.tessera")
    with pytest.raises(Conflict):
        store.publish(other.path, now_s=keys.NOW_S)
    same_id = small_package(
        tmp_path / "same-id.tessera", draft=a_draft(version=2), package_id=package.manifest.package_id
    )
    with pytest.raises(Conflict):
        store.publish(same_id.path, now_s=keys.NOW_S)
    assert _models(directory) == [f"{package.manifest.package_id}.tessera"]
    assert store.package("digits").manifest == package.manifest


def test_version_0_means_the_newest(store: Store, package: SmallPackage, tmp_path: Path) -> None:
    """Versions are compared as numbers, and what is not there is `model-unknown`."""
    for version in (2, 10):
        newer = small_package(tmp_path / f"{version}.tessera", draft=a_draft(version=version))
        store.publish(newer.path, now_s=keys.NOW_S)
    store.publish(package.path, now_s=keys.NOW_S)
    assert store.package("digits").version == store.package("digits", 0).version == 10
    assert store.package("digits", 1).version == 1
    assert [published.version for published in store.packages()] == [1, 2, 10]
    for model, version in (("digits", 3), ("faces", 0)):
        with pytest.raises(NotFound) as caught:
            store.package(model, version)
        assert caught.value.reason == "model-unknown"


def test_an_issuer_nobody_trusts_is_refused(store: Store, directory: Path, tmp_path: Path) -> None:
    """A well-made package of an unknown issuer is `licence-issuer-unknown` and leaves no file."""
    stranger = small_package(tmp_path / "stranger.tessera")
    with pytest.raises(Unauthenticated) as caught:
        store.publish(stranger.path, now_s=keys.NOW_S)
    assert caught.value.reason == "licence-issuer-unknown"
    assert _models(directory) == []


@settings(max_examples=40, deadline=None)
@given(offset=st.integers(0, 10**6), mask=st.integers(1, 255))
def test_a_changed_byte_is_never_published(shared: tuple[Store, SmallPackage, Path], offset: int, mask: int) -> None:
    """Header, manifest or any sealed byte changed: refused, nothing listed, no file left."""
    store, package, damaged = shared
    raw = bytearray(package.raw)
    raw[offset % len(raw)] ^= mask
    damaged.write_bytes(raw)
    with pytest.raises((Tampered, Unauthenticated)):
        store.publish(damaged, now_s=keys.NOW_S)
    assert store.packages() == []
    assert _models(store.directory) == []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, SmallPackage, Path]]:
    """A store, a package it would accept, and a place for damaged copies."""
    folder = tmp_path_factory.mktemp("shared")
    with make_store(folder / "node") as store:
        yield store, trusted_package(store, folder / "good.tessera"), folder / "damaged.tessera"


def test_what_is_no_package_file(store: Store, directory: Path, tmp_path: Path) -> None:
    """A missing file, a folder, a pipe and a link are typed errors; a pipe does not hang."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("missing", ".", "pipe", "link"):
        with pytest.raises(TesseraError):
            store.publish(tmp_path / name, now_s=keys.NOW_S)
    assert _models(directory) == []


def test_the_copy_is_verified_and_not_the_source(store: Store, package: SmallPackage) -> None:
    """Whatever happens to the source after it was read, what the store serves is what it has verified."""
    published = store.publish(package.path, now_s=keys.NOW_S)
    package.rewrite(b"exchanged meanwhile")
    with open_package(published.path, store.issuers()) as sealed:
        sealed.verify_digests()


def test_copies_that_a_crash_left_are_removed_after_a_day(store: Store, directory: Path, package: SmallPackage) -> None:
    """A temporary file older than a day goes with the next publish; a younger one may be another process at work."""
    for name, age_s in ((".incoming-old", 90_000), (".incoming-young", 80_000)):
        left_over = directory / "models" / name
        left_over.write_bytes(b"half a package")
        os.utime(left_over, (keys.NOW_S - age_s, keys.NOW_S - age_s))
    store.publish(package.path, now_s=keys.NOW_S)
    assert _models(directory) == [".incoming-young", f"{package.manifest.package_id}.tessera"]


def test_nothing_is_published_when_the_folder_cannot_be_written(
    store: Store, directory: Path, package: SmallPackage
) -> None:
    """A models folder that is a file is `Unavailable`, and the package is not listed."""
    (directory / "models").rmdir()
    (directory / "models").write_bytes(b"")
    with pytest.raises(Unavailable):
        store.publish(package.path, now_s=keys.NOW_S)
    assert store.packages() == []
