"""HKDF-SHA256 against RFC 5869 and against `cryptography`."""

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from support.vectors import cases
from tessera.keystore import kdf
from tessera.keystore.errors import ApiMisuse


@pytest.mark.parametrize("case", cases("hkdf"))
def test_rfc_5869_vectors(case: dict[str, str]) -> None:
    """Test cases 1 to 3 of RFC 5869 give the printed PRK and OKM."""
    prk = kdf.extract(bytes.fromhex(case["salt"]), bytes.fromhex(case["ikm"]))
    assert prk.hex() == case["prk"]
    assert kdf.expand(prk, bytes.fromhex(case["info"]), len(case["okm"]) // 2).hex() == case["okm"]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=80), st.text("abc/-1", max_size=40), st.integers(1, 300))
def test_derive_agrees_with_cryptography(secret: bytes, salt: bytes, label: str, length: int) -> None:
    """An independent implementation gives the same bytes for any input."""
    oracle = HKDF(SHA256(), length, salt or None, label.encode())
    assert kdf.derive(secret, label, salt=salt, length=length) == oracle.derive(secret)


@pytest.mark.parametrize("length", [0, -1, 8161])
def test_lengths_outside_the_rfc_are_refused(length: int) -> None:
    """HKDF-Expand gives 1 to 8160 bytes."""
    with pytest.raises(ApiMisuse):
        kdf.expand(bytes(32), b"", length)
    assert len(kdf.expand(bytes(32), b"", 8160)) == 8160


def test_labels_keep_keys_apart() -> None:
    """Two labels give unrelated keys, and a longer output begins with the shorter one only under the same label."""
    assert kdf.derive(b"s", "tessera/v1/a") != kdf.derive(b"s", "tessera/v1/b")
    assert kdf.derive(b"s", "tessera/v1/a", length=64)[:32] == kdf.derive(b"s", "tessera/v1/a")
