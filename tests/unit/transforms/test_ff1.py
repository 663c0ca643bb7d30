"""FF1 against NIST's samples, Wycheproof's vectors and an independent implementation, and its byte tables."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import naive_transforms as naive
from tessera.transforms import FF1, TransformError
from tessera.transforms.ff1 import byte_tables, digits_of, inverted

VECTORS = Path(__file__).resolve().parents[2] / "vectors"
WYCHEPROOF: dict[str, Any] = json.loads((VECTORS / "ff1_wycheproof.json").read_text(encoding="utf-8"))
FILES = {name: part for name, part in WYCHEPROOF.items() if isinstance(part, dict)}

K128 = "2B7E151628AED2A6ABF7158809CF4F3C"
K192 = K128 + "EF4359D8D580AA4F"
K256 = K192 + "7F036D6F04FC6A94"
TENS, LETTERS = "39383736353433323130", "3737373770717273373737"
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"

NIST_SAMPLES = [
    # SP 800-38G, FF1 samples 1 to 9: key, tweak, radix, plaintext, ciphertext
    (K128, "", 10, "0123456789", "2433477484"),
    (K128, TENS, 10, "0123456789", "6124200773"),
    (K128, LETTERS, 36, "0123456789abcdefghi", "a9tv40mll9kdu509eum"),
    (K192, "", 10, "0123456789", "2830668132"),
    (K192, TENS, 10, "0123456789", "2496655549"),
    (K192, LETTERS, 36, "0123456789abcdefghi", "xbj3kv35jrawxv32ysr"),
    (K256, "", 10, "0123456789", "6657667009"),
    (K256, TENS, 10, "0123456789", "1001623463"),
    (K256, LETTERS, 36, "0123456789abcdefghi", "xs8a0azh2avyalyzuwd"),
]


@pytest.mark.parametrize(("key", "tweak", "radix", "plain", "locked"), NIST_SAMPLES)
def test_nist_samples(key: str, tweak: str, radix: int, plain: str, locked: str) -> None:
    """The nine samples that NIST publishes for FF1 hold in both directions, for the naive implementation too."""
    cipher = FF1(bytes.fromhex(key), radix)
    digits, expected = digits_of(plain, ALPHABET), digits_of(locked, ALPHABET)
    assert cipher.encrypt(digits, bytes.fromhex(tweak)) == expected
    assert cipher.decrypt(expected, bytes.fromhex(tweak)) == digits
    assert naive.ff1(bytes.fromhex(key), radix, bytes.fromhex(tweak), digits) == expected
    assert naive.ff1(bytes.fromhex(key), radix, bytes.fromhex(tweak), expected, decrypt=True) == digits


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_wycheproof(name: str) -> None:
    """Every valid case holds in both directions and every invalid one is refused with a remedy."""
    part, counts = FILES[name], Counter[str]()
    for number, key, tweak, message, locked, result, flags in part["cases"]:
        counts[result] += 1
        if result == "invalid":
            with pytest.raises(TransformError) as caught:
                encrypted(part, key, tweak, message)
            assert caught.value.remedy, (number, flags)
            continue
        cipher, digits, found = encrypted(part, key, tweak, message)
        assert found == numerals(part, locked), (number, flags)
        assert cipher.decrypt(found, bytes.fromhex(tweak)) == digits, (number, flags)
    assert counts["valid"] >= 20
    assert counts["invalid"] >= 6


def numerals(part: dict[str, Any], text: Any) -> list[int]:
    """Return a text of one of Wycheproof's files as numerals."""
    return digits_of(text, part["alphabet"]) if "alphabet" in part else list(text)


def encrypted(part: dict[str, Any], key: str, tweak: str, message: Any) -> tuple[FF1, list[int], list[int]]:
    """Return the cipher, the message and what FF1 makes of it."""
    cipher, digits = FF1(bytes.fromhex(key), part["radix"]), numerals(part, message)
    return cipher, digits, cipher.encrypt(digits, bytes.fromhex(tweak))


