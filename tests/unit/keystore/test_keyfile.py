"""Key files: permission bits, passphrases, and every way in which a file can be wrong (rules K-10 to K-12)."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.keys import BUYER, INPUT_KEY, OTHER_BUYER
from tessera.keystore import keyfile
from tessera.keystore.errors import (
    ApiMisuse,
    Conflict,
    Denied,
    Malformed,
    NotFound,
    Tampered,
    TesseraError,
    Unavailable,
    WrongKey,
)
from tessera.keystore.jws import b64u
from tessera.keystore.keyfile import KdfCost
from tessera.keystore.secrets import Passphrase, SecretBytes

CHEAP = KdfCost.danger_for_tests
SECRET = SecretBytes(b"canary-secret-of-a-key-file")
PASSPHRASE = Passphrase("pässword".encode())


def right() -> Passphrase:
    """Return the right passphrase, as a person would."""
    return PASSPHRASE


def never() -> Passphrase:
    """Fail: nobody should have been asked."""
    raise AssertionError("asked for a passphrase")


def write(path: Path, *, locked: bool, **options: Any) -> Path:
    """Write a key file of kind `input-key` with a public part."""
    passphrase = PASSPHRASE if locked else None
    keyfile.write_key_file(path, "input-key", {"note": "x"}, SECRET, passphrase=passphrase, cost=CHEAP, **options)
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON document at `path` in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("locked", [False, True])
def test_round_trip(tmp_path: Path, locked: bool) -> None:
    """What is written is read, with mode 0600, and a passphrase is asked for only when needed."""
    path = write(tmp_path / "a.key", locked=locked)
    found = keyfile.read_key_file(path, "input-key", right if locked else never)
    assert found.secret == SECRET
    assert found.public == {"note": "x"}
    assert path.stat().st_mode & 0o777 == 0o600
    assert "canary" not in repr(found)
    assert [p.name for p in tmp_path.iterdir()] == ["a.key"]


def test_a_locked_file_does_not_hold_the_secret(tmp_path: Path) -> None:
    """The plain bytes appear in an open file only."""
    assert b64u(SECRET.reveal()).encode() in write(tmp_path / "open", locked=False).read_bytes()
    assert b64u(SECRET.reveal())[:12].encode() not in write(tmp_path / "locked", locked=True).read_bytes()


def test_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    """With umask 0 the file is still 0600."""
    before = os.umask(0)
    try:
        path = write(tmp_path / "a.key", locked=False)
        write(path, locked=False, overwrite=True)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    """Without `overwrite` the old file stays, byte for byte; with it the new one replaces it."""
    path = write(tmp_path / "a.key", locked=False)
    old = path.read_bytes()
    with pytest.raises(Conflict):
        write(path, locked=True)
    assert path.read_bytes() == old
    write(path, locked=True, overwrite=True)
    assert keyfile.read_key_file(path, "input-key", right).secret == SECRET
    assert [p.name for p in tmp_path.iterdir()] == ["a.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o601, 0o644, 0o660])
def test_an_exposed_file_is_refused(tmp_path: Path, mode: int) -> None:
    """A file that others may touch is `key-file-exposed`, and the remedy is chmod 600."""
    path = write(tmp_path / "a.key", locked=True)
    path.chmod(mode)
    with pytest.raises(Denied) as caught:
        keyfile.read_key_file(path, "input-key", never)
    assert caught.value.reason == "key-file-exposed"
    assert "chmod 600" in caught.value.remedy


def test_wrong_and_absent_passphrase(tmp_path: Path) -> None:
    """Both are `wrong-passphrase`, and neither message holds the passphrase."""
    path = write(tmp_path / "a.key", locked=True)
    for source in (None, lambda: Passphrase(b"other")):
        with pytest.raises(WrongKey) as caught:
            keyfile.read_key_file(path, "input-key", source)
        assert caught.value.reason == "wrong-passphrase"
        assert "other" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(public={"note": "y"}),
        lambda d: d.update(public={}),
        lambda d: d.update(operations=2),
        lambda d: d.update(memory_bytes=16_384),
        lambda d: d.update(salt="A" * 22),
        lambda d: d.update(nonce="A" * 32),
        lambda d: d.update(secret="A" * 40),
    ],
)
def test_nothing_of_a_locked_file_can_be_changed(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Public part, cost, salt, nonce and ciphertext are authenticated under the passphrase."""
    path = write(tmp_path / "a.key", locked=True)
    edit(path, change)
    with pytest.raises(WrongKey):
        keyfile.read_key_file(path, "input-key", right)


