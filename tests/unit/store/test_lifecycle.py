"""Creating, opening, closing; what the files look like; what is not a store (rules S-1 to S-6)."""

import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st

from support import keys
from support.stores import CHEAP, PASSPHRASE, damaged_copy, licensed, make_store, trusted_package
from tessera.keystore import revocation
from tessera.keystore.errors import Conflict, Malformed, NotFound, Tampered, TesseraError, Unavailable
from tessera.keystore.identity import PublicIdentity
from tessera.keystore.store import Store
from tessera.keystore.store.schema import METADATA
from tessera.keystore.store.upgrade import REVISIONS


def _modes(directory: Path) -> dict[str, int]:
    paths = [directory, *directory.rglob("*")]
    return {str(path.relative_to(directory)): stat.S_IMODE(path.stat().st_mode) for path in paths}


def test_a_new_store_has_its_files_with_their_modes(store: Store, directory: Path) -> None:
    """Directories are 0700, the database with its -wal and -shm and the server's key 0600, public files 0644."""
    store.append_usage([keys.draft()])
    assert _modes(directory) == {
        ".": 0o700,
        "keystore.lock": 0o600,
        "keystore.db": 0o600,
        "keystore.db-wal": 0o600,
        "keystore.db-shm": 0o600,
        "models": 0o700,
        "node.pub": 0o644,
        "ca.pem": 0o644,
        "tls": 0o700,
        "tls/server.key": 0o600,
        "tls/server.pem": 0o644,
    }


def test_open_closes_what_others_could_read(directory: Path) -> None:
    """A directory and database that were opened to others are private again after `open`."""
    make_store(directory).close()
    directory.chmod(0o755)
    (directory / "keystore.db").chmod(0o644)
    Store.open(directory).close()
    assert _modes(directory)["."] == 0o700
    assert _modes(directory)["keystore.db"] == 0o600


def test_the_database_is_durable_and_leaves_no_log_behind(store: Store, directory: Path) -> None:
    """WAL, synchronous=FULL, foreign keys, secure_delete on each connection; closing folds the log into the file."""
    for session in (store._database.reading, store._database.writing):
        with session() as connection:
            pragmas = ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
            found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in pragmas]
            assert found == ["wal", 2, 1, 1]
    store.close()
    assert sorted(path.name for path in directory.glob("keystore.db*")) == ["keystore.db"]


def test_create_refuses_a_directory_that_has_a_store(store: Store, directory: Path) -> None:
    """The second `create` is `already-initialised` and changes nothing."""
    before = store.node
    with pytest.raises(Conflict) as caught:
        make_store(directory, name="another")
    assert caught.value.reason == "already-initialised"
    with Store.open(directory) as again:
        assert again.node == before


def test_two_creators_make_one_store(directory: Path) -> None:
    """Of several `create` at once exactly one succeeds, and its files belong together."""
    made: list[Store] = []
    refused: list[str] = []

    def create(name: str) -> None:
        try:
            made.append(make_store(directory, name=name))
        except Conflict as error:
            refused.append(error.reason)

    threads = [threading.Thread(target=create, args=(f"node {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (store,) = made
    assert refused == ["already-initialised"] * 3
    assert PublicIdentity.from_json((directory / "node.pub").read_bytes()) == store.node
    store.renew_server_certificate(now_s=keys.NOW_S)
    store.close()


def test_an_unfinished_store_is_made_anew(directory: Path) -> None:
    """What a crash in the middle of `create` left behind neither opens nor stands in the way."""
    directory.mkdir()
    (directory / "keystore.db.new").write_bytes(b"half")
    (directory / "keystore.db.new-wal").write_bytes(b"of it")
    with pytest.raises(NotFound):
        Store.open(directory)
    make_store(directory).close()
    assert not list(directory.glob("*.new*"))


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 65])
def test_a_bad_name_leaves_nothing_behind(directory: Path, name: str) -> None:
    """A node name outside the rules is refused before anything is written."""
    with pytest.raises(Malformed):
        make_store(directory, name=name)
    assert not directory.exists()


def test_open_says_that_there_is_no_store(tmp_path: Path) -> None:
    """A missing or empty directory is `not-initialised` and stays as it is."""
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NotFound) as caught:
            Store.open(place)
        assert caught.value.reason == "not-initialised"
    assert list(tmp_path.iterdir()) == []


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _noise(path: Path) -> None:
    path.write_bytes(b"no database at all, " * 500)


