"""Identities of issuers, nodes and buyers: an Ed25519 key to sign with and an X25519 key to be sealed to.

The key id is the RFC 7638 thumbprint of the Ed25519 key, so it names the key and nothing else; the name is a label for
people that nobody may decide by (docs/spec.md, rules K-4 to K-8). PyNaCl's key objects print themselves, so none is
made here: libsodium is called with bytes that stay in `SecretBytes` until that call.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol, Self, get_args

import nacl.bindings as sodium
from nacl.exceptions import CryptoError

from tessera.keystore import _ed25519, canonical
from tessera.keystore._claims import check_fields, check_printable
from tessera.keystore.errors import ApiMisuse, Malformed, Tampered, WrongKey
from tessera.keystore.jws import b64u, b64u_decode
from tessera.keystore.secrets import AgreementKey, SecretBytes, SigningSeed

Role = Literal["issuer", "node", "buyer"]

PUBLIC_FORMAT = "tessera-public-identity/1"
MAX_PUBLIC_BYTES = 4096
MAX_NAME_CHARACTERS = 64
SECRET_BYTES = 64
"""Length of an exported identity: 32 bytes of Ed25519 seed, then 32 bytes of X25519 private key."""

_FIELDS = frozenset({"format", "role", "name", "verify_key", "seal_key"})
_CURVE25519_PRIME = 2**255 - 19
_ANY_SCALAR = bytes([1]) * 32


class Signer(Protocol):
    """What can sign: an `Identity` here, a hardware token elsewhere."""

    @property
    def key_id(self) -> str:
        """Key id of the public half (rule K-6)."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature over `message`."""
        ...


def thumbprint(verify_key: bytes) -> str:
    """Return the key id of an Ed25519 public key: its RFC 7638 SHA-256 thumbprint, 43 characters (rule K-6)."""
    jwk = f'{{"crv":"Ed25519","kty":"OKP","x":"{b64u(verify_key)}"}}'
    return b64u(hashlib.sha256(jwk.encode("ascii")).digest())


@dataclass(frozen=True, slots=True)
class PublicIdentity:
    """The half of an identity that everybody may see. Raises `Malformed` for a role, name or key outside the rules."""

    role: Role
    name: str
    verify_key: bytes
    """Ed25519 public key, 32 bytes."""
    seal_key: bytes
    """X25519 public key, 32 bytes."""

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise Malformed("the role of an identity is issuer, node or buyer")
        check_printable(self.name, MAX_NAME_CHARACTERS, "the name of an identity")
        if not _ed25519.acceptable(self.verify_key):
            raise Malformed("verify_key is not an acceptable Ed25519 public key")
        if not _acceptable_seal_key(self.seal_key):
            raise Malformed("seal_key is not an acceptable X25519 public key")

    @property
    def key_id(self) -> str:
        """Thumbprint of `verify_key`, 43 characters (rule K-6)."""
        return thumbprint(self.verify_key)

    def to_json(self) -> bytes:
        """Return the canonical document (rule K-7); `from_json(x.to_json()) == x`."""
        return canonical.dumps(
            {
                "format": PUBLIC_FORMAT,
                "role": self.role,
                "name": self.name,
                "verify_key": b64u(self.verify_key),
                "seal_key": b64u(self.seal_key),
            }
        )

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Read the document of rule K-7; white space around it is allowed, for files. Raises `Malformed`."""
        if len(raw) > MAX_PUBLIC_BYTES:
            raise Malformed(f"a public identity has at most {MAX_PUBLIC_BYTES} bytes")
        fields = check_fields(
            canonical.loads(raw.strip(), max_bytes=MAX_PUBLIC_BYTES), _FIELDS, frozenset(), "identity"
        )
        if fields["format"] != PUBLIC_FORMAT:
            raise Malformed(f"not a public identity of format {PUBLIC_FORMAT}")
        return cls(fields["role"], fields["name"], _key(fields, "verify_key"), _key(fields, "seal_key"))

    def seal(self, secret: SecretBytes) -> bytes:
        """Return a libsodium sealed box, 48 bytes longer than `secret`, that only this identity can open (rule K-8)."""
        return sodium.crypto_box_seal(secret.reveal(), self.seal_key)

    def verify(self, message: bytes, signature: bytes) -> None:
        """Return when `signature` is this identity's over `message`. Raises `Tampered`."""
        if not _ed25519.verifies(self.verify_key, message, signature):
            raise Tampered("the signature does not verify")


