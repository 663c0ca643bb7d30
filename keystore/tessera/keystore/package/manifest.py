"""The manifest: everything about a package that is public and signed (rules P-7 to P-16).

`Manifest.from_json(m.to_json()) == m`, and `Manifest.from_json(raw).to_json() == raw`; every other byte string is
`Malformed`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any, Final, Literal, Self, cast

from tessera.keystore import canonical
from tessera.keystore.canonical import Json
from tessera.keystore.errors import Malformed
from tessera.keystore.package import fields
from tessera.keystore.package.contract import MAX_PORTS, TensorSpec, Tier
from tessera.keystore.package.parts import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, Part, chunk_count, patch_name
from tessera.keystore.tiers import MAX_TIERS

Algorithm = Literal["AES-256-GCM", "ChaCha20Poly1305"]

FORMAT: Final = "tessera-package/1"
ALGORITHMS: Final = frozenset({"AES-256-GCM", "ChaCha20Poly1305"})
MAX_MANIFEST_BYTES: Final = 8 * 2**20
MAX_PARTS: Final = 65_536
MAX_STEPS: Final = 64
MAX_KEYS: Final = 1024
"""Most buyers whose bound keys one model answers."""
MAX_TIME_S: Final = 253_402_300_799
"""The last second of the year 9999."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What the vendor says about a package; the writer adds the rest. Construction raises `Malformed` (P-13 … P-15)."""

    model: str
    version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    transform: list[Json] | None = None
    """The transform's steps as `tessera.transforms` writes them, opaque here; never a key."""
    input_key_id: str | None = None
    input_key_ids: tuple[str, ...] = ()
    """Of the bound keys (rule C-4) of a model for several buyers, sorted, in the place of `input_key_id`."""
    tiers: tuple[Tier, ...] = (Tier(1, "full", {}),)
    max_batch: int = 64
    torch_version: str
    licence_text: str = ""

    def __post_init__(self) -> None:
        fields.text(self.model, fields.MODEL_NAME, "the model's name")
        fields.integer(self.version, 1, 2**31 - 1, "the model's version")
        for ports, what in ((self.inputs, "inputs"), (self.outputs, "outputs")):
            names = [spec.name for spec in _instances(ports, TensorSpec, MAX_PORTS, f"the {what}")]
            if len(set(names)) != len(names):
                raise Malformed(f"two {what} have one name")
        if self.transform is not None:
            _check_steps(self.transform)
        if self.input_key_id is not None:
            fields.text(self.input_key_id, fields.HEX_32, "the input key id")
        check_key_ids(self.input_key_ids, self.input_key_id)
        if self.input_key_ids and self.transform is None:
            raise Malformed("there are input key ids and no transform that they are for")
        if [tier.tier for tier in _instances(self.tiers, Tier, MAX_TIERS, "the tiers")] != [*_numbered(self.tiers)]:
            raise Malformed("the tiers are not numbered 1 to n")
        fields.integer(self.max_batch, 1, 65_536, "the largest batch")
        fields.text(self.torch_version, fields.LABEL, "the torch version")
        fields.prose(self.licence_text, "the licence text")


