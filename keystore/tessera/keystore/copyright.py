"""Copyright records: who owns a model, who bought it and under which licence (docs/spec.md, C rules).

An input key is bound to a record before anything is derived from it, so that a transform stands for buyer and record
together. A vendor keeps one master input key for each package; every buyer's own key follows from it and the record.
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any, Final, Self

from tessera.keystore import canonical
from tessera.keystore._claims import check_fields, check_printable
from tessera.keystore.canonical import Json
from tessera.keystore.errors import Malformed
from tessera.keystore.kdf import expand, extract
from tessera.keystore.secrets import InputKey

MAX_PART_CHARACTERS: Final = 128
MAX_RECORD_BYTES: Final = 2048

_REASON: Final = "copyright-malformed"
_PARTS: Final = frozenset({"owner", "buyer", "licence"})
_REMEDY: Final = 'Write it as {"buyer":"…","licence":"…","owner":"…"}: three texts of 1 to 128 printable characters.'
_BUYER_LABEL: Final = b"tessera/v1/buyer-input-key\n"
_BINDING_LABEL: Final = b"tessera/v1/copyright-record\n"


@dataclass(frozen=True, slots=True)
class CopyrightRecord:
    """Three texts of 1 to 128 printable characters (rule C-1). Raises `Malformed`, reason `copyright-malformed`."""

    owner: str
    buyer: str
    licence: str

    def __post_init__(self) -> None:
        with _malformed():
            for name in sorted(_PARTS):
                check_printable(getattr(self, name), MAX_PART_CHARACTERS, f"the {name} of a copyright record")
            if len(canonical.dumps(self.to_json())) > MAX_RECORD_BYTES:
                raise Malformed(f"a copyright record has more than {MAX_RECORD_BYTES} bytes")

    @property
    def label(self) -> str:
        """For people: `Globex (L-17)`."""
        return f"{self.buyer} ({self.licence})"

    def to_json(self) -> dict[str, Json]:
        """Return the object kept in licences."""
        return {"owner": self.owner, "buyer": self.buyer, "licence": self.licence}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Return the record of a parsed JSON value. Raises `Malformed` for all that `to_json` cannot write."""
        with _malformed():
            found = check_fields(value, _PARTS, frozenset(), "copyright record")
        return cls(found["owner"], found["buyer"], found["licence"])

    def to_bytes(self) -> bytes:
        """Return its canonical form, the bytes that keys are bound to (rule C-2)."""
        return canonical.dumps(self.to_json())

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Return the record of its canonical form. Raises `Malformed` for any other spelling of it."""
        with _malformed():
            found = cls.from_json(canonical.parse(raw, max_bytes=MAX_RECORD_BYTES))
            if found.to_bytes() != raw:
                raise Malformed("the copyright record is not in canonical form")
            return found

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical form, 32 bytes."""
        return hashlib.sha256(self.to_bytes()).digest()


def buyer_input_key(master: InputKey, record: CopyrightRecord) -> InputKey:
    """Return the input key of a record's buyer, derived from the package's master key (rule C-3)."""
    return InputKey(expand(extract(b"", master.reveal()), _BUYER_LABEL + record.to_bytes(), 32))


def bound_key(key: InputKey, record: CopyrightRecord) -> InputKey:
    """Return `key` bound to `record`: what transforms and key ids are made from (rule C-4)."""
    return InputKey(hmac.digest(key.reveal(), _BINDING_LABEL + record.to_bytes(), hashlib.sha256))


class _malformed:  # noqa: N801 - used as a with statement only
    """Give every `Malformed` our reason and a remedy."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Malformed) and error.reason != _REASON:
            raise Malformed(error.public, reason=_REASON, remedy=_REMEDY) from error
