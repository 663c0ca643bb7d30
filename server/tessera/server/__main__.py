"""`python -m tessera.server [--config FILE] [--NAME VALUE …]`: the server alone; `tessera serve` is the comfortable
way."""

import asyncio
import sys
from pathlib import Path

from tessera.keystore.errors import Malformed, TesseraError
from tessera.keystore.secrets import Passphrase
from tessera.server.app import serve
from tessera.server.config import Settings, load_settings


def main(arguments: list[str]) -> int:
    """Serve until told to stop; return the exit code: 0 after a drain, 1 refused or failed, 2 for wrong usage."""
    try:
        settings = _settings(arguments)
    except TesseraError as error:
        _complain(error)
        return 2
    try:
        run(settings)
    except TesseraError as error:
        _complain(error)
        return 1
    return 0


def run(settings: Settings, *, passphrase: Passphrase | None = None) -> None:
    """Run `serve` on uvloop where it is installed, else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(settings, passphrase=passphrase))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, passphrase=passphrase))


def _settings(arguments: list[str]) -> Settings:
    if len(arguments) % 2:
        raise Malformed("usage: python -m tessera.server [--config FILE] [--NAME VALUE …]")
    flags: dict[str, str] = {}
    for name, value in zip(arguments[::2], arguments[1::2], strict=True):
        if not name.startswith("--"):
            raise Malformed("usage: python -m tessera.server [--config FILE] [--NAME VALUE …]")
        flags[name[2:].replace("-", "_")] = value
    file = flags.pop("config", None)
    return load_settings(None if file is None else Path(file), **flags)


def _complain(error: TesseraError) -> None:
    sys.stderr.write(f"{error.reason}: {error.public}\n" + (f"  {error.remedy}\n" if error.remedy else ""))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
