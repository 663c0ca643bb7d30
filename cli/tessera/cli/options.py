"""Options that several commands share, and how the text of an option becomes a value."""

import re
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from tessera.cli.boundary import JSON_FLAG

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)


def parse_duration(text: str) -> int:
    """Return the seconds of `30d`, `12h`, `90m`, `45s` or `2w`. Raises `typer.BadParameter` for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a duration; write a number and s, m, h, d or w, like 30d or 12h")
    return int(match[1]) * _SECONDS[match[2]]


def format_duration(seconds: float) -> str:
    """Return a duration in its largest fitting unit, like `30d` or `90s`."""
    whole = int(seconds)
    for unit, size in sorted(_SECONDS.items(), key=lambda item: -item[1]):
        if unit != "w" and whole >= size and whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def parse_moment(text: str) -> int:
    """Return the Unix time in whole seconds of `2027-01-31`, `2027-01-31T12:00:00Z`, or a number of seconds.

    A time without an offset is UTC. Raises `typer.BadParameter` for anything else.
    """
    from datetime import UTC, datetime

    if re.fullmatch(r"\d{1,12}", text, re.ASCII):
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a date; write 2027-01-31 or 2027-01-31T12:00:00Z") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def format_moment(unix_s: float) -> str:
    """Return a Unix time as `2027-01-31 12:00:00 UTC`."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_s))


def _remember_json(ctx: typer.Context, value: bool) -> bool:
    ctx.meta[JSON_FLAG] = value
    return value


JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output.", callback=_remember_json)
]
KeystoreOption = Annotated[
    Path,
    typer.Option("--keystore", "-k", envvar="TESSERA_KEYSTORE", metavar="DIR", help="Folder of the node's key store."),
]
KeystoreArgument = Annotated[
    Path, typer.Argument(envvar="TESSERA_KEYSTORE", metavar="DIR", help="Folder of the node's key store.")
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        envvar="TESSERA_PASSPHRASE_FILE",
        help="Read the passphrase from FILE, mode 0600; else $TESSERA_PASSPHRASE, else a prompt.",
    ),
]
IssuerKey = Annotated[Path, typer.Option("--issuer", metavar="KEY", help="The vendor's issuer key file.")]
