"""Single values of a store, by name: what must be readable while it is sealed (rule S-4)."""

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from tessera.keystore.errors import Malformed
from tessera.keystore.store.schema import META

NODE = "node"
"""The node's public identity."""
LOCK = "lock"
"""How the master key wraps the keyring; plain, because it must be read before anything can be unwrapped."""
KEYRING = "keyring"
"""The envelope of all terms, under the master key."""
CA_CERTIFICATE = "ca-certificate"
"""PEM of the authority that signs the server's certificates."""
CLOCK_MARK = "clock-mark-us"
"""The latest time that was noted, in decimal."""


def read(connection: Connection, key: str) -> bytes | None:
    """Return the value, or None when it was never written."""
    return connection.execute(select(META.c.value).where(META.c.key == key)).scalar_one_or_none()


def require(connection: Connection, key: str) -> bytes:
    """Return a value that every store has. Raises `Malformed` when it is missing."""
    found = read(connection, key)
    if found is None:
        raise Malformed(f"keystore.db lacks its entry {key}")
    return found


def write(connection: Connection, key: str, value: bytes) -> None:
    """Write the value, in place of the former one."""
    statement = insert(META).values(key=key, value=value)
    connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_={"value": value}))
