"""Secret files on disk, with or without a passphrase (docs/spec.md, rules K-10 to K-12).

    save_identity(path, identity)                    PATH (0600) and PATH.pub (0644, public half)
    load_identity(path, lambda: ask_passphrase())    the callable is asked only when the file is locked

A locked file is XChaCha20-Poly1305 under an Argon2id key; kind, public part and cost are associated data, so none of
them can be changed without the passphrase. An open file relies on its permission bits; one that others may read is
refused.
"""

import os
import secrets as _random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args

import nacl.bindings as sodium
import nacl.pwhash
from nacl.exceptions import CryptoError

from tessera.keystore import canonical
from tessera.keystore._claims import HEX_16_BYTES, check_fields, check_integer, check_text
from tessera.keystore._files import PRIVATE_MODE, PUBLIC_MODE, read_limited, write_atomically
from tessera.keystore.canonical import Json
from tessera.keystore.errors import ApiMisuse, Conflict, Malformed, Tampered, Unavailable, WrongKey
from tessera.keystore.identity import Identity, PublicIdentity, Role
from tessera.keystore.jws import b64u, b64u_decode
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey, Key32, Passphrase, SecretBytes

FORMAT = "tessera-key-file/1"
KINDS = frozenset({"identity", "input-key", "package-secrets"})
MAX_FILE_BYTES = 16_384
MAX_SECRET_BYTES = 4096
SALT_BYTES = nacl.pwhash.argon2id.SALTBYTES
NONCE_BYTES = sodium.crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
MAX_OPERATIONS = 16
MAX_MEMORY_BYTES = 1 << 30

PassphraseSource = Callable[[], Passphrase]


