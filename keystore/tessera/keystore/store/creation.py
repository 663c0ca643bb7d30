"""Making a store: the rename of `keystore.db` into place is the moment from which it exists (rule S-2)."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tessera.keystore._files import PUBLIC_MODE, write_atomically
from tessera.keystore.errors import Conflict
from tessera.keystore.identity import Identity
from tessera.keystore.keyfile import KdfCost
from tessera.keystore.secrets import MasterKey, Passphrase
from tessera.keystore.store import meta, store, tls
from tessera.keystore.store.barrier import Barrier
from tessera.keystore.store.database import Database
from tessera.keystore.store.files import PRIVATE_FILE, make_private, storage_errors, sync_directory
from tessera.keystore.store.upgrade import upgrade

LOCK_FILE = "keystore.lock"
UNFINISHED = "keystore.db.new"


def create_files(
    directory: Path, master: Passphrase | MasterKey, node: Identity, hosts: Sequence[str], now_s: float, cost: KdfCost
) -> None:
    """Write every file of a new store into `directory`. Raises `Conflict` ("already-initialised") when there is one."""
    ca = tls.make_ca(f"Tessera CA {node.key_id[:16]}", now_s=now_s)
    server = tls.issue_server_certificate(ca, hosts, now_s=now_s)
    make_private(directory)
    with storage_errors("the key store"), _alone(directory):
        final, unfinished = directory / store.DATABASE, directory / UNFINISHED
        if final.exists():
            remedy = "choose another directory; a key store is never overwritten"
            raise Conflict("there is a key store here already", reason="already-initialised", remedy=remedy)
        make_private(directory / store.MODELS)
        store.write_server_files(directory / store.TLS_FOLDER, server)
        write_atomically(directory / store.CA_FILE, ca.certificate, mode=PUBLIC_MODE, overwrite=True)
        write_atomically(directory / store.NODE_FILE, node.public.to_json() + b"\n", mode=PUBLIC_MODE, overwrite=True)
        for left_over in directory.glob(f"{UNFINISHED}*"):
            left_over.unlink()
        os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE))
        _write_database(unfinished, master, node, ca, cost)
        unfinished.rename(final)
        sync_directory(directory)


def _write_database(
    path: Path, master: Passphrase | MasterKey, node: Identity, ca: tls.Credentials, cost: KdfCost
) -> None:
    with contextlib.closing(Database(path)) as database:
        upgrade(database, fresh=True)
        barrier = Barrier(database, node.key_id)
        with database.writing() as connection:
            meta.write(connection, meta.NODE, node.public.to_json())
            meta.write(connection, meta.CA_CERTIFICATE, ca.certificate)
            barrier.initialise(connection, master, cost)
            barrier.put_within(connection, store.NODE_IDENTITY, store.MAIN, node.export_secret())
            barrier.put_within(connection, store.TLS_CA, store.MAIN, ca.key)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let one process at a time make a store in `directory`; the lock dies with its holder."""
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
