"""Brings a database to the schema of this release (rule S-5)."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from tessera.keystore.errors import Conflict, Malformed
from tessera.keystore.store.database import Database

REVISIONS = ("0001",)
"""Every schema version, oldest first; a test holds this equal to the modules in `migrations/versions`."""


def upgrade(database: Database, *, fresh: bool = False) -> None:
    """Run the missing migrations in one transaction; nothing is written when there are none.

    `fresh` allows a database without any table. Raises `Malformed` when the file is no key store of ours and `Conflict`
    with the reason "store-newer" when a later release has upgraded it.
    """
    with database.reading() as connection:
        if _revision(connection, fresh=fresh) == REVISIONS[-1]:
            return
    with database.writing() as connection:
        if _revision(connection, fresh=fresh) != REVISIONS[-1]:  # another process may have been faster
            _run(connection)


def _revision(connection: Connection, *, fresh: bool) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        if fresh:
            return None
        raise Malformed("keystore.db is not the database of a Tessera key store")
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
    if len(found) != 1:
        raise Malformed("keystore.db does not name one schema version")
    if found[0] not in REVISIONS:
        raise Conflict(
            "the key store was written by a newer release of Tessera",
            reason="store-newer",
            remedy="install that release, or restore the backup made before its upgrade",
        )
    return str(found[0])


def _run(connection: Connection) -> None:
    from alembic import command  # slow to import, and needed once in a store's life
    from alembic.config import Config

    config = Config()
    location = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", location.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
