"""How the tables came to be: an Alembic environment inside the package, run by `tessera.keystore.store.upgrade`."""
