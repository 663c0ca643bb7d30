"""`python -m tessera.cli` is the `tessera` command, also where no script is installed."""

from tessera.cli.entry import main

main()