def _foreign(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE meta (key TEXT)")
    connection.commit()
    connection.close()


def _cut(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


@pytest.mark.parametrize("spoil", [_empty, _noise, _foreign, _cut])
def test_something_else_in_place_of_the_database(directory: Path, spoil: Callable[[Path], None]) -> None:
    """An empty file, noise, another application's database and half a store are `Malformed` or `Tampered`."""
    make_store(directory).close()
    spoil(directory / "keystore.db")
    with pytest.raises((Malformed, Tampered)):
        Store.open(directory)


def _set_version(directory: Path, version: str) -> None:
    connection = sqlite3.connect(directory / "keystore.db")
    connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    connection.commit()
    connection.close()


def test_a_store_of_a_newer_release_is_refused_by_name(directory: Path) -> None:
    """A schema version that this release does not know is `store-newer`, whatever the tables look like."""
    make_store(directory).close()
    _set_version(directory, "9999")
    with pytest.raises(Conflict) as caught:
        Store.open(directory)
    assert caught.value.reason == "store-newer"
    assert caught.value.remedy


def test_migrations_lead_to_the_declared_tables(store: Store) -> None:
    """Running every migration gives exactly the tables, columns and indexes that `schema.py` declares."""
    with store._database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_the_list_of_schema_versions_is_complete() -> None:
    """`REVISIONS` names every migration module in the package, in order."""
    from tessera.keystore.store import migrations

    folder = Path(str(migrations.__file__)).with_name("versions")
    assert tuple(sorted(path.name[1:5] for path in folder.glob("v*.py"))) == REVISIONS


def test_a_missing_database_is_never_replaced(store: Store, directory: Path) -> None:
    """After the file is deleted reads and writes are `Unavailable`, and no empty database appears in its place."""
    store.append_usage([keys.draft()])
    (directory / "keystore.db").unlink()
    with pytest.raises(Unavailable):
        store.packages()
    with pytest.raises(Unavailable):
        store.trust_issuer(keys.ISSUER.public)
    assert not (directory / "keystore.db").exists()


def _read_everything(store: Store) -> None:
    reads: list[Callable[[], object]] = [
        store.issuers,
        store.packages,
        lambda: store.package("digits"),
        store.licences,
        store.revoked,
        store.usage_records,
        store.usage_totals,
        store.ledger_head,
        store.clock_mark_us,
        lambda: store.find_usage("lic-1", "req-1"),
        lambda: store.samples_used("lic-1", 0),
        lambda: store.unseal(PASSPHRASE),
        store.terms,
        store.node_identity,
        lambda: store.append_usage([keys.draft(1), keys.draft(99)]),
        store.rewrap,
        lambda: store.renew_server_certificate(now_s=keys.NOW_S),
    ]
    for read in reads:
        try:
            read()
        except TesseraError:
            continue


@pytest.fixture(scope="module")
def full_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store with something in every table."""
    folder = tmp_path_factory.mktemp("full")
    with make_store(folder / "node") as store:
        package = trusted_package(store, folder / "digits.tessera")
        store.publish(package.path, now_s=keys.NOW_S)
        store.trust_issuer(keys.ISSUER.public)
        store.install_licence(*licensed(store), now_s=keys.NOW_S)
        revoked = {"lic-2": (keys.NOW_S, "refunded")}
        store.apply_revocations(revocation.issue(1, revoked, issuer=keys.ISSUER, now_s=keys.NOW_S))
        store.set_issuer_identity(keys.ISSUER)
        store.append_usage([keys.draft(number) for number in range(1, 9)])
        store.note_time(keys.NOW_S * 1_000_000 + 10**9)
    return folder / "node"


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(offset=st.integers(0, 10**6), mask=st.integers(1, 255))
def test_damage_anywhere_is_a_typed_error(
    full_store: Path, tmp_path_factory: pytest.TempPathFactory, offset: int, mask: int
) -> None:
    """With any byte of keystore.db changed, every operation works or raises one of our errors."""
    folder = tmp_path_factory.mktemp("damaged")
    try:
        with Store.open(damaged_copy(full_store, folder / "node", offset=offset, mask=mask)) as store:
            _read_everything(store)
    except TesseraError:
        pass
    finally:
        shutil.rmtree(folder)


def test_a_value_of_the_wrong_type_is_noticed(full_store: Path, tmp_path: Path) -> None:
    """SQLite would store a number in place of a document; reading it is `Tampered`, and no gigabyte is allocated."""
    copy = tmp_path / "node"
    shutil.copytree(full_store, copy)
    connection = sqlite3.connect(copy / "keystore.db")
    connection.execute("UPDATE packages SET manifest = 1000000000")
    connection.execute("UPDATE licences SET token = x'00'")
    connection.commit()
    connection.close()
    with Store.open(copy) as store:
        with pytest.raises(Tampered):
            store.packages()
        with pytest.raises(Tampered):
            store.licences()


def test_create_and_open_take_a_relative_path_with_odd_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Percent signs, question marks and spaces in the path are part of the path."""
    monkeypatch.chdir(tmp_path)
    place = "a %41 b?mode=memory#c"
    Store.create(place, master=PASSPHRASE, node_name="n", now_s=keys.NOW_S, cost=CHEAP).close()
    assert (tmp_path / place / "keystore.db").stat().st_size > 0
    with Store.open(place) as store:
        store.append_usage([keys.draft()])
