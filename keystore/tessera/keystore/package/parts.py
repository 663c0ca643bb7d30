"""The parts of a package and where each lies in the file (rules P-8 to P-13)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, cast

from tessera.keystore.errors import Malformed
from tessera.keystore.package import fields
from tessera.keystore.tiers import MAX_TIERS

Kind = Literal["tensor", "program", "patch"]

TAG_BYTES: Final = 16
CHUNK_BYTES: Final = 1 << 20
MIN_CHUNK_BYTES: Final = 64
MAX_CHUNK_BYTES: Final = 1 << 24
MAX_PART_BYTES: Final = 1 << 46
MAX_RANK: Final = 16
PROGRAM: Final = "program"

ITEM_BYTES: Final[dict[str, int]] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one element of each safetensors dtype that a part may have."""

_DTYPES = frozenset(ITEM_BYTES)
_KINDS = frozenset({"tensor", "program", "patch"})
_FIELDS = frozenset({"name", "kind", "dtype", "shape", "size", "chunks", "digest"})
_PATCH_FIELDS = _FIELDS | {"commitment"}
_PATCH_NAMES = frozenset(f"{tier:02}" for tier in range(1, MAX_TIERS + 1))


def patch_name(tier: int) -> str:
    """Return the name of the part that holds what `tier` adds: its number in two digits (rule P-30)."""
    return f"{tier:02}"


def chunk_count(size: int, chunk_bytes: int) -> int:
    """Return how many chunks hold `size` plaintext bytes; never 0, so that an empty part is authenticated too."""
    return max(1, -(-size // chunk_bytes))


@dataclass(frozen=True)
class Part:
    """One sealed part: a tensor of weights, the program, or what a tier adds to the one below it.

    Construction raises `Malformed` (rules P-9, P-10, P-30).
    """

    name: str
    kind: Kind
    dtype: str
    """A safetensors dtype, see `ITEM_BYTES`; what the plaintext is, not what the container says."""
    shape: tuple[int, ...]
    size: int
    """Plaintext bytes: the product of the shape times the bytes of one element."""
    chunks: int
    digest: str
    """SHA-256 of the sealed bytes, 64 hexadecimal digits."""
    commitment: str = ""
    """Of a patch: 64 hexadecimal digits that only the right tier key gives (rule P-37); empty for other parts."""

    def __post_init__(self) -> None:
        fields.text(self.name, fields.TENSOR_NAME, "a part's name")
        fields.choice(self.kind, _KINDS, "a part's kind")
        fields.choice(self.dtype, _DTYPES, "a part's dtype")
        shape = tuple(fields.sequence(self.shape, 0, MAX_RANK, "a part's shape"))
        for dimension in shape:
            fields.integer(dimension, 0, MAX_PART_BYTES, "a part's dimension")
        object.__setattr__(self, "shape", shape)
        fields.integer(self.size, 0, MAX_PART_BYTES, "a part's size")
        if self.size != math.prod(shape) * ITEM_BYTES[self.dtype]:
            raise Malformed("a part's size does not follow from its shape and dtype")
        fields.integer(self.chunks, 1, MAX_PART_BYTES, "a part's number of chunks")
        fields.text(self.digest, fields.HEX_64, "a part's digest")
        if self.kind == "program" and (self.name != PROGRAM or self.dtype != "U8" or len(shape) != 1 or not self.size):
            raise Malformed("the program is not a non-empty row of bytes named program")
        if self.kind == "patch":
            self._check_patch()
        elif self.commitment:
            raise Malformed("only a patch has a key commitment of its own")

    def _check_patch(self) -> None:
        if self.name not in _PATCH_NAMES or self.dtype != "U8" or len(self.shape) != 1 or not self.size:
            raise Malformed("a patch is not a non-empty row of bytes named after its tier")
        fields.text(self.commitment, fields.HEX_64, "a patch's key commitment")

    @property
    def key(self) -> str:
        """The part's name in the container and in every derivation: `program`, `w/` and the tensor's name, or `p/` and
        the tier's number in two digits."""
        return PROGRAM if self.kind == "program" else f"{'p' if self.kind == 'patch' else 'w'}/{self.name}"

    @property
    def sealed_bytes(self) -> int:
        """Bytes in the file: the plaintext and one tag for each chunk."""
        return self.size + TAG_BYTES * self.chunks

    def to_claims(self) -> dict[str, Any]:
        """Return the JSON object of the manifest."""
        claims: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "size": self.size,
            "chunks": self.chunks,
            "digest": self.digest,
        }
        return claims | ({"commitment": self.commitment} if self.kind == "patch" else {})

    @classmethod
    def from_claims(cls, value: Any) -> Self:
        """Return the part of a JSON object. Raises `Malformed` for unknown or missing fields and bad values."""
        patch = isinstance(value, dict) and value.get("kind") == "patch"
        claims = fields.record(value, _PATCH_FIELDS if patch else _FIELDS, "a part")
        return cls(**{**claims, "kind": cast("Kind", claims["kind"])})


def extents(parts: Sequence[Part]) -> Iterator[tuple[Part, int, int]]:
    """Yield each part with its begin and end in the body: no holes, in the order of the manifest (rule P-8)."""
    begin = 0
    for part in parts:
        yield part, begin, begin + part.sealed_bytes
        begin += part.sealed_bytes
