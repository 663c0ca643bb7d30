"""Proof of possession and key confirmation: what a buyer answers to a challenge (docs/spec.md, rules W-1 to W-6).

The proof binds purpose, nonce, node and licence, so an answer to one challenge is worthless for another purpose, on
another node, or with another licence. The confirmation shows that the client holds the input key; the node checks it
with a key from which the input key cannot be computed. Nonces are the server's to invent, and to accept once.
"""

import hashlib
import hmac
from typing import Literal, get_args

from tessera.keystore import _ed25519, kdf
from tessera.keystore._claims import KEY_ID, length_prefixed
from tessera.keystore.errors import ApiMisuse, Denied, Unauthenticated
from tessera.keystore.identity import Identity, thumbprint
from tessera.keystore.secrets import ConfirmationKey, InputKey

NONCE_BYTES = 32
DIGEST_BYTES = 32
CONFIRMATION_BYTES = 32

Purpose = Literal["open-session", "renew-session", "fetch-grant"]

_PROOF_LABEL = b"tessera/v1/proof\n"
_CONFIRMATION_LABEL = b"tessera/v1/key-confirmation\n"


def proof_message(purpose: Purpose, nonce: bytes, node_id: str, licence_digest: bytes) -> bytes:
    """Return the bytes a buyer signs (rule W-2). Raises `ApiMisuse` for a field of the wrong form."""
    if purpose not in get_args(Purpose):
        raise ApiMisuse("no such purpose of a proof")
    return _PROOF_LABEL + length_prefixed(purpose.encode("ascii")) + _context(nonce, node_id, licence_digest)


def sign_proof(identity: Identity, purpose: Purpose, nonce: bytes, node_id: str, licence_digest: bytes) -> bytes:
    """Return the buyer's 64-byte signature over `proof_message`."""
    return identity.sign(proof_message(purpose, nonce, node_id, licence_digest))


def check_proof(
    public_key: bytes,
    signature: bytes,
    purpose: Purpose,
    nonce: bytes,
    node_id: str,
    licence_digest: bytes,
    *,
    expected_buyer_id: str,
) -> None:
    """Return when the holder of the key behind `expected_buyer_id` made the proof (rule W-3).

    Raises `Denied` with reason `licence-not-yours` when `public_key` is another key, `Unauthenticated` with reason
    `bad-proof` when the signature does not verify. `public_key`, `signature` and `nonce` may be any bytes.
    """
    if not hmac.compare_digest(thumbprint(public_key).encode("ascii"), expected_buyer_id.encode("utf-8")):
        raise Denied(
            "the licence is bound to another buyer's key",
            reason="licence-not-yours",
            remedy="use the identity that the licence was issued to",
        )
    if len(nonce) != NONCE_BYTES or not _ed25519.verifies(
        public_key, proof_message(purpose, nonce, node_id, licence_digest), signature
    ):
        raise Unauthenticated("the signature over the challenge does not verify", reason="bad-proof")


def input_key_id(key: InputKey) -> str:
    """Return the id of an input key, 32 hexadecimal digits, from which the key cannot be computed (rule W-4)."""
    return kdf.derive(key.reveal(), "tessera/v1/input-key-id", length=16).hex()


def confirmation_key(key: InputKey) -> ConfirmationKey:
    """Return the key with which a node checks confirmations; one-way, so it derives no transform (rule W-4)."""
    return ConfirmationKey(kdf.derive(key.reveal(), "tessera/v1/confirmation-key"))


def confirm(key: ConfirmationKey, nonce: bytes, node_id: str, licence_digest: bytes) -> bytes:
    """Return the 32-byte HMAC-SHA256 that shows knowledge of the input key (rule W-5)."""
    return hmac.digest(key.reveal(), _CONFIRMATION_LABEL + _context(nonce, node_id, licence_digest), hashlib.sha256)


def check_confirmation(
    key: ConfirmationKey, confirmation: bytes, nonce: bytes, node_id: str, licence_digest: bytes
) -> None:
    """Return when `confirmation` is what `confirm` gives. Raises `Denied` with reason `wrong-input-key`."""
    if len(nonce) != NONCE_BYTES or not hmac.compare_digest(confirm(key, nonce, node_id, licence_digest), confirmation):
        raise Denied(
            "the input key is not the one that the licence names",
            reason="wrong-input-key",
            remedy="use the input key of this licence's grant",
        )


def _context(nonce: bytes, node_id: str, licence_digest: bytes) -> bytes:
    if len(nonce) != NONCE_BYTES or len(licence_digest) != DIGEST_BYTES or KEY_ID.fullmatch(node_id) is None:
        raise ApiMisuse("a proof needs a 32-byte nonce, a node's key id and a 32-byte licence digest")
    return length_prefixed(nonce, node_id.encode("ascii"), licence_digest)
