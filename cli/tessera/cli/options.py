"""Options that several commands share, and how the text of an option becomes a value."""

import re
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from tessera.cli.boundary import JSON_FLAG

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
MAX_DURATION_S: Final = 36_600 * 86_400
"""The longest duration that an option takes: a hundred years."""
MAX_MOMENT_S: Final = 253_402_300_799
"""The last second of the year 9999, beyond which no licence reaches."""
MAX_PORT: Final = 65_535
MAX_SEED: Final = 2**32 - 1
MAX_VERSION: Final = 2**31 - 1
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s/:\[\]]+):(\d{1,5})", re.ASCII)
_DURATION: Final = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)


def parse_duration(text: str, option: str | None = None, *, min_s: int = 0, max_s: int = MAX_DURATION_S) -> int:
    """Return the seconds of `30d`, `12h`, `90m`, `45s` or `2w`.

    Raises `typer.BadParameter`, naming `option`, for anything else and outside `min_s` to `max_s`.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is not a duration; write a number and s, m, h, d or w, like 30d or 12h", param_hint=option
        )
    seconds = int(match[1]) * _SECONDS[match[2]]
    if not min_s <= seconds <= max_s:
        raise typer.BadParameter(
            f"{text!r} is not from {format_duration(min_s)} to {format_duration(max_s)}", param_hint=option
        )
    return seconds


def parse_address(text: str, option: str, example: str = "localhost:8001") -> tuple[str, int]:
    """Return host and port of `HOST:PORT`; an IPv6 address stands in brackets.

    Raises `typer.BadParameter`, naming `option`, for anything else.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[2]) > MAX_PORT:
        raise typer.BadParameter(f"{text!r} is not HOST:PORT, like {example}", param_hint=option)
    return match[1].strip("[]"), int(match[2])


def format_duration(seconds: float) -> str:
    """Return a duration in its largest fitting unit, like `30d` or `90s`."""
    whole = int(seconds)
    for unit, size in sorted(_SECONDS.items(), key=lambda item: -item[1]):
        if unit != "w" and whole >= size and whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def parse_moment(text: str, option: str | None = None) -> int:
    """Return the Unix time in whole seconds of `2027-01-31`, `2027-01-31T12:00:00Z`, or a number of seconds.

    A time without an offset is UTC. Raises `typer.BadParameter`, naming `option`, for anything else.
    """
    from datetime import UTC, datetime

    if re.fullmatch(r"\d{1,11}", text, re.ASCII):
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
        seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        seconds = -1
    if seconds < 0:
        raise typer.BadParameter(
            f"{text!r} is not a date from 1970 on; write 2027-01-31 or 2027-01-31T12:00:00Z", param_hint=option
        )
    return seconds


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