def test_the_wycheproof_part_is_wide() -> None:
    """All 22 files are there, pixels and the largest radix among them, texts and lists, with where they are from."""
    assert len(FILES) == 22
    assert {FILES[name]["radix"] for name in FILES} == {10, 16, 26, 32, 36, 45, 62, 64, 85, 255, 256, 65535, 65536}
    assert sum(len(part["cases"]) for part in FILES.values()) > 1500
    assert "Apache License" in WYCHEPROOF["about"]
    assert len(WYCHEPROOF["commit"]) == 40


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    key=st.sampled_from([16, 24, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    radix=st.sampled_from([2, 3, 10, 255, 256, 257, 65535, 65536]),
    tweak=st.binary(max_size=40),
    numbers=st.lists(st.integers(0, 2**32), min_size=7, max_size=60),
)
def test_naive_agrees(key: bytes, radix: int, tweak: bytes, numbers: list[int]) -> None:
    """Any key, radix, tweak and text give what the naive implementation gives, and the text back."""
    cipher, digits = FF1(key, radix), [number % radix for number in numbers]
    locked = cipher.encrypt(digits, tweak)
    assert locked == naive.ff1(key, radix, tweak, digits)
    assert cipher.decrypt(locked, tweak) == digits


@pytest.mark.parametrize(
    ("key", "radix", "digits", "tweak"),
    [
        (b"", 10, [1] * 6, b""), (bytes(31), 10, [1] * 6, b""), (bytes(16), 1, [0] * 9, b""),
        (bytes(16), 65_537, [0] * 9, b""), (bytes(16), True, [0] * 9, b""), (bytes(16), 10.0, [0] * 9, b""),
        (bytes(16), 10, [], b""), (bytes(16), 10, [1], b""), (bytes(16), 65_536, [1], b""),
        (bytes(16), 2, [1] * 6, b""),
        (bytes(16), 10, [1] * 4097, b""), (bytes(16), 10, [1, 10], b""), (bytes(16), 10, [-1, 5], b""),
        (bytes(16), 10, [1.0, 5], b""), (bytes(16), 10, "15", b""), (bytes(16), 10, [1] * 6, bytes(4097)),
    ],
)  # fmt: skip
def test_refusals(key: bytes, radix: int, digits: list[int], tweak: bytes) -> None:
    """Keys, radices, texts and tweaks outside the limits get the one typed error, both ways."""
    for direction in ("encrypt", "decrypt"):
        with pytest.raises(TransformError) as caught:
            getattr(FF1(key, radix), direction)(digits, tweak)
        assert caught.value.remedy


def test_characters_outside_the_alphabet() -> None:
    """A text with a strange character is refused."""
    with pytest.raises(TransformError):
        digits_of("12x", "0123456789")


@settings(max_examples=20, deadline=None)
@given(key=st.binary(min_size=32, max_size=32), places=st.lists(st.integers(0, 65_535), min_size=1, max_size=3))
def test_byte_tables_are_ff1(key: bytes, places: list[int]) -> None:
    """A table made in one piece has what FF1 gives for each byte as eight bits; its inverse undoes it (rule T-17)."""
    tweaks = [place.to_bytes(4, "big") for place in places]
    tables, cipher = byte_tables(key, tweaks), FF1(key, 2)
    for row, tweak in zip(tables, tweaks, strict=True):
        for value in range(0, 256, 17):
            bits = cipher.encrypt([value >> (7 - bit) & 1 for bit in range(8)], tweak)
            assert row[value] == sum(bit << (7 - place) for place, bit in enumerate(bits))
    back = inverted(tables)
    assert (np.take_along_axis(back, tables.astype(np.int64), axis=1) == np.arange(256)).all()


def test_many_tables_are_made_in_parts() -> None:
    """More tables than one part holds are the same tables."""
    tweaks = [place.to_bytes(4, "big") for place in range(4100)]
    tables = byte_tables(bytes(32), tweaks)
    assert (tables[4095:4098] == byte_tables(bytes(32), tweaks[4095:4098])).all()
    assert len({row.tobytes() for row in tables}) == 4100


@pytest.mark.parametrize("tweaks", [[b"", b"1"], [bytes(15)]])
def test_refused_tweaks_of_tables(tweaks: list[bytes]) -> None:
    """Tables take short tweaks of one length."""
    with pytest.raises(TransformError):
        byte_tables(bytes(32), tweaks)


def test_nothing_shows_the_key() -> None:
    """The repr names the radix alone."""
    assert repr(FF1(b"canary-key-that-must-not-be-seen", 256)) == "FF1(radix=256)"
