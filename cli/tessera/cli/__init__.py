"""The `tessera` command: thin, and it loads a room only when one of its sub-commands runs."""
