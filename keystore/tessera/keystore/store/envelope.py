"""How a secret lies on the disk: `version ‖ term ‖ nonce ‖ ciphertext`, by XChaCha20-Poly1305 (rules S-7 to S-9)."""

import secrets as _random
import struct

import nacl.bindings as sodium
from nacl.exceptions import CryptoError

from tessera.keystore import canonical
from tessera.keystore.errors import Tampered
from tessera.keystore.secrets import Key32, SecretBytes

VERSION = 1
NONCE_BYTES = 24
TAG_BYTES = 16
_HEAD = struct.Struct(">BI")
MIN_BYTES = _HEAD.size + NONCE_BYTES + TAG_BYTES


class TermKey(Key32):
    """Wraps the secrets that were written in one term."""

    __slots__ = ()


def associated(label: str, **fields: str) -> bytes:
    """Return `label ‖ "\\n" ‖ canonical JSON of fields`: what an envelope is bound to (rule S-8)."""
    return label.encode("ascii") + b"\n" + canonical.dumps(fields)


def wrap(key: Key32, term: int, secret: SecretBytes, bound_to: bytes) -> bytes:
    """Return the envelope of `secret` under a fresh random nonce."""
    nonce = _random.token_bytes(NONCE_BYTES)
    sealed = sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(secret.reveal(), bound_to, nonce, key.reveal())
    return _HEAD.pack(VERSION, term) + nonce + sealed


def term_of(envelope: bytes) -> int:
    """Return the term whose key opens `envelope`. Raises `Tampered` when it is too short or of another version."""
    if len(envelope) < MIN_BYTES or envelope[0] != VERSION:
        raise Tampered("a secret in the key store is damaged")
    return int(_HEAD.unpack_from(envelope)[1])


def unwrap(key: Key32, envelope: bytes, bound_to: bytes) -> SecretBytes:
    """Return the secret. Raises `Tampered` when any byte of the envelope, `bound_to` or the key differs."""
    term_of(envelope)
    nonce, sealed = envelope[_HEAD.size : _HEAD.size + NONCE_BYTES], envelope[_HEAD.size + NONCE_BYTES :]
    try:
        return SecretBytes(sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, bound_to, nonce, key.reveal()))
    except CryptoError as error:
        raise Tampered("a secret in the key store is damaged") from error
