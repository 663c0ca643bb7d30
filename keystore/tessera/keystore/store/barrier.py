"""The barrier: every secret passes it, and it is either sealed (each operation raises `SealedError`) or unsealed.

- Unsealed means that the keyring and the key that wraps it are in memory, as `SecretBytes`; `seal` drops both. Neither
  is written anywhere except wrapped.
- New secrets are wrapped in the newest term; older terms stay readable until `rewrap` has emptied and removed them.
- The wrapped keyring is compared with the known one in the transaction of each operation. So a term that another
  process began is used at once, and a store whose master key another process has changed seals itself here.
"""

import re
import threading
from collections import Counter
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, select
from sqlalchemy.dialects.sqlite import insert

from tessera.keystore.errors import ApiMisuse, NotFound, SealedError, Tampered
from tessera.keystore.keyfile import KdfCost
from tessera.keystore.secrets import MasterKey, Passphrase, SecretBytes
from tessera.keystore.store import meta
from tessera.keystore.store.database import Database
from tessera.keystore.store.envelope import associated, term_of, unwrap, wrap
from tessera.keystore.store.keyring import Keyring, KeyringKey, Lock
from tessera.keystore.store.schema import SECRETS

SECRET_LABEL = "tessera/v1/store/secret"  # noqa: S105 - a label
KEYRING_LABEL = "tessera/v1/store/keyring"
MAX_SECRET_BYTES = 1 << 20
MAX_NAME_CHARACTERS = 256
_KIND = re.compile(r"[a-z][a-z0-9-]{0,63}")


@dataclass(frozen=True, slots=True)
class TermInfo:
    """One term of the keyring, without its key."""

    term: int
    newest: bool
    """New secrets are wrapped in it."""
    secrets: int
    """How many secrets are wrapped in it."""


@dataclass(frozen=True, slots=True)
class _Unsealed:
    wrapping: KeyringKey
    wrapped: bytes
    ring: Keyring


