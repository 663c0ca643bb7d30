"""Strict fields of a JSON object: exact keys, exact types, stated ranges; anything else is `Malformed`.

The messages name the field and never quote its value, so they may be shown to whoever sent the document.
"""

import math
import re
from typing import Any, Final

from tessera.keystore.errors import Malformed

MAX_LICENCE_TEXT_CHARS: Final = 65_536
TENSOR_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@+-]{0,254}")
PORT_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}")
MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
LABEL: Final = re.compile(r"[!-~]([ -~]{0,62}[!-~])?")
_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
LAYOUT: Final = re.compile(r"[A-Za-z0-9_-]{0,16}")
HEX_32: Final = re.compile(r"[0-9a-f]{32}")
HEX_64: Final = re.compile(r"[0-9a-f]{64}")
KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{43}")


def record(value: Any, keys: frozenset[str], what: str) -> dict[str, Any]:
    """Return `value` when it is an object with exactly `keys`. Raises `Malformed`."""
    if not isinstance(value, dict) or value.keys() != keys:
        raise Malformed(f"{what} does not have exactly the fields of the format")
    return value


def sequence(value: Any, low: int, high: int, what: str) -> list[Any] | tuple[Any, ...]:
    """Return `value` when it is a list or tuple of `low` … `high` entries. Raises `Malformed`."""
    if not isinstance(value, list | tuple) or not low <= len(value) <= high:
        raise Malformed(f"{what} is not a list of {low} to {high} entries")
    return value


def text(value: Any, pattern: re.Pattern[str], what: str) -> str:
    """Return `value` when it is a string that `pattern` matches whole. Raises `Malformed`."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise Malformed(f"{what} is not a string of the allowed form")
    return value


def prose(value: Any, what: str) -> str:
    """Return `value` when it is at most 65,536 characters without controls but newline and tab. Raises `Malformed`."""
    if not isinstance(value, str) or len(value) > MAX_LICENCE_TEXT_CHARS:
        raise Malformed(f"{what} is not a string of at most {MAX_LICENCE_TEXT_CHARS} characters")
    if _CONTROLS.search(value):
        raise Malformed(f"{what} holds control characters")
    return value


def integer(value: Any, low: int, high: int, what: str) -> int:
    """Return `value` when it is an integer (no boolean) in `low` … `high`. Raises `Malformed`."""
    if type(value) is not int or not low <= value <= high:
        raise Malformed(f"{what} is not an integer in {low} to {high}")
    return value


def number(value: Any, what: str) -> float:
    """Return `value` when it is a finite float. Raises `Malformed`."""
    if type(value) is not float or not math.isfinite(value):
        raise Malformed(f"{what} is not a finite floating-point number")
    return value


def flag(value: Any, what: str) -> bool:
    """Return `value` when it is a boolean. Raises `Malformed`."""
    if type(value) is not bool:
        raise Malformed(f"{what} is not true or false")
    return value


def choice(value: Any, allowed: frozenset[str], what: str) -> str:
    """Return `value` when it is one of `allowed`. Raises `Malformed`."""
    if not isinstance(value, str) or value not in allowed:
        raise Malformed(f"{what} is not one of the allowed words")
    return value
