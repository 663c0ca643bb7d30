"""Sealed and unsealed; envelopes, terms, rewrapping and the change of the master key (rules S-7 to S-13)."""

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import keys
from support.stores import CHEAP, PASSPHRASE, make_store
from tessera.keystore.errors import (
    ApiMisuse,
    Conflict,
    Malformed,
    NotFound,
    SealedError,
    Tampered,
    TesseraError,
    WrongKey,
)
from tessera.keystore.secrets import MasterKey, Passphrase, SecretBytes
from tessera.keystore.store import Store, TermInfo
from tessera.keystore.store.envelope import TermKey, associated, unwrap, wrap
from tessera.keystore.store.keyring import Keyring, Lock

CANARY = b"canary-secret-0123456789"
KEY = TermKey(bytes(range(32)))

SECRET_METHODS: dict[str, Callable[[Store], object]] = {
    "node_identity": lambda store: store.node_identity(),
    "issuer_identity": lambda store: store.issuer_identity(),
    "set_issuer_identity": lambda store: store.set_issuer_identity(keys.ISSUER),
    "package_secrets": lambda store: store.package_secrets(keys.PACKAGE_ID),
    "put_package_secrets": lambda store: store.put_package_secrets(keys.SECRETS),
    "put_secret": lambda store: store.put_secret("kind", "name", SecretBytes(b"x")),
    "secret": lambda store: store.secret("kind", "name"),
    "has_secret": lambda store: store.has_secret("kind", "name"),
    "secret_names": lambda store: store.secret_names("kind"),
    "rotate_term": lambda store: store.rotate_term(),
    "rewrap": lambda store: store.rewrap(),
    "terms": lambda store: store.terms(),
    "change_master": lambda store: store.change_master(Passphrase(b"new"), cost=CHEAP),
    "renew_server_certificate": lambda store: store.renew_server_certificate(now_s=keys.NOW_S),
}
PUBLIC_METHODS = {
    "create", "open", "close", "sealed", "unseal", "seal", "trust_issuer", "issuers", "issuer_names", "publish",
    "server_certificate", "packages", "package", "install_licence", "installed", "licences", "apply_revocations",
    "revocation_list",
    "revoked", "append_usage", "find_usage", "usage_records", "ledger_head", "samples_used", "usage_totals",
    "clock_mark_us", "note_time",
}  # fmt: skip


@pytest.mark.parametrize("method", SECRET_METHODS)
def test_every_secret_method_is_refused_while_sealed(store: Store, method: str) -> None:
    """Each method on secrets works unsealed or says why not, and is a `SealedError` once sealed."""
    try:
        SECRET_METHODS[method](store)
    except NotFound:
        assert method == "secret"
    store.seal()
    with pytest.raises(SealedError) as caught:
        SECRET_METHODS[method](store)
    assert caught.value.reason == "store-sealed"


def test_no_method_escapes_the_table() -> None:
    """Every public method of `Store` is declared either secret or public here."""
    methods = {name for name in vars(Store) if not name.startswith("_")}
    assert methods == SECRET_METHODS.keys() | PUBLIC_METHODS


def test_a_sealed_store_still_counts_and_shows_what_is_public(store: Store) -> None:
    """While sealed the node's identity, packages, issuers and the ledger can be used."""
    store.seal()
    assert store.sealed
    assert store.node.role == "node"
    store.trust_issuer(keys.ISSUER.public)
    assert list(store.issuers()) == [keys.ISSUER.key_id]
    assert store.append_usage([keys.draft()])[0].fresh
    assert store.packages() == []
    assert store.licences() == []


def test_unseal_takes_the_right_passphrase_only(store: Store) -> None:
    """A wrong passphrase is `WrongKey` ("wrong-passphrase") and leaves the store as it was."""
    store.seal()
    with pytest.raises(WrongKey) as caught:
        store.unseal(Passphrase(b"guess"))
    assert caught.value.reason == "wrong-passphrase"
    assert store.sealed
    store.unseal(PASSPHRASE)
    assert store.node_identity().public == store.node
    with pytest.raises(WrongKey):
        store.unseal(Passphrase(b"guess"))
    assert not store.sealed


def test_a_raw_master_key_opens_its_store(directory: Path) -> None:
    """A store made with a master key opens with that key; another key, and a passphrase, are `WrongKey`."""
    master = MasterKey(bytes(range(32)))
    with make_store(directory, master=master) as store:
        store.seal()
        with pytest.raises(WrongKey) as caught:
            store.unseal(MasterKey(bytes(32)))
        assert caught.value.reason == "wrong-key"
        with pytest.raises(WrongKey):
            store.unseal(Passphrase(master.reveal()))
        store.unseal(master)
        assert not store.sealed