class KdfCost(Enum):
    """What a guess at a passphrase costs: Argon2id operations and bytes of memory, libsodium's named profiles."""

    interactive = (2, 64 << 20)
    moderate = (3, 256 << 20)
    sensitive = (4, 1 << 30)
    danger_for_tests = (1, 8192)
    """No protection at all; only to keep tests fast."""

    @property
    def operations(self) -> int:
        """Argon2id passes."""
        return self.value[0]

    @property
    def memory_bytes(self) -> int:
        """Argon2id memory."""
        return self.value[1]


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What a key file holds: the public part as it stands there, and the secret."""

    public: dict[str, Any]
    secret: SecretBytes


def stretch(passphrase: Passphrase, *, salt: bytes, operations: int, memory_bytes: int) -> Key32:
    """Return 32 bytes of Argon2id (version 1.3, one lane) over the passphrase (rule K-11).

    Raises `Malformed` for a cost beyond `MAX_OPERATIONS` or `MAX_MEMORY_BYTES`, or a salt that is not 16 bytes;
    `Unavailable` when the machine has not the memory.
    """
    check_integer(operations, 1, MAX_OPERATIONS, "Argon2id operations")
    check_integer(memory_bytes, nacl.pwhash.argon2id.MEMLIMIT_MIN, MAX_MEMORY_BYTES, "Argon2id memory")
    if len(salt) != SALT_BYTES:
        raise Malformed(f"an Argon2id salt has {SALT_BYTES} bytes")
    try:
        return Key32(nacl.pwhash.argon2id.kdf(32, passphrase.reveal(), salt, operations, memory_bytes))
    except CryptoError as error:
        raise Unavailable(f"Argon2id could not get {memory_bytes} bytes of memory") from error


def write_key_file(
    path: str | Path,
    kind: str,
    public: dict[str, Json],
    secret: SecretBytes,
    *,
    passphrase: Passphrase | None = None,
    overwrite: bool = False,
    cost: KdfCost = KdfCost.interactive,
) -> None:
    """Write a key file of mode 0600. Raises `Conflict` if it exists, unless `overwrite`; `Denied`, `Unavailable`."""
    if kind not in KINDS or not 0 < len(secret) <= MAX_SECRET_BYTES:
        raise ApiMisuse("a key file has a known kind and a secret of 1 to 4096 bytes")
    document: dict[str, Json] = {"format": FORMAT, "kind": kind, "public": public}
    if passphrase is None:
        document |= {"protection": "none", "secret": b64u(secret.reveal())}
    else:
        document |= _lock(document, secret, passphrase, cost)
    raw = canonical.dumps(document) + b"\n"
    if len(raw) > MAX_FILE_BYTES:
        raise ApiMisuse(f"a key file has at most {MAX_FILE_BYTES} bytes")
    write_atomically(Path(path), raw, mode=PRIVATE_MODE, overwrite=overwrite)


def read_key_file(path: str | Path, kind: str, passphrase: PassphraseSource | None = None) -> KeyFile:
    """Read a key file of `kind`; `passphrase` is called only when the file is locked.

    Raises `NotFound`; `Denied` (reason `key-file-exposed`: others may read it); `Malformed` (not a key file, or one of
    another kind); `WrongKey` (reason `wrong-passphrase`; also when the public part of a locked file was changed, and
    when the file is locked and no passphrase is offered).
    """
    return decode_key_file(read_limited(Path(path), max_bytes=MAX_FILE_BYTES, private=True), kind, passphrase)


_COMMON = frozenset({"format", "kind", "public", "protection", "secret"})
_LOCKED = frozenset({"operations", "memory_bytes", "salt", "nonce"})
_LOCK_NAME = "argon2id+xchacha20-poly1305"


def _lock(document: dict[str, Json], secret: SecretBytes, passphrase: Passphrase, cost: KdfCost) -> dict[str, Json]:
    salt, nonce = _random.token_bytes(SALT_BYTES), _random.token_bytes(NONCE_BYTES)
    lock: dict[str, Json] = {
        "protection": _LOCK_NAME,
        "operations": cost.operations,
        "memory_bytes": cost.memory_bytes,
        "salt": b64u(salt),
        "nonce": b64u(nonce),
    }
    key = stretch(passphrase, salt=salt, operations=cost.operations, memory_bytes=cost.memory_bytes)
    box = sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(
        secret.reveal(), _associated_data(document | lock), nonce, key.reveal()
    )
    return lock | {"secret": b64u(box)}


def _associated_data(document: dict[str, Json]) -> bytes:
    """Everything in the file but the ciphertext (rule K-11)."""
    return b"tessera/v1/key-file\n" + canonical.dumps({name: document[name] for name in document if name != "secret"})


def decode_key_file(raw: bytes, kind: str, passphrase: PassphraseSource | None = None) -> KeyFile:
    """Read a key file's bytes that came by another way than a path. Raises as `read_key_file`."""
    if len(raw) > MAX_FILE_BYTES:
        raise Malformed(f"a key file has at most {MAX_FILE_BYTES} bytes")
    document = check_fields(canonical.parse(raw, max_bytes=MAX_FILE_BYTES), _COMMON, _LOCKED, "key file")
    if document["format"] != FORMAT:
        raise Malformed(f"not a key file of format {FORMAT}")
    found = document["kind"]
    if found != kind:
        shown = found if isinstance(found, str) and found in KINDS else "unknown"
        raise Malformed(f"this key file is of kind {shown}; one of kind {kind} is needed")
    if not isinstance(document["public"], dict):
        raise Malformed("the public part of a key file is an object")
    tag_bytes = 0 if document["protection"] == "none" else sodium.crypto_aead_xchacha20poly1305_ietf_ABYTES
    box = _binary(document, "secret", MAX_SECRET_BYTES + tag_bytes)
    if len(box) <= tag_bytes:
        raise Malformed("the secret of a key file is too short")
    if document["protection"] == "none":
        check_fields(document, _COMMON, frozenset(), "key file")
        return KeyFile(document["public"], SecretBytes(box))
    if document["protection"] != _LOCK_NAME:
        raise Malformed("a key file is protected by nothing or by a passphrase, in a way that this version knows")
    check_fields(document, _COMMON | _LOCKED, frozenset(), "key file")
    return KeyFile(document["public"], _unlock(document, box, passphrase))


