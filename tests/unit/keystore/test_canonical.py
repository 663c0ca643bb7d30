"""Canonical JSON: one value, one encoding (rule K-1)."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.keystore import canonical
from tessera.keystore.errors import ApiMisuse, Malformed

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5), max_leaves=20
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_round_trip(value: Any) -> None:
    """`loads(dumps(x)) == x`, and the bytes are a fixed point."""
    raw = canonical.dumps(value)
    again = canonical.loads(raw, max_bytes=1 << 20)
    assert again == value
    assert canonical.dumps(again) == raw


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(VALUES, st.integers(1, 3))
def test_other_spellings_are_refused(value: Any, indent: int) -> None:
    """The same value with white space, or with a trailing byte, is not canonical."""
    raw = canonical.dumps(value)
    spelled = json.dumps(value, indent=indent, ensure_ascii=False).encode() + b" "
    assert canonical.parse(spelled, max_bytes=1 << 20) == value
    for other in (spelled, raw + b"\n", b" " + raw, raw + b"\x00"):
        with pytest.raises(Malformed):
            canonical.loads(other, max_bytes=1 << 20)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_random_bytes_end_typed(raw: bytes) -> None:
    """Whatever the bytes are, the answer is a value or `Malformed`."""
    for read in (canonical.loads, canonical.parse):
        try:
            value = read(raw, max_bytes=1000)
        except Malformed:
            continue
        assert json.loads(raw) == value


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":1}',
        b'{"b":1,"a":1}',
        b'{"a": 1}',
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e400",
        b"01",
        b"-0",
        b"1.50",
        b"1E2",
        b"9007199254740992",
        b"9" * 5000,
        b'"\\u0041"',
        b'"\\/"',
        b'"\\ud800"',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b"\xef\xbb\xbf1",
        b"",
        b"[",
        b"[" * 2000 + b"]" * 2000,
        b"[" * 40 + b"]" * 40,
        b'{"a":1}\x00',
    ],
)
def test_what_no_writer_writes_is_refused(raw: bytes) -> None:
    """Duplicate keys, odd numbers, needless escapes, surrogates, BOM, depth and trailing bytes are `Malformed`."""
    with pytest.raises(Malformed):
        canonical.loads(raw, max_bytes=10_000)


def test_size_is_capped_before_anything_is_parsed() -> None:
    """A document of one byte too many is refused."""
    assert canonical.loads(b"[1]", max_bytes=3) == [1]
    with pytest.raises(Malformed):
        canonical.loads(b"[1]", max_bytes=2)


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53, {1: 2}, (1,), b"x", "\ud800", {"\udfff": 1}, {1, 2}])
def test_values_without_a_form_are_the_callers_mistake(value: Any) -> None:
    """`dumps` raises `ApiMisuse` for what JSON or the rule cannot hold."""
    with pytest.raises(ApiMisuse):
        canonical.dumps(value)


def test_keys_sort_by_code_point() -> None:
    """Order is by code point, also beyond the basic plane, where UTF-16 order differs."""
    assert canonical.dumps({"\U0001f600": 1, "\uffff": 2, "b": 3, "B": 4}) == (
        '{"B":4,"b":3,"\uffff":2,"\U0001f600":1}'.encode()
    )
