"""What happens to the ledger when the disk is full, the file is gone, another process writes, or the power fails."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from support import keys
from support.stores import full_disk, make_store
from tessera.keystore.errors import ApiMisuse, Tampered, Unavailable
from tessera.keystore.store import Store
from tessera.keystore.store.database import Database
from tessera.keystore.usage import verify_chain

TESTS = Path(__file__).resolve().parents[2]

WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from support import keys
from tessera.keystore.store import Store
store = Store.open(sys.argv[2])
name, batches, size = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
print("ready", flush=True)
for batch in range(batches):
    drafts = [keys.draft(n, request_id=f"{name}-{batch}-{n}") for n in range(1, size + 1)]
    for result in store.append_usage(drafts):
        sys.stdout.write(f"{result.record.sequence} {result.record.digest}\\n")
    sys.stdout.flush()
store.close()
"""


def _writer(directory: Path, name: str, *, batches: int, size: int) -> "subprocess.Popen[str]":
    arguments = [str(TESTS), str(directory), name, str(batches), str(size)]
    return subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True)


def _acknowledged(output: str) -> list[tuple[int, str]]:
    """The records whose line is whole: the last one may be cut by the kill."""
    whole = output[: output.rfind("\n") + 1].splitlines()
    return [(int(line.split()[0]), line.split()[1]) for line in whole if line != "ready"]


def _refused(store: Store, number: int) -> None:
    with pytest.raises(Unavailable) as caught:
        store.append_usage([keys.draft(number)])
    assert caught.value.reason == "ledger-unavailable"


def test_a_full_disk_refuses_and_the_retry_counts_once(store: Store) -> None:
    """A write that fails is `ledger-unavailable` and charges nothing; the same id afterwards is charged once."""
    store.append_usage([keys.draft(1)])
    with full_disk(store):
        for _ in range(3):
            with pytest.raises(Unavailable) as caught:
                store.append_usage([keys.draft(number) for number in range(2, 302)])
            assert caught.value.reason == "ledger-unavailable"
        assert store.ledger_head()[0] == 1
        assert store.samples_used("lic-1", 0) == 1
    assert all(result.fresh for result in store.append_usage([keys.draft(number) for number in range(2, 302)]))
    assert not store.append_usage([keys.draft(2)])[0].fresh
    assert verify_chain(store.usage_records(), node_id=store.node.key_id, checkpoint=None).records == 301


