"""The one place where an exception becomes an exit status and a sentence on standard error.

Exit status: 0 done · 1 refused or failed · 2 usage · 130 interrupted. A `TesseraError` shows its public sentence and
its remedy; anything unexpected shows its class only, because the text of a foreign exception may hold what nobody
should see (`TESSERA_DEBUG=1` prints the traceback to the person at the keyboard).
"""

import json
import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import typer
from typer.core import TyperGroup

from tessera.keystore.errors import (
    Conflict,
    Denied,
    Exhausted,
    NotFound,
    Tampered,
    TesseraError,
    Unauthenticated,
    Unavailable,
    WrongKey,
)

JSON_FLAG = "tessera.cli.json"
"""Key in the context's `meta` that remembers whether the command was given `--json`."""

_TYPER_S_OWN: tuple[type[BaseException], ...] = (
    typer.Exit,
    typer.Abort,
    typer.BadParameter.__mro__[2],
    BrokenPipeError,
)
"""What typer handles itself; the third is click's `ClickException`, whichever click it brings along."""


class BoundaryGroup(TyperGroup):
    """The root command group: runs the command and turns what it raises into an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the sub-command; raises only what typer handles itself."""
        try:
            return super().invoke(ctx)
        except _TYPER_S_OWN:
            raise
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except Exception as error:  # noqa: BLE001 - this is the boundary
            raise typer.Exit(_fail(error, as_json=bool(ctx.meta.get(JSON_FLAG)))) from None


def described(error: Exception) -> dict[str, str]:
    """Return `{reason, message, remedy}` of an error, in words that may be shown."""
    if isinstance(error, TesseraError):
        return {"reason": error.reason, "message": error.public, "remedy": error.remedy or _remedy(error)}
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if isinstance(error.filename, str) else ""
        remedy = "check the path, its owner and permissions, and the room on the disk"
        return {"reason": "operating-system", "message": f"{error.strerror}{where}", "remedy": remedy}
    if isinstance(error, ModuleNotFoundError) and error.name:
        return {
            "reason": "not-installed",
            "message": f"this command needs the module {error.name}, which is not installed",
            "remedy": _installation(error.name),
        }
    return {
        "reason": "internal",
        "message": f"unexpected {type(error).__name__}; this is a fault of Tessera",
        "remedy": "run it again with TESSERA_DEBUG=1 and report the traceback",
    }


BROUGHT_BY: Mapping[str, str] = {
    "typer": "cli",
    "rich": "cli",
    "grpc_health": "cli",
    "pydantic_settings": "server",
    "sqlalchemy": "server",
    "alembic": "server",
    "structlog": "server",
    "prometheus_client": "server",
    "grpc_reflection": "server",
    "google.rpc": "server",
    "uvloop": "server",
    "torch": "vendor",
    "safetensors": "vendor",
    "matplotlib": "vendor",
    "PIL": "vendor",
    "sklearn": "demo",
}
"""Module → the extra to install for it. torch is the server's too, which misses others of this list first."""


def _installation(module: str) -> str:
    for known, extra in BROUGHT_BY.items():
        if f"{module}.".startswith(f"{known}."):
            return f"pip install 'tessera-appliance[{extra}]'"
    return "install tessera-appliance again: something that it depends on is missing"


def _remedy(error: TesseraError) -> str:
    """Return what can be done about a kind of error, for the few that do not say it themselves."""
    return next((remedy for kind, remedy in _REMEDIES if isinstance(error, kind)), "run the command with --help")


_REMEDIES: tuple[tuple[type[TesseraError], str], ...] = (
    (Unavailable, "wait a little and run it again"),
    (NotFound, "check the name or path"),
    (Denied, "ask whoever runs the node or issued the licence"),
    (Conflict, "look at what is there already"),
    (Exhausted, "wait, or ask the vendor for more"),
    (Unauthenticated, "check that identity, licence and issuer belong together"),
    (WrongKey, "give the key or passphrase that belongs to it"),
    (Tampered, "get the file again from where it came"),
)


def _fail(error: Exception, *, as_json: bool) -> int:
    if os.environ.get("TESSERA_DEBUG") == "1":
        traceback.print_exception(error)
    told = described(error)
    if as_json:
        with suppress(OSError):  # a full disk or a closed pipe: the sentence below is what is left
            print(json.dumps({"error": told}), flush=True)
    _tell(told)
    return 1


def _tell(told: Mapping[str, str]) -> None:
    print(f"error: {told['message']}", file=sys.stderr)
    if told["remedy"]:
        print(f"remedy: {told['remedy']}", file=sys.stderr)
    sys.stderr.flush()
