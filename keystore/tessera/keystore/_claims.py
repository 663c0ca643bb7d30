"""Checks that every signed document shares: exact types, ranges and field sets; whatever fails is `Malformed`."""

import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

from tessera.keystore.canonical import MAX_INTEGER
from tessera.keystore.errors import Malformed

KEY_ID = re.compile(r"[A-Za-z0-9_-]{43}")
LICENCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
HEX_16_BYTES = re.compile(r"[0-9a-f]{32}")
HEX_32_BYTES = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""Model and feature names."""

MAX_TIME_S = 253_402_300_799
"""9999-12-31T23:59:59Z, the last second that calendars agree on."""


@contextmanager
def malformed_as(reason: str) -> Iterator[None]:
    """Give every `Malformed` that leaves the block `reason`; also usable as a decorator."""
    try:
        yield
    except Malformed as error:
        raise Malformed(error.public, reason=reason, remedy=error.remedy) from error


def check_text(value: object, pattern: re.Pattern[str], what: str) -> str:
    """Return `value` if it is a string that `pattern` matches from end to end."""
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise Malformed(f"{what} is not of the form {pattern.pattern}")
    return value


def check_printable(value: object, max_characters: int, what: str) -> str:
    """Return `value` if it is 1 to `max_characters` printable characters without space at either end."""
    if not isinstance(value, str) or not 0 < len(value) <= max_characters:
        raise Malformed(f"{what} is not a text of 1 to {max_characters} characters")
    if not value.isprintable() or value != value.strip():
        raise Malformed(f"{what} holds characters that cannot be printed, or begins or ends with a space")
    return value


def check_integer(value: object, low: int, high: int, what: str) -> int:
    """Return `value` if it is an integer, and not a boolean, in low … high."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise Malformed(f"{what} is not an integer from {low} to {high}")
    return value


def check_fields(value: object, required: Set[str], optional: Set[str], what: str) -> dict[str, Any]:
    """Return `value` if it is an object with every required field and no unknown one."""
    if not isinstance(value, dict):
        raise Malformed(f"{what} is not an object")
    if missing := required - value.keys():
        raise Malformed(f"{what} lacks {', '.join(sorted(missing))}")
    if value.keys() - required - optional:
        raise Malformed(f"{what} has a field that this version does not know")
    if None in value.values():
        raise Malformed(f"{what} has a null field; leave it out instead")
    return value


def check_choice(value: object, choices: tuple[str, ...], what: str) -> None:
    """Return when `value` is one of the strings `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise Malformed(f"{what} is none of {', '.join(choices)}")


def check_count(value: object, what: str) -> int:
    """Return `value` if it is an integer in 0 … 2**53 - 1."""
    return check_integer(value, 0, MAX_INTEGER, what)


def length_prefixed(*fields: bytes) -> bytes:
    """Return each field after its length as four big-endian bytes (rule K-5)."""
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)
