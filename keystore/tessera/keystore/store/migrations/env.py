"""What Alembic executes for every command: it always runs on the connection and in the transaction of its caller."""

from alembic import context

from tessera.keystore.store.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
