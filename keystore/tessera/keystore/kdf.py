"""HKDF-SHA256 (RFC 5869) and the labels that keep our keys apart.

Every derived key has a readable label that begins with `tessera/v1/`; no two purposes share one (docs/spec.md, K-3).
"""

import hashlib
import hmac

from tessera.keystore.errors import ApiMisuse

HASH_BYTES = 32


def extract(salt: bytes, secret: bytes) -> bytes:
    """Return the 32-byte pseudo-random key of RFC 5869 section 2.2; an empty salt stands for 32 zero bytes."""
    return hmac.digest(salt or bytes(HASH_BYTES), secret, hashlib.sha256)


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    """Return `length` bytes (1 … 8160) by RFC 5869 section 2.3. Raises `ApiMisuse` outside that range."""
    if not 0 < length <= 255 * HASH_BYTES:
        raise ApiMisuse(f"HKDF-Expand gives 1 to {255 * HASH_BYTES} bytes, not {length}")
    okm = block = b""
    for counter in range(1, -(-length // HASH_BYTES) + 1):
        block = hmac.digest(prk, block + info + bytes([counter]), hashlib.sha256)
        okm += block
    return okm[:length]


def derive(secret: bytes, label: str, *, salt: bytes = b"", length: int = 32) -> bytes:
    """Return `length` bytes of HKDF-SHA256 with `info` = the label in ASCII (rule K-3)."""
    return expand(extract(salt, secret), label.encode("ascii"), length)
