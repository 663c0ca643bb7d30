"""One SQLite database file: pragmas, transactions, and failures in our own words (docs/spec.md, rules S-3 to S-6).

- Readers see a snapshot and never block. Writers come one at a time: a lock between threads, `BEGIN IMMEDIATE` between
  processes.
- A write is on the disk when its `with` block ends without an exception (WAL with `synchronous=FULL`).
- The file is opened with `mode=rw`, so a deleted database is never silently replaced by an empty one, and its inode is
  compared after each transaction, so that a commit into a deleted file is never acknowledged.

Never open and close the database file or its -wal and -shm by other means in a process that uses it: POSIX drops all
locks that the process holds on a file when any descriptor of it is closed. `stat` and `chmod` by path are harmless.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tessera.keystore.errors import ApiMisuse, Conflict, Malformed, Tampered, TesseraError, Unavailable

BUSY_TIMEOUT_S = 5.0
READERS = 16
WRITES = "tessera_writes"

_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
    "PRAGMA secure_delete=ON",  # what was wrapped in a forgotten term leaves the file; not every build's default
)


class Database:
    """The open database; thread-safe. `close` it, or use it as a context manager."""

    def __init__(self, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._engine = _engine(path, busy_timeout_s)
        self._write_lock = threading.Lock()
        self._closed = False
        self._writer: Connection | None = None
        self._file = _inode(path)
        self._wal_file: tuple[int, int] | None = None

    @contextlib.contextmanager
    def reading(self, *, reason: str = "unavailable") -> Iterator[Connection]:
        """Give a connection inside a read transaction. SQLite's failures are `Unavailable` with `reason`, or damage."""
        self._check_open()
        with translated(reason), self._engine.connect() as connection, connection.begin():
            yield connection
            self._check_in_place(reason)

    @contextlib.contextmanager
    def writing(self, *, reason: str = "unavailable") -> Iterator[Connection]:
        """Give the one writing connection inside a write transaction, committed and durable when the block ends.

        Any exception rolls everything back; after `Unavailable` the caller must assume that nothing was written.
        """
        with self._write_lock, translated(reason):
            self._check_open()
            connection = self._writing_connection()
            with connection.begin():
                yield connection
            self._check_in_place(reason)

    def close(self) -> None:
        """Close every connection; the last one to close removes the write-ahead log. May be called twice."""
        with self._write_lock:
            self._closed = True
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            self._engine.dispose()

    def _check_open(self) -> None:
        if self._closed:
            raise ApiMisuse("the key store is closed")

    def _writing_connection(self) -> Connection:
        if self._writer is None:
            self._writer = self._engine.connect().execution_options(**{WRITES: True})
        return self._writer

    def _check_in_place(self, reason: str) -> None:
        wal = _inode(self._wal)
        if self._wal_file is None:
            self._wal_file = wal if self._writer is not None else None
        moved = self._wal_file is not None and wal != self._wal_file
        if moved or self._file is None or _inode(self._path) != self._file:
            remedy = "stop every process that uses the store, put keystore.db back, then start again"
            raise Unavailable("the key store's database was moved or deleted", reason=reason, remedy=remedy)


def _engine(path: Path, busy_timeout_s: float) -> Engine:
    address = f"{path.absolute().as_uri()}?mode=rw"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            address, uri=True, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            for pragma in _PRAGMAS:
                connection.execute(pragma).close()
        except BaseException:
            connection.close()
            raise
        return connection

    engine = create_engine(
        "sqlite://",
        creator=connect,
        poolclass=QueuePool,
        pool_size=READERS,
        max_overflow=READERS,
        pool_timeout=busy_timeout_s,
        hide_parameters=True,
    )
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def translated(reason: str) -> Iterator[None]:
    """Turn whatever SQLAlchemy and SQLite raise in the block into a `TesseraError`; ours pass unchanged."""
    try:
        yield
    except DBAPIError as error:
        raise _typed(error.orig, reason) from error
    except SQLAlchemyError as error:  # the pool's time-out and the like
        raise Unavailable("the key store is busy", reason=reason) from error
    except sqlite3.Error as error:  # raised while connecting, before SQLAlchemy sees it
        raise _typed(error, reason) from error
    except UnicodeDecodeError as error:  # the sqlite3 module's own, when it quotes a damaged file in its messages
        raise _typed(error, reason) from error


def _typed(error: BaseException | None, reason: str) -> TesseraError:
    code = getattr(error, "sqlite_errorcode", None)
    match None if code is None else code & 0xFF:
        case sqlite3.SQLITE_CONSTRAINT:
            return Conflict("contradicts what the key store already holds")
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_ERROR:
            return Malformed("keystore.db is not the database of a Tessera key store")
        case None | sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_MISMATCH:
            return Tampered("keystore.db is damaged", remedy="restore it from a backup")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable("the key store is busy", reason=reason, remedy="try again")
        case sqlite3.SQLITE_FULL:
            return Unavailable("the key store's disk is full", reason=reason, remedy="free space on the store's disk")
        case _:
            return Unavailable("the key store's database cannot be read or written", reason=reason)