def test_secrets_survive_and_can_be_replaced(store: Store, directory: Path) -> None:
    """What was put is there after reopening; the second value of a name takes the first one's place."""
    store.put_secret("kind", "name", SecretBytes(b"first"))
    store.put_secret("kind", "name", SecretBytes(CANARY))
    store.put_secret("kind", "a name", SecretBytes(b""))
    store.close()
    with Store.open(directory) as again:
        again.unseal(PASSPHRASE)
        assert again.secret("kind", "name") == SecretBytes(CANARY)
        assert again.secret("kind", "a name") == SecretBytes(b"")
        assert again.secret_names("kind") == ["a name", "name"]
        assert again.has_secret("kind", "name")
        assert not again.has_secret("kind", "other")
        with pytest.raises(NotFound):
            again.secret("other", "name")


@pytest.mark.parametrize(("kind", "name"), [("", "n"), ("Kind", "n"), ("a b", "n"), ("kind", ""), ("kind", "x" * 257)])
def test_labels_outside_the_rules_are_misuse(store: Store, kind: str, name: str) -> None:
    """Kind and name are part of what an envelope is bound to, so their form is fixed."""
    with pytest.raises(ApiMisuse):
        store.put_secret(kind, name, SecretBytes(b"x"))


def test_nothing_secret_reaches_the_disk_in_the_clear(store: Store, directory: Path) -> None:
    """Neither secrets nor the passphrase nor private keys are found in any file but the server's key."""
    store.put_secret("kind", "name", SecretBytes(CANARY))
    store.rotate_term()
    store.rewrap()
    canaries = [CANARY, PASSPHRASE.reveal(), store.node_identity().export_secret().reveal()]
    canaries += [store.secret("tls-ca", "main").reveal(), b"PRIVATE KEY"]
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "server.key"]
    assert not [(path, canary) for path in files for canary in canaries if canary in path.read_bytes()]


def test_nothing_secret_is_printed(store: Store) -> None:
    """Neither the store nor the parts that hold keys show them."""
    shown = repr(store) + repr(store._barrier) + repr(store._barrier._state)
    assert CANARY.decode() not in shown
    assert "<KeyringKey of 32 bytes>" in shown
    assert "<TermKey of 32 bytes>" in shown


def test_a_new_term_wraps_what_comes_after_and_old_terms_stay_readable(store: Store) -> None:
    """Rotation changes no stored secret; rewrapping moves all to the newest term and forgets the others."""
    store.put_secret("kind", "old", SecretBytes(b"old"))
    assert store.rotate_term() == 2
    store.put_secret("kind", "new", SecretBytes(b"new"))
    assert store.terms() == [TermInfo(1, False, 3), TermInfo(2, True, 1)]
    assert store.secret("kind", "old") == SecretBytes(b"old")
    assert store.rewrap() == 3
    assert store.terms() == [TermInfo(2, True, 4)]
    assert store.secret("kind", "old") == SecretBytes(b"old")
    assert store.rewrap() == 0
    assert store.rotate_term() == 3


def test_change_master_rewraps_the_keyring_only(store: Store, directory: Path) -> None:
    """The new passphrase opens, the old one does not, and no envelope of a secret has changed."""
    store.put_secret("kind", "name", SecretBytes(CANARY))
    before = _envelopes(directory)
    store.change_master(Passphrase(b"new"), cost=CHEAP)
    assert _envelopes(directory) == before
    assert store.secret("kind", "name") == SecretBytes(CANARY)
    store.seal()
    with pytest.raises(WrongKey):
        store.unseal(PASSPHRASE)
    store.unseal(Passphrase(b"new"))
    assert store.secret("kind", "name") == SecretBytes(CANARY)
    store.change_master(MasterKey(bytes(32)))
    store.seal()
    store.unseal(MasterKey(bytes(32)))


def test_a_term_begun_elsewhere_is_used_at_once(store: Store, directory: Path) -> None:
    """Another process's new term is readable here without unsealing again, and new secrets are wrapped in it."""
    with Store.open(directory) as other:
        other.unseal(PASSPHRASE)
        other.rotate_term()
        other.put_secret("kind", "name", SecretBytes(b"theirs"))
        other.rewrap()
        assert store.secret("kind", "name") == SecretBytes(b"theirs")
        store.put_secret("kind", "name", SecretBytes(b"ours"))
        assert store.terms() == other.terms() == [TermInfo(2, True, 3)]
        assert other.secret("kind", "name") == SecretBytes(b"ours")