class Barrier:
    """Wrapped secrets of one database. Thread-safe."""

    def __init__(self, database: Database, node_id: str) -> None:
        self._database = database
        self._node_id = node_id
        self._state: _Unsealed | None = None
        self._lock = threading.Lock()

    @property
    def sealed(self) -> bool:
        """Whether the master key has yet to be given."""
        return self._state is None

    def initialise(self, connection: Connection, master: Passphrase | MasterKey, cost: KdfCost) -> None:
        """Write a fresh keyring under `master` within the transaction of `connection`, and be unsealed."""
        lock, wrapping = Lock.make(master, cost)
        self._state = self._write_ring(connection, lock, wrapping, Keyring.generate())

    def unseal(self, master: Passphrase | MasterKey) -> None:
        """Take the keyring into memory. Raises `WrongKey` when `master` does not fit; the state is then as before."""
        with self._database.reading() as connection:
            lock = Lock.from_json(meta.require(connection, meta.LOCK))
            wrapped = meta.require(connection, meta.KEYRING)
        wrapping = lock.open(master)
        state = _Unsealed(wrapping, wrapped, self._unwrap_ring(lock, wrapping, wrapped))
        with self._lock:
            self._state = state

    def seal(self) -> None:
        """Drop every key from memory; may be called twice."""
        with self._lock:
            self._state = None

    def change_master(self, master: Passphrase | MasterKey, cost: KdfCost) -> None:
        """Wrap the keyring under another master key; the secrets stay as they are (rule S-13)."""
        self._unsealed()
        lock, wrapping = Lock.make(master, cost)
        with self._database.writing() as connection:
            state = self._write_ring(connection, lock, wrapping, self.ring(connection))
        with self._lock:
            self._state = state

    def put(self, kind: str, name: str, secret: SecretBytes) -> None:
        """Write a secret, in place of the former one of that kind and name; it is durable on return."""
        self._unsealed()
        with self._database.writing() as connection:
            self.put_within(connection, kind, name, secret)

    def put_within(self, connection: Connection, kind: str, name: str, secret: SecretBytes) -> None:
        """Write a secret within the caller's write transaction."""
        if len(secret) > MAX_SECRET_BYTES:
            raise ApiMisuse(f"a secret has at most {MAX_SECRET_BYTES} bytes")
        bound_to = self._bound_to(kind, name)
        ring = self.ring(connection)
        envelope = wrap(ring.key(ring.newest), ring.newest, secret, bound_to)
        statement = insert(SECRETS).values(kind=kind, name=name, envelope=envelope)
        connection.execute(
            statement.on_conflict_do_update(index_elements=["kind", "name"], set_={"envelope": envelope})
        )

    def secret(self, kind: str, name: str) -> SecretBytes:
        """Return a secret. Raises `NotFound` when there is none of that kind and name, `Tampered` for damage."""
        bound_to = self._bound_to(kind, name)
        self._unsealed()
        with self._database.reading() as connection:
            ring = self.ring(connection)
            envelope = connection.execute(select(SECRETS.c.envelope).where(*_is(kind, name))).scalar_one_or_none()
        if envelope is None:
            raise NotFound(f"the key store holds no {kind} of that name")
        return self._open(ring, envelope, bound_to)

    def names(self, kind: str) -> list[str]:
        """Return the names of all secrets of a kind, sorted."""
        self._unsealed()
        with self._database.reading() as connection:
            query = select(SECRETS.c.name).where(SECRETS.c.kind == kind).order_by(SECRETS.c.name)
            return list(connection.execute(query).scalars())

    def terms(self) -> list[TermInfo]:
        """Return every term of the keyring, oldest first."""
        self._unsealed()
        with self._database.reading() as connection:
            ring = self.ring(connection)
            counts = Counter(map(term_of, connection.execute(select(SECRETS.c.envelope)).scalars()))
        return [TermInfo(term, term == ring.newest, counts[term]) for term in sorted(ring.keys)]

    def rotate_term(self) -> int:
        """Begin a new term and return its number; secrets are wrapped in it from now on."""
        self._unsealed()
        with self._database.writing() as connection:
            return self._replace_ring(connection, self.ring(connection).with_new_term()).newest

    def rewrap(self) -> int:
        """Wrap every secret in the newest term, forget the older terms, and return how many secrets that concerned."""
        self._unsealed()
        with self._database.writing() as connection:
            ring = self.ring(connection)
            rows = connection.execute(select(SECRETS.c.kind, SECRETS.c.name, SECRETS.c.envelope)).all()
            older = [row for row in rows if term_of(row.envelope) != ring.newest]
            for kind, name, envelope in older:
                self.put_within(connection, kind, name, self._open(ring, envelope, self._bound_to(kind, name)))
            self._replace_ring(connection, ring.only_newest())
        return len(older)

    def ring(self, connection: Connection) -> Keyring:
        """Return the keyring as it stands in the transaction of `connection`. Raises `SealedError`."""
        state = self._unsealed()
        wrapped = meta.require(connection, meta.KEYRING)
        if wrapped == state.wrapped:
            return state.ring
        lock = Lock.from_json(meta.require(connection, meta.LOCK))
        try:
            ring = self._unwrap_ring(lock, state.wrapping, wrapped)
        except Tampered as error:
            self.seal()
            remedy = "unseal it with the new master key"
            raise SealedError("the store's master key was changed by another process", remedy=remedy) from error
        with self._lock:
            if self._state is state:  # what was sealed or unsealed anew meanwhile stays so
                self._state = _Unsealed(state.wrapping, wrapped, ring)
        return ring

    def _unsealed(self) -> _Unsealed:
        state = self._state
        if state is None:
            raise SealedError("the key store is sealed", remedy="give its master key or passphrase first")
        return state

    def _replace_ring(self, connection: Connection, ring: Keyring) -> Keyring:
        """Write another keyring under the same master key; memory follows when the next operation sees it committed."""
        lock = Lock.from_json(meta.require(connection, meta.LOCK))
        meta.write(
            connection, meta.KEYRING, wrap(self._unsealed().wrapping, 0, ring.to_secret(), self._ring_bound_to(lock))
        )
        return ring

    def _write_ring(self, connection: Connection, lock: Lock, wrapping: KeyringKey, ring: Keyring) -> _Unsealed:
        wrapped = wrap(wrapping, 0, ring.to_secret(), self._ring_bound_to(lock))
        meta.write(connection, meta.LOCK, lock.to_json())
        meta.write(connection, meta.KEYRING, wrapped)
        return _Unsealed(wrapping, wrapped, ring)

    def _unwrap_ring(self, lock: Lock, wrapping: KeyringKey, wrapped: bytes) -> Keyring:
        return Keyring.from_secret(unwrap(wrapping, wrapped, self._ring_bound_to(lock)))

    def _open(self, ring: Keyring, envelope: bytes, bound_to: bytes) -> SecretBytes:
        return unwrap(ring.key(term_of(envelope)), envelope, bound_to)

    def _bound_to(self, kind: str, name: str) -> bytes:
        if not _KIND.fullmatch(kind) or not 0 < len(name) <= MAX_NAME_CHARACTERS:
            raise ApiMisuse("a secret has a kind like 'node-identity' and a name of 1 to 256 characters")
        return associated(SECRET_LABEL, kind=kind, name=name, node=self._node_id)

    def _ring_bound_to(self, lock: Lock) -> bytes:
        return associated(KEYRING_LABEL, lock=lock.to_json().decode("ascii"), node=self._node_id)


def _is(kind: str, name: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return SECRETS.c.kind == kind, SECRETS.c.name == name