def _unlock(document: dict[str, Any], box: bytes, passphrase: PassphraseSource | None) -> SecretBytes:
    nonce = _binary(document, "nonce", NONCE_BYTES)
    if len(nonce) != NONCE_BYTES:
        raise Malformed("the nonce of a key file is too short")
    salt = _binary(document, "salt", SALT_BYTES)
    if passphrase is None:
        raise WrongKey(
            "the key file is locked by a passphrase", reason="wrong-passphrase", remedy="give its passphrase"
        )
    key = stretch(passphrase(), salt=salt, operations=document["operations"], memory_bytes=document["memory_bytes"])
    try:
        return SecretBytes(
            sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(box, _associated_data(document), nonce, key.reveal())
        )
    except CryptoError as error:
        raise WrongKey("the passphrase does not open the key file", reason="wrong-passphrase") from error


def _binary(document: dict[str, Any], name: str, max_bytes: int) -> bytes:
    text = document[name]
    if not isinstance(text, str):
        raise Malformed(f"{name} of a key file is not a string")
    return b64u_decode(text, max_bytes=max_bytes)


def public_path(path: str | Path) -> Path:
    """Return where `save_identity` puts the public half: PATH with `.pub` appended."""
    return Path(f"{Path(path)}.pub")


def save_identity(
    path: str | Path,
    identity: Identity,
    passphrase: Passphrase | None = None,
    *,
    overwrite: bool = False,
    cost: KdfCost = KdfCost.interactive,
) -> None:
    """Write PATH (secret, 0600) and PATH.pub (public, 0644). Raises `Conflict` if either exists, unless `overwrite`."""
    public = identity.public
    if not overwrite and os.path.lexists(public_path(path)):
        raise Conflict(f"{public_path(path)} exists already", remedy="choose another path")
    part: dict[str, Json] = {"role": public.role, "name": public.name, "key_id": public.key_id}
    secret = identity.export_secret()
    write_key_file(path, "identity", part, secret, passphrase=passphrase, overwrite=overwrite, cost=cost)
    write_atomically(public_path(path), public.to_json() + b"\n", mode=PUBLIC_MODE, overwrite=overwrite)


def load_identity(path: str | Path, passphrase: PassphraseSource | None = None) -> Identity:
    """Read what `save_identity` wrote at PATH. Raises as `read_key_file`; `Tampered` for a key id not the key's."""
    file = read_key_file(path, "identity", passphrase)
    part = check_fields(file.public, frozenset({"role", "name", "key_id"}), frozenset(), "public part of an identity")
    identity = Identity.from_secret(_role(part["role"]), part["name"], file.secret)
    if identity.key_id != part["key_id"]:
        raise Tampered("the public part of the key file does not belong to its secret")
    return identity


def load_public_identity(path: str | Path) -> PublicIdentity:
    """Read a `.pub` file. Raises `NotFound`, `Denied` or `Malformed`."""
    return PublicIdentity.from_json(read_limited(Path(path), max_bytes=MAX_FILE_BYTES))


def save_input_key(
    path: str | Path,
    key: InputKey,
    passphrase: Passphrase | None = None,
    *,
    overwrite: bool = False,
    cost: KdfCost = KdfCost.interactive,
) -> None:
    """Write an input key; its public part is the input key id. Raises as `write_key_file`."""
    part: dict[str, Json] = {"input_key_id": input_key_id(key)}
    write_key_file(path, "input-key", part, key, passphrase=passphrase, overwrite=overwrite, cost=cost)


def load_input_key(path: str | Path, passphrase: PassphraseSource | None = None) -> InputKey:
    """Read what `save_input_key` wrote. Raises as `read_key_file`, or `Tampered` when the id is not the key's."""
    file = read_key_file(path, "input-key", passphrase)
    part = check_fields(file.public, frozenset({"input_key_id"}), frozenset(), "public part of an input key")
    if len(file.secret) != 32:
        raise Malformed("an input key has 32 bytes")
    key = InputKey(file.secret.reveal())
    if input_key_id(key) != check_text(part["input_key_id"], HEX_16_BYTES, "input_key_id"):
        raise Tampered("the public part of the key file does not belong to its secret")
    return key


def _role(value: object) -> Role:
    for role in get_args(Role):
        if value == role:
            known: Literal["issuer", "node", "buyer"] = role
            return known
    raise Malformed("the role of an identity is issuer, node or buyer")