@dataclass(frozen=True, kw_only=True)
class Manifest(Draft):
    """A package's signed description. Construction raises `Malformed` unless every rule from P-7 to P-16 holds."""

    format: str = FORMAT
    package_id: str
    """32 hexadecimal digits."""
    issuer_id: str
    """Key id of the issuer whose signature stands beside the manifest."""
    created_at_s: int
    salt: str
    """64 hexadecimal digits, fresh for every writing, so that no chunk key is ever used twice (rule P-18)."""
    commitment: str
    """64 hexadecimal digits that only the right content key gives (rule P-20)."""
    algorithm: Algorithm
    chunk_bytes: int
    parts: tuple[Part, ...]
    """Sorted by `Part.key`, which is also their order in the file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.choice(self.format, frozenset({FORMAT}), "the package format")
        fields.text(self.package_id, fields.HEX_32, "the package id")
        fields.text(self.issuer_id, fields.KEY_ID, "the issuer id")
        fields.integer(self.created_at_s, 0, MAX_TIME_S, "the creation time")
        fields.text(self.salt, fields.HEX_64, "the salt")
        fields.text(self.commitment, fields.HEX_64, "the key commitment")
        fields.choice(self.algorithm, ALGORITHMS, "the algorithm")
        fields.integer(self.chunk_bytes, MIN_CHUNK_BYTES, MAX_CHUNK_BYTES, "the chunk size")
        if self.chunk_bytes & (self.chunk_bytes - 1):
            raise Malformed("the chunk size is not a power of two")
        self._check_parts()

    def _check_parts(self) -> None:
        parts = _instances(self.parts, Part, MAX_PARTS, "the parts")
        keys = [part.key for part in parts]
        if keys != sorted(set(keys)):
            raise Malformed("the parts are not sorted by name, each once")
        if "program" not in keys:
            raise Malformed("the package has no program")
        if any(part.chunks != chunk_count(part.size, self.chunk_bytes) for part in parts):
            raise Malformed("a part's number of chunks does not follow from its size")
        patches = [part.name for part in parts if part.kind == "patch"]
        wanted = [patch_name(tier.tier) for tier in self.tiers]
        if patches != wanted and (patches or len(wanted) > 1):
            raise Malformed("the tiers and the patches of the package do not belong together")

    @property
    def program(self) -> Part:
        """The part that holds the program."""
        return next(part for part in self.parts if part.kind == "program")

    @property
    def tensors(self) -> tuple[Part, ...]:
        """The parts that hold weights."""
        return tuple(part for part in self.parts if part.kind == "tensor")

    @property
    def patches(self) -> tuple[Part, ...]:
        """The parts that hold what each tier adds, from tier 1 on; empty for a package of one tier without a key."""
        return tuple(part for part in self.parts if part.kind == "patch")

    @property
    def body_bytes(self) -> int:
        """Bytes of the file behind the header."""
        return sum(part.sealed_bytes for part in self.parts)

    def to_json(self) -> bytes:
        """Return the canonical JSON that is signed (rule K-1)."""
        claims: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclass_fields(self)}
        for name in _NESTED:
            claims[name] = [entry.to_claims() for entry in claims[name]]
        claims["input_key_ids"] = list(self.input_key_ids)
        if not self.input_key_ids:
            del claims["input_key_ids"]  # as it was before there were any
        return canonical.dumps(claims)

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Return the manifest of canonical JSON. Raises `Malformed` for any bytes that `to_json` would not write."""
        found = canonical.loads(raw, max_bytes=MAX_MANIFEST_BYTES)
        several = isinstance(found, dict) and "input_key_ids" in found
        claims = fields.record(found, _FIELDS if several else _FIELDS - {"input_key_ids"}, "the manifest")
        if several:
            claims = {**claims, "input_key_ids": tuple(fields.sequence(claims["input_key_ids"], 1, MAX_KEYS, _KEYS))}
        nested = {name: _entries(claims[name], kind, name) for name, kind in _NESTED.items()}
        return cls(**cast("dict[str, Any]", {**claims, **nested}))


_KEYS: Final = "the input key ids"

_NESTED: Mapping[str, type[TensorSpec] | type[Tier] | type[Part]] = {
    "inputs": TensorSpec,
    "outputs": TensorSpec,
    "tiers": Tier,
    "parts": Part,
}
_FIELDS = frozenset(field.name for field in dataclass_fields(Manifest))


def check_key_ids(several: Any, one: str | None) -> None:
    """Raise `Malformed` unless `several` is a sorted tuple of up to 1024 different key ids, and empty beside `one`."""
    if not isinstance(several, tuple):
        raise Malformed(f"{_KEYS} are not a tuple")
    for key_id in fields.sequence(several, 0, MAX_KEYS, _KEYS):
        fields.text(key_id, fields.HEX_32, "an input key id")
    if list(several) != sorted(set(several)):
        raise Malformed(f"{_KEYS} are not sorted, each once")
    if several and one is not None:
        raise Malformed("there is one input key id, or several, and not both")


def _entries(value: Any, kind: type[TensorSpec] | type[Tier] | type[Part], what: str) -> tuple[Any, ...]:
    return tuple(kind.from_claims(entry) for entry in fields.sequence(value, 1, MAX_PARTS, f"the {what}"))


def _instances(value: Any, kind: type[Any], high: int, what: str) -> tuple[Any, ...]:
    entries = fields.sequence(value, 1, high, what)
    if not isinstance(entries, tuple) or not all(isinstance(entry, kind) for entry in entries):
        raise Malformed(f"{what} are not a tuple of {kind.__name__}")
    return entries


def _numbered(tiers: tuple[Tier, ...]) -> range:
    return range(1, len(tiers) + 1)


def _check_steps(steps: Any) -> None:
    if not isinstance(steps, list):
        raise Malformed("the transform is not a list of steps")
    fields.sequence(steps, 0, MAX_STEPS, "the transform")
    if not all(isinstance(step, dict) for step in steps):
        raise Malformed("a step of the transform is not an object")