class Identity:
    """An identity with its secret half: never printed, pickled or copied."""

    __slots__ = ("_agreement", "_seed", "_signing", "public")

    def __init__(self, role: Role, name: str, seed: SigningSeed, agreement: AgreementKey) -> None:
        verify_key, signing = sodium.crypto_sign_seed_keypair(seed.reveal())
        self._seed = seed
        self._signing = SecretBytes(signing)
        self._agreement = agreement
        self.public = PublicIdentity(role, name, verify_key, sodium.crypto_scalarmult_base(agreement.reveal()))
        """The public half."""

    @classmethod
    def generate(cls, role: Role, name: str) -> Self:
        """Make fresh keys. Raises `Malformed` for a role or name outside rule K-7."""
        return cls(role, name, SigningSeed.generate(), AgreementKey.generate())

    @classmethod
    def from_secret(cls, role: Role, name: str, secret: SecretBytes) -> Self:
        """Rebuild from `export_secret()`. Raises `Malformed` unless it is 64 bytes."""
        if len(secret) != SECRET_BYTES:
            raise Malformed(f"the secret half of an identity has {SECRET_BYTES} bytes")
        raw = secret.reveal()
        return cls(role, name, SigningSeed(raw[:32]), AgreementKey(raw[32:]))

    def export_secret(self) -> SecretBytes:
        """Return the 64 secret bytes (rule K-7), for a key file or the store."""
        return SecretBytes(self._seed.reveal() + self._agreement.reveal())

    @property
    def key_id(self) -> str:
        """Key id of the public half (rule K-6)."""
        return self.public.key_id

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature over `message`."""
        return sodium.crypto_sign(message, self._signing.reveal())[: _ed25519.SIGNATURE_BYTES]

    def open(self, box: bytes) -> bytes:
        """Return what was sealed to this identity. Raises `Malformed` for a box too short, `WrongKey` for another's."""
        if len(box) < sodium.crypto_box_SEALBYTES:
            raise Malformed("a sealed box has at least 48 bytes")
        try:
            return sodium.crypto_box_seal_open(box, self.public.seal_key, self._agreement.reveal())
        except CryptoError as error:
            raise WrongKey("the box is not sealed to this identity") from error

    def __repr__(self) -> str:
        return f"<Identity {self.public.role} {self.public.name!r} {self.key_id}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("identities are not pickled or copied")


def _key(fields: dict[str, Any], name: str) -> bytes:
    text = fields[name]
    if not isinstance(text, str):
        raise Malformed(f"{name} is not a string")
    return b64u_decode(text, max_bytes=32)


def _acceptable_seal_key(raw: bytes) -> bool:
    if len(raw) != 32 or int.from_bytes(raw, "little") >= _CURVE25519_PRIME:
        return False
    try:
        sodium.crypto_scalarmult(_ANY_SCALAR, raw)  # libsodium refuses points of small order, whatever the scalar
    except CryptoError:
        return False
    return True


def require_role(identity: PublicIdentity, role: Role) -> None:
    """Return when `identity` has `role`. Raises `Malformed` naming both roles, so that a swapped file is seen."""
    if role not in get_args(Role):
        raise ApiMisuse("the role of an identity is issuer, node or buyer")
    if identity.role != role:
        raise Malformed(f"this is the identity of a {identity.role}; one of a {role} is needed")
