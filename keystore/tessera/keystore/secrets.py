"""Bytes that refuse to be seen by accident.

`reveal()` is the only door: grep for it in review. Each use of secret material has a nominal subclass, so a type
checker stops a content key from being used as an input key. What this does not do: Python cannot wipe memory
(docs/threat-model.md).
"""

import hmac
import secrets as _random
from typing import ClassVar, NoReturn, Self

from tessera.keystore.errors import ApiMisuse, Malformed


class SecretBytes:
    """A secret byte string: never printed, pickled, copied, hashed or compared in variable time.

    Raises `ApiMisuse` for anything that is not bytes.
    """

    __slots__ = ("_raw",)
    __hash__: ClassVar[None]  # type: ignore[assignment]  # Python sets it to None, as __eq__ is defined

    def __init__(self, raw: bytes | bytearray | memoryview) -> None:
        if not isinstance(raw, bytes | bytearray | memoryview):  # bytes(32) would be a key of 32 zeros
            raise ApiMisuse(f"{type(self).__name__} is made from bytes, not from {type(raw).__name__}")
        self._raw = bytes(raw)

    def reveal(self) -> bytes:
        """Return the raw bytes; whoever calls this answers for where they go."""
        return self._raw

    def __len__(self) -> int:
        return len(self._raw)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._raw)} bytes>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretBytes) and hmac.compare_digest(self._raw, other._raw)

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("secrets are not pickled")

    def __copy__(self) -> NoReturn:
        raise TypeError("secrets are not copied")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("secrets are not copied")


class Key32(SecretBytes):
    """A secret of exactly 32 bytes. Raises `ApiMisuse` for any other length."""

    __slots__ = ()

    def __init__(self, raw: bytes | bytearray | memoryview) -> None:
        super().__init__(raw)
        if len(self) != 32:
            raise ApiMisuse(f"{type(self).__name__} needs 32 bytes, got {len(self)}")

    @classmethod
    def generate(cls) -> Self:
        """Return 32 fresh bytes from the operating system's generator."""
        return cls(_random.token_bytes(32))


class InputKey(Key32):
    """Derives every keyed input transform; known to the vendor and the buyer, never to the node."""

    __slots__ = ()


class FingerprintKey(Key32):
    """Draws the mark in one buyer's copy of a model's weights; known to the vendor alone."""

    __slots__ = ()


class ConfirmationKey(Key32):
    """Derived from an input key; lets the node check that a client holds it without learning it."""

    __slots__ = ()


class ContentKey(Key32):
    """Decrypts one sealed package."""

    __slots__ = ()


class TierSecret(Key32):
    """Opens what one tier of one package adds to the tier below, and gives the secrets of the tiers below it."""

    __slots__ = ()


class MasterKey(Key32):
    """Wraps the terms of a store's keyring."""

    __slots__ = ()


class SigningSeed(Key32):
    """Seed of an Ed25519 key."""

    __slots__ = ()


class AgreementKey(Key32):
    """Private X25519 key; what is sealed to its public half can be opened with it."""

    __slots__ = ()


class Passphrase(SecretBytes):
    """What a person types; UTF-8. Raises `Malformed` when it is empty: it comes from outside."""

    __slots__ = ()

    def __init__(self, raw: bytes | bytearray | memoryview) -> None:
        super().__init__(raw)
        if not len(self):
            raise Malformed("a passphrase is never empty")
