"""What a package promises its callers: the tensors that go in and out, and the tiers of quality (rules P-14, P-15)."""

from dataclasses import dataclass
from typing import Any, Final, Self

from tessera.keystore.package import fields
from tessera.keystore.tiers import MAX_TIERS

MAX_PORTS: Final = 64
MAX_RANK: Final = 16
MAX_DIMENSION: Final = 2**31 - 1
MAX_MEASURES: Final = 32

DATATYPES: Final = frozenset(
    {"BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"}
    | {"FP16", "BF16", "FP32", "FP64", "BYTES"}
)
"""Datatypes of the Open Inference Protocol, with Triton's BF16."""

_SPEC_FIELDS = frozenset({"name", "datatype", "shape", "layout", "finite"})
_TIER_FIELDS = frozenset({"tier", "name", "quality"})


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model. Construction raises `Malformed` for anything rule P-14 forbids."""

    name: str
    datatype: str
    """An Open Inference Protocol datatype, see `DATATYPES`."""
    shape: tuple[int, ...]
    """The batch axis first, written -1; every other dimension is fixed and at least 1."""
    layout: str = ""
    """What the axes mean, such as `NCHW`; empty when nobody says."""
    finite: bool = False
    """Whether NaN and infinities are refused."""

    def __post_init__(self) -> None:
        fields.text(self.name, fields.PORT_NAME, "a tensor's name")
        fields.choice(self.datatype, DATATYPES, "a tensor's datatype")
        shape = tuple(fields.sequence(self.shape, 1, MAX_RANK, "a tensor's shape"))
        fields.integer(shape[0], -1, -1, "a tensor's batch dimension")
        for dimension in shape[1:]:
            fields.integer(dimension, 1, MAX_DIMENSION, "a tensor's dimension")
        object.__setattr__(self, "shape", shape)
        fields.text(self.layout, fields.LAYOUT, "a tensor's layout")
        fields.flag(self.finite, "a tensor's finite flag")

    def to_claims(self) -> dict[str, Any]:
        """Return the JSON object of the manifest."""
        return {
            "name": self.name,
            "datatype": self.datatype,
            "shape": list(self.shape),
            "layout": self.layout,
            "finite": self.finite,
        }

    @classmethod
    def from_claims(cls, value: Any) -> Self:
        """Return the spec of a JSON object. Raises `Malformed` for unknown or missing fields and bad values."""
        claims = fields.record(value, _SPEC_FIELDS, "a tensor spec")
        return cls(**claims)


@dataclass(frozen=True)
class Tier:
    """A level of quality that a licence may unlock; `tier` counts from 1, the highest is the full model (rule P-15)."""

    tier: int
    name: str
    quality: dict[str, float]
    """What the vendor measured, by name of the measure; finite numbers."""

    def __post_init__(self) -> None:
        fields.integer(self.tier, 1, MAX_TIERS, "a tier's number")
        fields.text(self.name, fields.LABEL, "a tier's name")
        measures = self.quality if isinstance(self.quality, dict) else None
        fields.sequence(None if measures is None else list(measures), 0, MAX_MEASURES, "a tier's measures")
        for measure, value in self.quality.items():
            fields.text(measure, fields.LABEL, "a measure's name")
            fields.number(value, "a measure")

    def to_claims(self) -> dict[str, Any]:
        """Return the JSON object of the manifest."""
        return {"tier": self.tier, "name": self.name, "quality": dict(self.quality)}

    @classmethod
    def from_claims(cls, value: Any) -> Self:
        """Return the tier of a JSON object. Raises `Malformed` for unknown or missing fields and bad values."""
        return cls(**fields.record(value, _TIER_FIELDS, "a tier"))
