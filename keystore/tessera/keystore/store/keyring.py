"""The terms of a store, and the lock on them: how the master key, or the passphrase it comes from, wraps the keyring.

See docs/spec.md, rules S-10 to S-13.
"""

import hmac
import itertools
import secrets as _random
import struct
from dataclasses import dataclass
from typing import Any, Literal, Self

from tessera.keystore import canonical, kdf
from tessera.keystore._claims import check_fields, check_integer
from tessera.keystore.errors import Malformed, Tampered, WrongKey
from tessera.keystore.jws import b64u, b64u_decode
from tessera.keystore.keyfile import MAX_MEMORY_BYTES, MAX_OPERATIONS, KdfCost, stretch
from tessera.keystore.secrets import Key32, MasterKey, Passphrase, SecretBytes
from tessera.keystore.store.envelope import TermKey

LOCK_FORMAT = "tessera-store-lock/1"
LOCK_MAX_BYTES = 1024
SALT_BYTES = 16
CHECK_BYTES = 32

_WRAPPING_LABEL = "tessera/v1/store/keyring-key"
_CHECK_LABEL = "tessera/v1/store/master-check"
_RING_VERSION = b"\x01"
_TERM = struct.Struct(">I32s")


class KeyringKey(Key32):
    """Derived from the master key; wraps the keyring."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Lock:
    """What is known of the master key while the store is sealed: how to derive, and a value to recognise it by."""

    kind: Literal["passphrase", "key"]
    salt: bytes
    check: bytes
    operations: int = 0
    memory_bytes: int = 0

    @classmethod
    def make(cls, master: Passphrase | MasterKey, cost: KdfCost) -> tuple[Self, KeyringKey]:
        """Return a fresh lock for `master` and the key that wraps the keyring. `cost` concerns passphrases only."""
        salt = _random.token_bytes(SALT_BYTES)
        if isinstance(master, Passphrase):
            stretched = stretch(master, salt=salt, operations=cost.operations, memory_bytes=cost.memory_bytes)
            wrapping, check = _derive(stretched, salt)
            return cls("passphrase", salt, check, cost.operations, cost.memory_bytes), wrapping
        wrapping, check = _derive(master, salt)
        return cls("key", salt, check), wrapping

    def open(self, master: Passphrase | MasterKey) -> KeyringKey:
        """Return the key that wraps the keyring; slow for passphrases. Raises `WrongKey` when it is not `master`'s."""
        if isinstance(master, Passphrase) != (self.kind == "passphrase"):
            wanted = "a passphrase" if self.kind == "passphrase" else "a master key of 32 bytes"
            raise WrongKey(f"this key store is opened by {wanted}")
        key: Key32
        if isinstance(master, Passphrase):
            key = stretch(master, salt=self.salt, operations=self.operations, memory_bytes=self.memory_bytes)
        else:
            key = master
        wrapping, check = _derive(key, self.salt)
        if hmac.compare_digest(check, self.check):
            return wrapping
        if self.kind == "passphrase":
            raise WrongKey("the passphrase does not open this key store", reason="wrong-passphrase")
        raise WrongKey("the master key does not open this key store")

    def to_json(self) -> bytes:
        """Return the canonical document of rule S-11."""
        fields: dict[str, Any] = {"format": LOCK_FORMAT, "kind": self.kind}
        fields |= {"salt": b64u(self.salt), "check": b64u(self.check)}
        if self.kind == "passphrase":
            fields |= {"operations": self.operations, "memory_bytes": self.memory_bytes}
        return canonical.dumps(fields)

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Read the document of rule S-11. Raises `Malformed`, also for a cost that would starve the machine."""
        fields = canonical.loads(raw, max_bytes=LOCK_MAX_BYTES)
        costs = frozenset({"operations", "memory_bytes"})
        known = frozenset({"format", "kind", "salt", "check"})
        slow = isinstance(fields, dict) and fields.get("kind") == "passphrase"
        fields = check_fields(fields, known | costs if slow else known, frozenset(), "the lock")
        if fields["format"] != LOCK_FORMAT or fields["kind"] not in ("passphrase", "key"):
            raise Malformed("the key store's lock is of an unknown format")
        salt, check = _bytes(fields["salt"], SALT_BYTES), _bytes(fields["check"], CHECK_BYTES)
        if not slow:
            return cls("key", salt, check)
        operations = check_integer(fields["operations"], 1, MAX_OPERATIONS, "operations")
        memory = check_integer(fields["memory_bytes"], 8192, MAX_MEMORY_BYTES, "memory_bytes")
        return cls("passphrase", salt, check, operations, memory)


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of all terms, at least one; the newest wraps, all unwrap."""

    keys: dict[int, TermKey]

    @classmethod
    def generate(cls) -> Self:
        """Return a keyring with term 1."""
        return cls({1: TermKey.generate()})

    @property
    def newest(self) -> int:
        """The term that new secrets are wrapped in."""
        return max(self.keys)

    def key(self, term: int) -> TermKey:
        """Return the key of `term`. Raises `Tampered` when there is none."""
        try:
            return self.keys[term]
        except KeyError as error:
            raise Tampered("a secret in the key store is of a term that does not exist") from error

    def with_new_term(self) -> "Keyring":
        """Return a keyring with one more term."""
        return Keyring({**self.keys, self.newest + 1: TermKey.generate()})

    def only_newest(self) -> "Keyring":
        """Return a keyring without the terms that nothing is wrapped in any more."""
        return Keyring({self.newest: self.keys[self.newest]})

    def to_secret(self) -> SecretBytes:
        """Return the bytes of rule S-12."""
        return SecretBytes(
            _RING_VERSION + b"".join(_TERM.pack(term, key.reveal()) for term, key in sorted(self.keys.items()))
        )

    @classmethod
    def from_secret(cls, secret: SecretBytes) -> Self:
        """Read the bytes of rule S-12. Raises `Malformed`."""
        raw = secret.reveal()
        body = raw[1:]
        if raw[:1] != _RING_VERSION or not body or len(body) % _TERM.size:
            raise Malformed("the keyring is of an unknown form")
        pairs = list(_TERM.iter_unpack(body))
        numbers = [number for number, _ in pairs]
        if numbers[0] < 1 or any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
            raise Malformed("the keyring's terms are not in order")
        return cls({number: TermKey(key) for number, key in pairs})


def _derive(master: Key32, salt: bytes) -> tuple[KeyringKey, bytes]:
    wrapping = KeyringKey(kdf.derive(master.reveal(), _WRAPPING_LABEL, salt=salt))
    return wrapping, kdf.derive(master.reveal(), _CHECK_LABEL, salt=salt, length=CHECK_BYTES)


def _bytes(text: object, length: int) -> bytes:
    if not isinstance(text, str) or len(raw := b64u_decode(text, max_bytes=length)) != length:
        raise Malformed("the key store's lock is of an unknown format")
    return raw
