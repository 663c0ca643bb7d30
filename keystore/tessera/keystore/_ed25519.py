"""Ed25519 through libsodium: which public keys are acceptable, and one verification (docs/spec.md, rule K-4)."""

from functools import lru_cache

import nacl.bindings as sodium
from nacl.exceptions import BadSignatureError

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64


@lru_cache(maxsize=256)  # public keys only, few and met again and again: the check costs as much as half a verification
def acceptable(public_key: bytes) -> bool:
    """Tell whether `public_key` is 32 bytes, canonical, on the curve and of prime order (no small or mixed order)."""
    return len(public_key) == PUBLIC_KEY_BYTES and bool(sodium.crypto_core_ed25519_is_valid_point(public_key))


def verifies(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether `signature` is `public_key`'s over `message`; False for an unacceptable key or a wrong length."""
    if len(signature) != SIGNATURE_BYTES or not acceptable(public_key):
        return False
    try:
        sodium.crypto_sign_open(signature + message, public_key)
    except BadSignatureError:
        return False
    return True
