"""What is done to a tensor before it leaves the buyer: keyed block transforms (docs/spec.md, rules T-1 to T-4).

A spec is public; it travels in the manifest of a sealed package. It never holds key material.
"""

import re
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, cast, get_args

from tessera.keystore.canonical import Json
from tessera.keystore.errors import Malformed

Kind = Literal["shf", "np", "ffx"]
"""`shf` moves the values of a block, `np` inverts half of them, `ffx` replaces half of them by table."""

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MAX_STEPS: Final = 8
MAX_BLOCK: Final = 32
MAX_BLOCK_VALUES: Final = 65_536
MAX_TEXT_CHARS: Final = 160

_STEP_TEXT = re.compile(r"([a-z]{1,16}):([1-9][0-9]{0,3})(:positions)?", re.ASCII)
_POSITIONS: Final = "positions"


class TransformError(Malformed):
    """A transform spec is not one of ours, or does not fit the tensor it is applied to."""

    default_reason = "transform-invalid"


@dataclass(frozen=True, slots=True)
class Step:
    """One transform on square blocks of `block` x `block` pixels, all channels together.

    `positions`, for `ffx` alone, asks for a table of its own for each position in the block instead of one for all.
    Raises `TransformError` for an unknown kind, a block outside 1 … 32, or `positions` with another kind (rule T-2).
    """

    kind: Kind
    block: int
    positions: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise TransformError(
                "the transform's kind is not known here", remedy=f"Use one of: {', '.join(KINDS)}; or update Tessera."
            )
        if isinstance(self.block, bool) or not isinstance(self.block, int) or not 1 <= self.block <= MAX_BLOCK:
            raise TransformError(
                f"the block size of step {self.kind!r} is not a whole number from 1 to {MAX_BLOCK}",
                remedy="Choose a block size that divides the image's height and width, such as 4.",
            )
        if not isinstance(self.positions, bool) or (self.positions and self.kind != "ffx"):
            raise TransformError(
                f"step {self.kind!r} has no tables for positions", remedy="Only ffx has tables; drop the option."
            )

    def __str__(self) -> str:
        return f"{self.kind}:{self.block}" + (f":{_POSITIONS}" if self.positions else "")


@dataclass(frozen=True, slots=True)
class TransformSpec:
    """One to eight steps, applied in order; the same kind may come more than once (rule T-1).

    Raises `TransformError` for any other number of steps. `str(spec)` is the text form that `parse_text` reads.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.steps) <= MAX_STEPS:
            raise TransformError(
                f"a transform has 1 to {MAX_STEPS} steps, not {len(self.steps)}",
                remedy="Drop steps; for no transform at all leave the spec out.",
            )

    def __str__(self) -> str:
        return ",".join(str(step) for step in self.steps)

    @classmethod
    def parse_text(cls, text: str) -> Self:
        """Return the spec of a text such as `shf:4,np:4` or `ffx:4:positions` (rule T-3). Raises `TransformError`."""
        if len(text) > MAX_TEXT_CHARS:
            raise TransformError(
                f"the transform text is longer than {MAX_TEXT_CHARS} characters", remedy="Write it like shf:4,np:4."
            )
        matches = [_STEP_TEXT.fullmatch(part) for part in text.split(",")]
        for number, match in enumerate(matches):
            if match is None:
                raise TransformError(
                    f"step {number} of the transform text is not KIND:BLOCK",
                    remedy="Write it like shf:4,np:4 or ffx:4:positions.",
                )
        found = [match for match in matches if match is not None]
        return cls(tuple(Step(cast(Kind, match[1]), int(match[2]), match[3] is not None) for match in found))

    def to_json(self) -> list[Json]:
        """Return the form kept in manifests: a list of `{"block": B, "kind": K}` in order (rule T-4)."""
        tables: dict[str, Json] = {"tables": _POSITIONS}
        return [{"kind": step.kind, "block": step.block, **(tables if step.positions else {})} for step in self.steps]

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Return the spec of a parsed JSON value. Raises `TransformError` for all that `to_json` cannot write."""
        if not isinstance(value, list):
            raise TransformError("a transform is not a list of steps", remedy="Rebuild the package with Tessera.")
        return cls(tuple(_step(number, item) for number, item in enumerate(value[: MAX_STEPS + 1])))


def _step(number: int, value: Any) -> Step:
    form = value if isinstance(value, dict) else {}
    if set(form) - {"tables"} != {"kind", "block"} or not isinstance(form["kind"], str):
        raise TransformError(
            f"step {number} of a transform is not an object of kind, block and, for ffx, tables",
            remedy="Rebuild the package with Tessera, or update Tessera if the package is newer.",
        )
    if form.get("tables", _POSITIONS) != _POSITIONS:
        raise TransformError(
            f"the tables of step {number} are not {_POSITIONS!r}", remedy="Leave tables out for one table, or update."
        )
    return Step(cast(Kind, form["kind"]), form["block"], "tables" in form)