def test_a_master_key_changed_elsewhere_seals(store: Store, directory: Path) -> None:
    """A process that holds the old master key is sealed at its next operation, until it is given the new one."""
    with Store.open(directory) as other:
        other.unseal(PASSPHRASE)
        other.change_master(Passphrase(b"new"), cost=CHEAP)
    with pytest.raises(SealedError):
        store.node_identity()
    assert store.sealed
    store.unseal(Passphrase(b"new"))
    assert store.node_identity().public == store.node


def test_the_old_master_key_does_not_open_what_came_after_it(store: Store, directory: Path) -> None:
    """With the old keyring put back beside the new lock, or the other way round, nothing opens."""
    old = _meta(directory, "keyring")
    store.change_master(Passphrase(b"new"), cost=CHEAP)
    store.close()
    _set_meta(directory, "keyring", old)
    with Store.open(directory) as again:
        with pytest.raises(Tampered):
            again.unseal(Passphrase(b"new"))
        with pytest.raises(WrongKey):
            again.unseal(PASSPHRASE)


def test_a_secret_moved_to_another_name_is_refused(store: Store, directory: Path) -> None:
    """An envelope opens under its own kind and name only."""
    store.put_secret("kind", "mine", SecretBytes(b"mine"))
    store.put_secret("kind", "yours", SecretBytes(b"yours"))
    with sqlite3.connect(directory / "keystore.db") as connection:
        connection.execute(
            "UPDATE secrets SET envelope = (SELECT envelope FROM secrets WHERE name = 'mine') WHERE name = 'yours'"
        )
    connection.close()
    with pytest.raises(Tampered):
        store.secret("kind", "yours")
    assert store.secret("kind", "mine") == SecretBytes(b"mine")


def test_a_secret_moved_to_another_node_is_refused(store: Store, directory: Path, tmp_path: Path) -> None:
    """A keyring of another node with the same passphrase does not open here: it is bound to the node's id."""
    make_store(tmp_path / "other").close()
    for key in ("lock", "keyring"):
        _set_meta(directory, key, _meta(tmp_path / "other", key))
    store.seal()
    with pytest.raises(Tampered):
        store.unseal(PASSPHRASE)


def test_the_issuer_key_is_kept_and_trusted(store: Store) -> None:
    """A node that signs licences itself trusts its issuer key and keeps one such key only."""
    assert store.issuer_identity() is None
    store.set_issuer_identity(keys.ISSUER)
    store.set_issuer_identity(keys.ISSUER)
    kept = store.issuer_identity()
    assert kept is not None
    assert kept.public == keys.ISSUER.public
    assert store.issuers() == keys.ISSUERS
    with pytest.raises(Conflict):
        store.set_issuer_identity(keys.OTHER_ISSUER)
    with pytest.raises(Malformed):
        store.set_issuer_identity(keys.BUYER)


def test_package_secrets_are_kept_by_package(store: Store) -> None:
    """Package secrets come back whole; None for a package that has none."""
    assert store.package_secrets(keys.PACKAGE_ID) is None
    store.put_package_secrets(keys.SECRETS)
    kept = store.package_secrets(keys.PACKAGE_ID)
    assert kept is not None
    assert kept.to_secret() == keys.SECRETS.to_secret()


@settings(max_examples=100, deadline=None)
@given(secret=st.binary(max_size=200), term=st.integers(0, 2**32 - 1), name=st.text(max_size=20))
def test_envelopes_round_trip(secret: bytes, term: int, name: str) -> None:
    """`unwrap(wrap(x)) == x`, and two envelopes of one secret differ."""
    bound_to = associated("tessera/v1/test", name=name) if name.isprintable() else b""
    first, second = (wrap(KEY, term, SecretBytes(secret), bound_to) for _ in range(2))
    assert unwrap(KEY, first, bound_to) == SecretBytes(secret)
    assert first != second


@settings(max_examples=150, deadline=None)
@given(at=st.integers(5, 60), mask=st.integers(1, 255), cut=st.integers(0, 61))
def test_a_changed_envelope_does_not_open(at: int, mask: int, cut: int) -> None:
    """Any byte changed, any length cut, another key or another binding: `Tampered`."""
    whole = wrap(KEY, 1, SecretBytes(bytes(16)), b"bound")
    changed = bytearray(whole)
    changed[at] ^= mask
    for damaged in (bytes(changed), whole[:cut][: len(whole) - 1]):
        with pytest.raises(Tampered):
            unwrap(KEY, damaged, b"bound")
    for key, bound_to in ((TermKey(bytes(32)), b"bound"), (KEY, b"other")):
        with pytest.raises(Tampered):
            unwrap(key, whole, bound_to)


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=120) | st.builds(lambda body: b"\x01" + body, st.binary(max_size=108)))
def test_locks_and_keyrings_are_parsed_strictly(raw: bytes) -> None:
    """Random bytes are `Malformed`, or a lock or keyring that writes the same bytes again."""
    with contextlib.suppress(Malformed):
        assert Lock.from_json(raw).to_json() == raw
    with contextlib.suppress(Malformed):
        assert Keyring.from_secret(SecretBytes(raw)).to_secret().reveal() == raw


