"""The payload digest of both ends: its exact bytes, and that every part of a request counts."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.payload import payload_digest

TENSOR = ("image", "UINT8", (1, 2), b"\x01\x02")


def test_the_digest_follows_the_written_rules() -> None:
    """Spelled out byte by byte as in the rules, for whoever ports it."""

    def u64(value: int) -> bytes:
        return struct.pack(">Q", value)

    expected = hashlib.sha256(
        b"tessera/v1/payload\n" + u64(6) + b"digits" + u64(3) + u64(1)
        + u64(5) + b"image" + u64(5) + b"UINT8" + u64(2) + u64(1) + u64(2) + u64(2) + b"\x01\x02"
    ).hexdigest()  # fmt: skip
    assert payload_digest("digits", 3, [TENSOR]) == expected
    assert expected == "2e5bdb9f1313ebeef365cf4e954b1ad89b41351e13b905bfe4dd8ab2c34a40f9"


@pytest.mark.parametrize(
    "other",
    [
        ("digits", 3, [("image", "UINT8", (2, 1), b"\x01\x02")]),
        ("digits", 3, [("image", "INT8", (1, 2), b"\x01\x02")]),
        ("digits", 3, [("imag", "eUINT8", (1, 2), b"\x01\x02")]),
        ("digits", 3, [("image", "UINT8", (1, 2), b"\x01\x03")]),
        ("digits", 4, [TENSOR]),
        ("digit", 3, [TENSOR]),
        ("digits", 3, [TENSOR, TENSOR]),
        ("digits", 3, []),
    ],
)
def test_every_part_counts(other: tuple[str, int, list[tuple[str, str, tuple[int, ...], bytes]]]) -> None:
    """No two different requests share a digest because their parts run together."""
    assert payload_digest(*other) != payload_digest("digits", 3, [TENSOR])


@given(raw=st.binary(max_size=64), dtype=st.sampled_from(["u1", "?", "<f2", "<i8"]))
@settings(max_examples=100, deadline=None)
def test_arrays_and_their_bytes_have_one_digest(raw: bytes, dtype: str) -> None:
    """Client and server may hash an array or the bytes of the wire, also an empty one."""
    array = np.frombuffer(raw[: len(raw) // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize], dtype)
    from_array = payload_digest("m", 1, [("x", "T", array.shape, array.data)])
    assert from_array == payload_digest("m", 1, [("x", "T", array.shape, array.tobytes())])


def test_negative_numbers_are_the_callers_fault() -> None:
    """Requests are checked before they are hashed."""
    with pytest.raises(ApiMisuse):
        payload_digest("digits", 1, [("image", "UINT8", (-1,), b"")])
