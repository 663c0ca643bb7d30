"""What the `tessera` script runs: the command line, or a sentence where it cannot even start."""

import os
import sys


def main() -> None:
    """Run the command line; never returns."""
    if sys.stdout is None:  # closed by the caller, as in `tessera … >&-`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the process is
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # or gRPC's own remarks stand above our sentence
    try:
        from tessera.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        # The script comes with the base install, which is a program's client and has no command line.
        print("error: the command line needs the module typer, which is not installed", file=sys.stderr)
        print("remedy: pip install 'tessera-appliance[cli]'", file=sys.stderr)
        sys.exit(1)
    run()