@settings(max_examples=100, deadline=None)
@given(
    at=st.integers(0, 400),
    byte=st.integers(0, 255),
)
def test_a_changed_lock_is_malformed_or_does_not_open(at: int, byte: int) -> None:
    """A lock with a byte changed is refused with a typed error or keeps `master` out, unless nothing has changed."""
    lock, _ = Lock.make(PASSPHRASE, CHEAP)
    raw = bytearray(lock.to_json())
    at %= len(raw)
    if raw[at : at + 1] == bytes([byte]) or raw[at : at + 1].isdigit():
        return  # digits are costs, salt or check: the first are bounded, the rest of their alphabet is drawn too
    raw[at] = byte
    try:
        changed = Lock.from_json(bytes(raw))
        changed.open(PASSPHRASE)
    except TesseraError:
        return
    raise AssertionError("a changed lock has opened")


@pytest.mark.parametrize(
    "changes", [{"operations": 0}, {"operations": 10**6}, {"memory_bytes": 1 << 40}, {"memory_bytes": "8192"}]
)
def test_a_lock_may_not_ask_for_any_cost(changes: dict[str, object]) -> None:
    """A changed cost cannot make unsealing take hours or all memory."""
    from tessera.keystore import canonical

    lock, _ = Lock.make(PASSPHRASE, CHEAP)
    fields = canonical.loads(lock.to_json(), max_bytes=1024) | changes
    with pytest.raises(Malformed):
        Lock.from_json(canonical.dumps(fields))


FROZEN_LOCK = (
    b'{"check":"ypIzzYmujtuLf_gfDUTWdu6GuRBXodo2o9nkK3QXbxk","format":"tessera-store-lock/1","kind":"passphrase",'
    b'"memory_bytes":8192,"operations":1,"salt":"AAECAwQFBgcICQoLDA0ODw"}'
)
FROZEN_KEYRING = bytes.fromhex(
    "0100000000000102030405060708090a0b0c0d0e0f10111213141516173659e053540af45ff2b45557478c7d2a15fefef1015ac18d6efb"
    "12d4a3515f09eab40921835503cbab53d98ba67de5ed9f9dc41d7beb7f076c2eb310202a10e334a66eb4be1e2045394df41d2e2f8fa70a"
    "51b483c0ff85d343"
)
FROZEN_SECRET = bytes.fromhex(
    "0100000002000102030405060708090a0b0c0d0e0f1011121314151617ffb67b1ef3b9adcf476442afbc3c77a91654d9234567cec6a363"
    "097b9c27"
)


def test_what_an_earlier_release_wrote_opens() -> None:
    """Lock, keyring and envelope of version 1, written down as bytes, open with the passphrase (rules S-7 to S-12)."""
    node = "N" * 43
    wrapping = Lock.from_json(FROZEN_LOCK).open(PASSPHRASE)
    bound_to = associated("tessera/v1/store/keyring", lock=FROZEN_LOCK.decode(), node=node)
    ring = Keyring.from_secret(unwrap(wrapping, FROZEN_KEYRING, bound_to))
    assert (sorted(ring.keys), ring.newest) == ([1, 2], 2)
    bound_to = associated("tessera/v1/store/secret", kind="kind", name="name", node=node)
    assert unwrap(ring.key(2), FROZEN_SECRET, bound_to) == SecretBytes(b"attack at dawn")


def _query(directory: Path, statement: str, values: tuple[object, ...] = ()) -> list[tuple[bytes, ...]]:
    connection = sqlite3.connect(directory / "keystore.db")
    try:
        rows: list[tuple[bytes, ...]] = connection.execute(statement, values).fetchall()
        connection.commit()
    finally:
        connection.close()
    return rows


def _envelopes(directory: Path) -> list[tuple[bytes, ...]]:
    return _query(directory, "SELECT kind, name, envelope FROM secrets ORDER BY 1, 2")


def _meta(directory: Path, key: str) -> bytes:
    return _query(directory, "SELECT value FROM meta WHERE key = ?", (key,))[0][0]


def _set_meta(directory: Path, key: str, value: bytes) -> None:
    _query(directory, "UPDATE meta SET value = ? WHERE key = ?", (value, key))
