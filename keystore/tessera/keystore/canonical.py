"""Canonical JSON: one value, one byte string, so that what is signed can be compared (docs/spec.md, rule K-1).

The form is RFC 8785 restricted to null, booleans, integers within ±(2**53 - 1), finite floats, strings, arrays and
objects with string keys: keys sorted by code point, no white space, UTF-8, no escapes but the required ones. Two things
are simpler than RFC 8785: keys sort by code point, and a float is written as Python's `repr` writes it. `loads` accepts
exactly what `dumps` can write, so a document has one encoding; duplicate keys, NaN and trailing bytes are refused.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

from tessera.keystore.errors import ApiMisuse, Malformed

Json = Any
"""A JSON value; recursive, so spelled `Any`."""

MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 32

_FORM = "not a JSON document of the allowed form"


def dumps(value: Any) -> bytes:
    """Return the canonical bytes of `value`. Raises `ApiMisuse` for what the form cannot hold."""
    _check(value, 0)
    return encode(value)


def loads(raw: bytes, *, max_bytes: int) -> Any:
    """Return the value of canonical bytes. Raises `Malformed` unless `dumps` would write exactly `raw`."""
    value = parse(raw, max_bytes=max_bytes)
    if encode(value) != raw:
        raise Malformed("JSON is not in canonical form")
    return value


def parse(raw: bytes, *, max_bytes: int) -> Any:
    """Return the value of strict JSON in any spacing and order, for documents that people edit. Raises `Malformed`."""
    value = scan(raw, max_bytes=max_bytes)
    try:
        _check(value, 0)
    except ApiMisuse as error:
        raise Malformed(_FORM) from error
    return value


def scan(raw: bytes, *, max_bytes: int) -> Any:
    """Return the value of JSON without duplicate keys, its numbers, strings and depth unchecked. Raises `Malformed`.

    For a caller who builds the document anew from what it found and compares bytes; everybody else wants `parse`.
    """
    if len(raw) > max_bytes:
        raise Malformed(f"JSON document of {len(raw)} bytes exceeds {max_bytes}")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(_FORM) from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def encode(value: Any) -> bytes:
    """Return the canonical bytes of a value that is known to have a form, such as one made of checked strings and
    integers; `dumps` is for all others.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ApiMisuse("JSON value is nested too deeply")
    match value:
        case None | bool():
            return
        case str():
            if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
                raise ApiMisuse("JSON string holds a lone surrogate")
        case int():
            if abs(value) > MAX_INTEGER:
                raise ApiMisuse("JSON integer is beyond 2**53 - 1")
        case float():
            if not math.isfinite(value):
                raise ApiMisuse("JSON number is not finite")
        case list():
            _check_items(value, depth + 1)
        case dict():
            if not all(isinstance(key, str) for key in value):
                raise ApiMisuse("JSON object has a key that is not a string")
            _check_items(value, depth + 1)
            _check_items(value.values(), depth + 1)
        case _:
            raise ApiMisuse(f"{type(value).__name__} has no JSON form")


def _check_items(items: Iterable[Any], depth: int) -> None:
    """Check what lies at one depth.

    Headers hold tens of thousands of plain words and small integers, which are judged here without a call for each.
    """
    for item in items:
        kind = type(item)
        plain = (kind is str and item.isascii()) or (kind is int and -MAX_INTEGER <= item <= MAX_INTEGER)
        if not plain or depth > MAX_DEPTH:
            _check(item, depth)
