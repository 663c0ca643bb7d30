"""Sealing of chunks: one derived key a part, counter nonces, everything that gives a chunk its place authenticated.

This is the only module that touches `cryptography`; its key objects never leave it. Rules P-17 to P-22.
"""

import hmac
import struct
from typing import Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from tessera.keystore import kdf
from tessera.keystore.errors import Tampered, Unavailable
from tessera.keystore.package.manifest import Algorithm
from tessera.keystore.package.parts import TAG_BYTES, Part, chunk_count
from tessera.keystore.secrets import ContentKey, Key32, TierSecret

PART_LABEL: Final = "tessera/v1/package/part/"
COMMITMENT_LABEL: Final = "tessera/v1/package/commitment"
TIER_COMMITMENT_LABEL: Final = "tessera/v1/package/tier-commitment"
CHUNK_LABEL: Final = b"tessera/v1/package/chunk\n"

_CIPHERS: Final[dict[str, type[AESGCM] | type[ChaCha20Poly1305]]] = {
    "AES-256-GCM": AESGCM,
    "ChaCha20Poly1305": ChaCha20Poly1305,
}
_PLACE = struct.Struct(">QBQ")
_NONCE = struct.Struct(">4xQ")


class PackageKey(Key32):
    """HKDF's pseudo-random key of one writing of one package; every part's key is expanded from it (rule P-18)."""

    __slots__ = ()


def package_key(secret: ContentKey | TierSecret, package_id: str, salt: str) -> PackageKey:
    """Return the key that rule P-18 extracts from the content key, the package id and the salt (both hexadecimal).

    From a tier's secret it is the key of that tier's patch (rule P-37).
    """
    return PackageKey(kdf.extract(bytes.fromhex(package_id) + bytes.fromhex(salt), secret.reveal()))


def commitment(key: PackageKey, label: str = COMMITMENT_LABEL) -> str:
    """Return the 64 hexadecimal digits by which the manifest names the key without showing it (rules P-20, P-37)."""
    return kdf.expand(key.reveal(), label.encode("ascii"), 32).hex()


def commits_to(expected: str, key: PackageKey, label: str = COMMITMENT_LABEL) -> bool:
    """Return whether `expected` is the commitment to `key`, in constant time."""
    return hmac.compare_digest(expected, commitment(key, label))


class PartCipher:
    """Seals and opens the chunks of one part, each in the place it belongs (rules P-19, P-21, P-22).

    `size` is the part's plaintext bytes. Raises `Unavailable` when this build of OpenSSL lacks the algorithm.
    """

    __slots__ = ("_cipher", "_head", "_last", "_size")

    def __init__(self, algorithm: Algorithm, key: PackageKey, package_id: str, part: Part, chunk_bytes: int) -> None:
        name = part.key.encode("ascii")
        secret = kdf.expand(key.reveal(), PART_LABEL.encode("ascii") + name, 32)
        try:
            self._cipher = _CIPHERS[algorithm](secret)
        except UnsupportedAlgorithm as error:
            raise Unavailable(f"this machine's cryptographic library has no {algorithm}") from error
        self._head = CHUNK_LABEL + bytes.fromhex(package_id) + struct.pack(">H", len(name)) + name
        self._size = part.size
        self._last = chunk_count(part.size, chunk_bytes) - 1

    def seal_into(self, index: int, plain: bytes | memoryview, sealed: memoryview) -> None:
        """Write ciphertext ‖ tag of chunk `index` to `sealed`, which is exactly 16 bytes longer than `plain`."""
        self._cipher.encrypt_into(_NONCE.pack(index), plain, self._place(index), sealed)

    def open_into(self, index: int, sealed: bytes | memoryview, plain: memoryview) -> None:
        """Write the plaintext of chunk `index` to `plain`, which is exactly 16 bytes shorter than `sealed`.

        Raises `Tampered`; `plain` then holds bytes that were NOT authenticated, and the caller must wipe them.
        """
        try:
            self._cipher.decrypt_into(_NONCE.pack(index), sealed, self._place(index), plain)
        except InvalidTag:
            raise Tampered("a sealed part fails its authentication", reason="package-tampered") from None

    def _place(self, index: int) -> bytes:
        return self._head + _PLACE.pack(index, index == self._last, self._size)


def sealed_bytes(plain_bytes: int) -> int:
    """Return the bytes that a chunk of `plain_bytes` takes in the file."""
    return plain_bytes + TAG_BYTES
