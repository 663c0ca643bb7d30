"""The chunks, opened a second time by code that is written from the rules P-17 to P-22 alone."""

import hashlib
import hmac
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from support.packages import CONTENT_KEY, PROGRAM, SmallPackage, Weights, small_package
from tessera.keystore.errors import Tampered
from tessera.keystore.package import Algorithm, aead
from tessera.keystore.package.parts import Part, chunk_count
from tessera.keystore.secrets import ContentKey


def _hkdf(package: SmallPackage, label: bytes) -> bytes:
    salt = bytes.fromhex(package.manifest.package_id + package.manifest.salt)
    prk = hmac.digest(salt, CONTENT_KEY, hashlib.sha256)
    return hmac.digest(prk, label + b"\x01", hashlib.sha256)


def _open_by_the_rules(package: SmallPackage, key: str, size: int) -> bytes:
    cipher_type = AESGCM if package.manifest.algorithm == "AES-256-GCM" else ChaCha20Poly1305
    cipher = cipher_type(_hkdf(package, b"tessera/v1/package/part/" + key.encode()))
    begin, chunk, plain = package.part_begin(key), package.manifest.chunk_bytes, b""
    count = max(1, -(-size // chunk))
    for index in range(count):
        length = min(chunk, size - index * chunk)
        sealed = package.raw[begin : begin + length + 16]
        begin += length + 16
        associated = b"tessera/v1/package/chunk\n" + bytes.fromhex(package.manifest.package_id)
        associated += struct.pack(">H", len(key)) + key.encode()
        associated += struct.pack(">QBQ", index, index == count - 1, size)
        plain += cipher.decrypt(bytes(4) + struct.pack(">Q", index), sealed, associated)
    return plain


@pytest.mark.parametrize("algorithm", ["AES-256-GCM", "ChaCha20Poly1305"])
def test_the_rules_suffice(tmp_path: Path, algorithm: Algorithm) -> None:
    """Every part opens with nothing but the rules, HKDF and a standard AEAD; the digests are of the ciphertext."""
    weights = (Weights("a", "U8", (200,)), Weights("b", "U8", (128,)), Weights("none", "U8", (0,)))
    package = small_package(tmp_path / "a.tessera", weights=weights, algorithm=algorithm)
    for part in package.manifest.parts:
        expected = PROGRAM if part.kind == "program" else package.plain[part.name]
        assert _open_by_the_rules(package, part.key, part.size) == expected
        begin = package.part_begin(part.key)
        assert hashlib.sha256(package.raw[begin : begin + part.sealed_bytes]).hexdigest() == part.digest
    assert package.manifest.commitment == _hkdf(package, b"tessera/v1/package/commitment").hex()


def _cipher(
    name: str = "t", size: int = 200, package_id: str = "00" * 16, salt: str = "00" * 32, key: bytes = CONTENT_KEY
) -> aead.PartCipher:
    part = Part(name, "tensor", "U8", (size,), size, chunk_count(size, 64), "0" * 64)
    secret = aead.package_key(ContentKey(key), package_id, salt)
    return aead.PartCipher("AES-256-GCM", secret, package_id, part, 64)


@pytest.mark.parametrize(
    "other",
    [
        _cipher(name="u"),
        _cipher(size=201),
        _cipher(size=64),
        _cipher(package_id="01" + "00" * 15),
        _cipher(salt="01" + "00" * 31),
        _cipher(key=bytes(32)),
    ],
)
def test_a_chunk_opens_in_its_own_place_only(other: aead.PartCipher) -> None:
    """Name, total size, package, salt, key and index all have to be those it was sealed with."""
    sealed, plain = bytearray(80), bytearray(64)
    _cipher().seal_into(0, bytes(64), memoryview(sealed))
    _cipher().open_into(0, memoryview(sealed), memoryview(plain))
    with pytest.raises(Tampered):
        other.open_into(0, memoryview(sealed), memoryview(plain))
    for index in (1, 2, 3, 2**32):
        with pytest.raises(Tampered):
            _cipher().open_into(index, memoryview(sealed), memoryview(plain))


def test_keys_do_not_print() -> None:
    """The derived package key is a secret that refuses to be seen."""
    key = aead.package_key(ContentKey(CONTENT_KEY), "00" * 16, "00" * 32)
    assert key.reveal().hex() not in repr(key) + str(key)