def test_kind_of_a_locked_file_is_bound(tmp_path: Path) -> None:
    """A file renamed to another kind does not open as that kind."""
    path = write(tmp_path / "a.key", locked=True)
    edit(path, lambda d: d.update(kind="package-secrets"))
    with pytest.raises(WrongKey):
        keyfile.read_key_file(path, "package-secrets", right)


def test_another_kind_is_named(tmp_path: Path) -> None:
    """Reading a file as another kind says both kinds."""
    path = write(tmp_path / "a.key", locked=False)
    with pytest.raises(Malformed, match=r"input-key.*identity"):
        keyfile.read_key_file(path, "identity")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format="tessera-key-file/2"),
        lambda d: d.update(format=1),
        lambda d: d.update(kind=["input-key"]),
        lambda d: d.update(public=[]),
        lambda d: d.update(public=None),
        lambda d: d.update(protection="rot13"),
        lambda d: d.update(protection="none"),
        lambda d: d.update(protection=1),
        lambda d: d.update(secret="A="),
        lambda d: d.update(secret=1),
        lambda d: d.update(secret=""),
        lambda d: d.update(operations=0),
        lambda d: d.update(operations=17),
        lambda d: d.update(operations=True),
        lambda d: d.update(memory_bytes=1 << 40),
        lambda d: d.update(memory_bytes=1.5),
        lambda d: d.update(salt="AA"),
        lambda d: d.update(nonce="AA"),
        lambda d: d.update(extra=1),
        lambda d: d.pop("salt"),
        lambda d: d.pop("public"),
    ],
)
def test_other_documents_are_malformed(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Wrong types, costs beyond the limits, unknown and missing fields are `Malformed`."""
    path = write(tmp_path / "a.key", locked=True)
    edit(path, change)
    with pytest.raises(Malformed):
        keyfile.read_key_file(path, "input-key", right)


@pytest.mark.parametrize("size", [0, 4097, 4112])
def test_an_open_secret_has_the_size_that_a_writer_gives_it(tmp_path: Path, size: int) -> None:
    """1 to 4096 bytes; a locked file's tag is no room for more in an open one."""
    path = write(tmp_path / "a.key", locked=False)
    edit(path, lambda d: d.update(secret=b64u(bytes(size))))
    with pytest.raises(Malformed):
        keyfile.read_key_file(path, "input-key")


@pytest.mark.parametrize("name", ["n" * 300, "/", "", "a\0b"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_names_that_no_file_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, overwrite: bool
) -> None:
    """Too long, a folder, empty, with a zero byte: a typed error, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises((Conflict, Denied, Unavailable)):
        keyfile.save_identity(name, BUYER, overwrite=overwrite)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_file(tmp_path: Path) -> None:
    """Absent, a folder, a FIFO, too large, in no folder: each is typed, and none hangs."""
    with pytest.raises(NotFound):
        keyfile.read_key_file(tmp_path / "absent", "identity")
    with pytest.raises(Malformed):
        keyfile.read_key_file(tmp_path, "identity")
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(Malformed):
        keyfile.read_key_file(tmp_path / "fifo", "identity")
    (tmp_path / "large").write_bytes(b" " * (keyfile.MAX_FILE_BYTES + 1))
    (tmp_path / "large").chmod(0o600)
    with pytest.raises(Malformed):
        keyfile.read_key_file(tmp_path / "large", "identity")
    with pytest.raises(NotFound):
        write(tmp_path / "no" / "folder", locked=False)
    with pytest.raises(NotFound):
        keyfile.read_key_file(tmp_path / "large" / "x", "identity")


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", b'{"format":"tessera-key-file/1",']))
def test_random_files_are_malformed(tmp_path_factory: pytest.TempPathFactory, raw: bytes, head: bytes) -> None:
    """Random bytes are `Malformed`, and nobody is asked for a passphrase."""
    path = tmp_path_factory.getbasetemp() / "random.key"
    path.write_bytes(head + raw)
    path.chmod(0o600)
    with pytest.raises(Malformed):
        keyfile.read_key_file(path, "identity", never)


@pytest.mark.parametrize("locked", [False, True])
def test_identity_files(tmp_path: Path, locked: bool) -> None:
    """An identity comes back from its two files; the public one is 0644 and holds no secret."""
    path = tmp_path / "buyer"
    keyfile.save_identity(path, BUYER, PASSPHRASE if locked else None, cost=CHEAP)
    found = keyfile.load_identity(path, right if locked else never)
    assert found.public == BUYER.public == keyfile.load_public_identity(tmp_path / "buyer.pub")
    assert found.export_secret() == BUYER.export_secret()
    assert (tmp_path / "buyer.pub").stat().st_mode & 0o777 == 0o644
    assert b64u(BUYER.export_secret().reveal())[:20] not in (tmp_path / "buyer.pub").read_text()


def test_identity_files_are_not_overwritten_unasked(tmp_path: Path) -> None:
    """Either file is enough to refuse; nothing is written then."""
    (tmp_path / "buyer.pub").write_text("old")
    with pytest.raises(Conflict):
        keyfile.save_identity(tmp_path / "buyer", BUYER)
    assert not (tmp_path / "buyer").exists()
    keyfile.save_identity(tmp_path / "buyer", BUYER, overwrite=True)
    with pytest.raises(Conflict):
        keyfile.save_identity(tmp_path / "buyer", OTHER_BUYER)
    assert keyfile.load_identity(tmp_path / "buyer").key_id == BUYER.key_id


def test_an_open_identity_file_whose_parts_disagree(tmp_path: Path) -> None:
    """A public part that is not the secret's is `Tampered`; one of another form is `Malformed`."""
    keyfile.save_identity(tmp_path / "buyer", BUYER)
    edit(tmp_path / "buyer", lambda d: d["public"].update(key_id=OTHER_BUYER.key_id))
    with pytest.raises(Tampered):
        keyfile.load_identity(tmp_path / "buyer")
    for change in ({"role": "king"}, {"name": 5}, {"extra": 1}):
        keyfile.save_identity(tmp_path / "buyer", BUYER, overwrite=True)
        edit(tmp_path / "buyer", lambda d, change=change: d["public"].update(change))  # type: ignore[misc]
        with pytest.raises(Malformed):
            keyfile.load_identity(tmp_path / "buyer")


def test_input_key_files(tmp_path: Path) -> None:
    """An input key comes back; another id or length is refused."""
    path = tmp_path / "input.key"
    keyfile.save_input_key(path, INPUT_KEY)
    assert keyfile.load_input_key(path) == INPUT_KEY
    edit(path, lambda d: d["public"].update(input_key_id="0" * 32))
    with pytest.raises(Tampered):
        keyfile.load_input_key(path)
    edit(path, lambda d: d.update(secret="AAAA"))
    with pytest.raises(Malformed):
        keyfile.load_input_key(path)


def test_misuse_is_told(tmp_path: Path) -> None:
    """An unknown kind or an oversize secret is the caller's mistake."""
    for kind, secret in (("other", SECRET), ("identity", SecretBytes(bytes(4097))), ("identity", SecretBytes(b""))):
        with pytest.raises(ApiMisuse):
            keyfile.write_key_file(tmp_path / "x", kind, {}, secret)
    with pytest.raises(ApiMisuse):
        keyfile.write_key_file(tmp_path / "x", "identity", {"note": "x" * 20_000}, SECRET)
    assert not list(tmp_path.iterdir())


def test_costs_are_the_named_profiles() -> None:
    """The default costs libsodium's interactive profile: 2 passes over 64 MiB."""
    assert (KdfCost.interactive.operations, KdfCost.interactive.memory_bytes) == (2, 64 * 2**20)
    assert KdfCost.sensitive.memory_bytes == keyfile.MAX_MEMORY_BYTES
    with pytest.raises(TesseraError):
        keyfile.stretch(PASSPHRASE, salt=bytes(15), operations=1, memory_bytes=8192)