@pytest.mark.slow
def test_a_write_that_the_system_refuses(directory: Path) -> None:
    """With a real limit on the size of files the append fails as `ledger-unavailable`, and works when it is lifted."""
    make_store(directory).close()
    script = (
        "import resource, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from support import keys\n"
        "from tessera.keystore.errors import Unavailable\n"
        "from tessera.keystore.store import Store\n"
        "with Store.open(sys.argv[2]) as store:\n"
        "    assert store.append_usage([keys.draft(1)])[0].fresh\n"
        "    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))\n"
        "    drafts = [keys.draft(n) for n in range(2, 402)]\n"
        "    try:\n"
        "        store.append_usage(drafts)\n"
        "    except Unavailable as error:\n"
        "        print(error.reason, store.ledger_head()[0])\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))\n"
        "    print(sum(result.fresh for result in store.append_usage(drafts)))\n"
    )
    command = [sys.executable, "-c", script, str(TESTS), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ledger-unavailable", "1", "400"]


@pytest.mark.parametrize("name", ["keystore.db", "keystore.db-wal"])
def test_a_deleted_file_is_never_written_silently(store: Store, directory: Path, name: str) -> None:
    """Whether the database or its log is deleted under the process: refused from then on, nothing acknowledged."""
    store.append_usage([keys.draft(1)])
    (directory / name).unlink()
    _refused(store, 2)
    _refused(store, 2)


def test_a_replaced_database_is_noticed(store: Store, directory: Path, tmp_path: Path) -> None:
    """A backup moved over the open database is not what the process has open; it refuses until it is started again."""
    make_store(tmp_path / "other").close()
    store.append_usage([keys.draft(1)])
    (tmp_path / "other" / "keystore.db").replace(directory / "keystore.db")
    _refused(store, 2)


def test_a_database_that_may_not_be_written(store: Store) -> None:
    """A read-only database is `ledger-unavailable`; reading goes on."""
    store.append_usage([keys.draft(1)])
    with store._database.writing() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    _refused(store, 2)
    assert store.ledger_head()[0] == 1


def test_a_lock_held_too_long_is_unavailable(store: Store, directory: Path) -> None:
    """When another process keeps the write lock past the time-out the append is refused, and works afterwards."""
    store._database.close()
    store._ledger._database = Database(directory / "keystore.db", busy_timeout_s=0.05)
    blocker = sqlite3.connect(directory / "keystore.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    _refused(store, 1)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert store.append_usage([keys.draft(1)])[0].fresh
    store._ledger._database.close()


def test_a_closed_store_does_nothing_more(store: Store) -> None:
    """Closing twice is harmless; using a closed store is our own bug and says so."""
    store.close()
    store.close()
    assert store.sealed
    for use in (store.ledger_head, lambda: store.append_usage([keys.draft(1)])):
        with pytest.raises(ApiMisuse):
            use()


def test_an_edited_record_is_found(store: Store, directory: Path) -> None:
    """Whoever edits the table breaks the chain, and what no release would write is not even read."""
    store.append_usage([keys.draft(number) for number in range(1, 4)])
    connection = sqlite3.connect(directory / "keystore.db")
    connection.execute("UPDATE usage SET samples = 1 WHERE sequence = 2")
    connection.commit()
    with pytest.raises(Tampered) as caught:
        verify_chain(store.usage_records(), node_id=store.node.key_id, checkpoint=None)
    assert caught.value.reason == "ledger-broken"
    connection.execute("UPDATE usage SET samples = -1 WHERE sequence = 2")
    connection.commit()
    connection.close()
    with pytest.raises(Tampered) as caught:
        store.usage_records()
    assert caught.value.reason == "ledger-broken"


@pytest.mark.slow
def test_two_processes_do_not_fork_the_chain(directory: Path) -> None:
    """Two processes and this one append at once: one chain, every record once."""
    with make_store(directory) as store:
        writers = [_writer(directory, name, batches=30, size=3) for name in ("a", "b")]
        for number in range(1, 31):
            store.append_usage([keys.draft(number)])
        outputs = [writer.communicate()[0] for writer in writers]
        assert [writer.returncode for writer in writers] == [0, 0]
        records = store.usage_records()
        assert verify_chain(records, node_id=store.node.key_id, checkpoint=None).records == 210
        digests = {record.sequence: record.digest for record in records}
        for output in outputs:
            acknowledged = _acknowledged(output)
            assert len(acknowledged) == 90
            assert all(digests[sequence] == digest for sequence, digest in acknowledged)


@pytest.mark.slow
def test_kill_9_loses_no_acknowledged_record(directory: Path) -> None:
    """Five times: a writer is killed in the middle; the chain verifies and holds all that it had acknowledged."""
    make_store(directory).close()
    acknowledged: list[tuple[int, str]] = []
    for turn in range(5):
        writer = _writer(directory, f"turn-{turn}", batches=10**6, size=1 + 3 * turn)
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(20 + 15 * turn)]
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read()
        writer.stdout.close()
        assert writer.wait() == -signal.SIGKILL
        acknowledged += _acknowledged("".join(lines) + rest)
        with Store.open(directory) as store:
            digests = {record.sequence: record.digest for record in store.usage_records(1, 100_000)}
            assert all(digests[sequence] == digest for sequence, digest in acknowledged)
            records = store.usage_records(1, 100_000)
            assert verify_chain(records, node_id=store.node.key_id, checkpoint=None).records >= len(acknowledged)
            ids = [(record.licence_id, record.request_id) for record in records]
            assert len(ids) == len(set(ids))
