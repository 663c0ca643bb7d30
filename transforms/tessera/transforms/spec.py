"""What is done to a tensor before it leaves the buyer: keyed transforms (docs/spec.md, rules T-1 to T-4 and T-20).

A spec is public; it travels in the manifest of a sealed package. It never holds key material.
"""

import re
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, cast, get_args

from tessera.keystore.canonical import Json
from tessera.keystore.errors import Malformed

Kind = Literal["shf", "np", "ffx", "isnn"]
"""`shf` moves the values of a block, `np` inverts half of them, `ffx` replaces half of them by table; `isnn` raises
half of them by a little and lowers the others by as much."""

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
MAX_STEPS: Final = 8
MAX_BLOCK: Final = 32
MAX_BLOCK_VALUES: Final = 65_536
MAX_TEXT_CHARS: Final = 160
MAX_EPSILON: Final = 64
"""A quarter of the range of a byte."""

_STEP_TEXT = re.compile(r"([a-z]{1,16}):([1-9][0-9]{0,3})(?::([1-9][0-9]{0,3}))?(?::(positions|content))?", re.ASCII)
_POSITIONS: Final = "positions"
_CONTENT: Final = "content"
_FIXED: Final = "fixed"


class TransformError(Malformed):
    """A transform spec is not one of ours, or does not fit the tensor it is applied to."""

    default_reason = "transform-invalid"


@dataclass(frozen=True, slots=True)
class Step:
    """One transform on square blocks of `block` x `block` pixels, all channels together.

    `positions`, for `ffx` alone, asks for a table of its own for each position in the block instead of one for all.
    For `isnn` alone, `epsilon` is what each value is raised or lowered by, 1 … 64 of 255, and `content` lets the sign
    of a block depend on what it shows (rule T-20). Raises `TransformError` for all that T-2 and T-20 refuse.
    """

    kind: Kind
    block: int
    positions: bool = False
    epsilon: int = 0
    content: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise TransformError(
                "the transform's kind is not known here", remedy=f"Use one of: {', '.join(KINDS)}; or update Tessera."
            )
        if not _is_whole(self.block) or not 1 <= self.block <= MAX_BLOCK:
            raise TransformError(
                f"the block size of step {self.kind!r} is not a whole number from 1 to {MAX_BLOCK}",
                remedy="Choose a block size that divides the image's height and width, such as 4.",
            )
        if not isinstance(self.positions, bool) or (self.positions and self.kind != "ffx"):
            raise TransformError(
                f"step {self.kind!r} has no tables for positions", remedy="Only ffx has tables; drop the option."
            )
        self._check_perturbation()

    def _check_perturbation(self) -> None:
        if not _is_whole(self.epsilon) or not isinstance(self.content, bool):
            raise TransformError(f"the epsilon of step {self.kind!r} is not a whole number", remedy=_WRITE_ISNN)
        if self.kind != "isnn" and (self.epsilon or self.content):
            raise TransformError(
                f"step {self.kind!r} has neither epsilon nor content", remedy="Only isnn has them; drop the option."
            )
        if self.kind == "isnn" and not 1 <= self.epsilon <= MAX_EPSILON:
            raise TransformError(f"the epsilon of isnn is not from 1 to {MAX_EPSILON}", remedy=_WRITE_ISNN)
        if self.content and (self.block < 4 or self.block % 2):
            raise TransformError(
                f"isnn by content needs an even block of at least 4, not {self.block}",
                remedy="Choose such a block, or leave content out for the fixed form.",
            )

    def __str__(self) -> str:
        options = [str(self.epsilon)] if self.kind == "isnn" else []
        options += [_POSITIONS] if self.positions else []
        options += [_CONTENT] if self.content else []
        return ":".join([self.kind, str(self.block), *options])

    def to_json(self) -> dict[str, Json]:
        """Return the form kept in manifests (rule T-4)."""
        found: dict[str, Json] = {"kind": self.kind, "block": self.block}
        if self.positions:
            found["tables"] = _POSITIONS
        if self.kind == "isnn":
            found |= {"epsilon": self.epsilon, "form": _CONTENT if self.content else _FIXED}
        return found


_WRITE_ISNN: Final = f"Write it like isnn:8:12, or isnn:8:12:content; epsilon is from 1 to {MAX_EPSILON}."


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


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
        if len(self.steps) > 1 and any(step.kind == "isnn" for step in self.steps):
            raise TransformError("an isnn step stands alone", remedy="Drop the other steps, or the isnn step.")

    @property
    def perturbation(self) -> Step | None:
        """Its isnn step; None for the transforms that can be undone."""
        return self.steps[0] if self.steps[0].kind == "isnn" else None

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
                    remedy="Write it like shf:4,np:4 or ffx:4:positions or isnn:8:12:content.",
                )
        return cls(tuple(_step_of(match) for match in matches if match is not None))

    def to_json(self) -> list[Json]:
        """Return the form kept in manifests: a list of `{"block": B, "kind": K}` in order (rule T-4)."""
        return [step.to_json() for step in self.steps]

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Return the spec of a parsed JSON value. Raises `TransformError` for all that `to_json` cannot write."""
        if not isinstance(value, list):
            raise TransformError("a transform is not a list of steps", remedy="Rebuild the package with Tessera.")
        return cls(tuple(_step(number, item) for number, item in enumerate(value[: MAX_STEPS + 1])))


def _step_of(match: re.Match[str]) -> Step:
    kind, block, epsilon, option = match.groups()
    return Step(cast(Kind, kind), int(block), option == _POSITIONS, int(epsilon or 0), option == _CONTENT)


def _step(number: int, value: Any) -> Step:
    form = value if isinstance(value, dict) else {}
    options = {"epsilon", "form"} if form.get("kind") == "isnn" else set(form) & {"tables"}
    if set(form) != {"kind", "block"} | options or not isinstance(form["kind"], str):
        raise TransformError(
            f"step {number} of a transform is not an object of kind, block and the options of its kind",
            remedy="Rebuild the package with Tessera, or update Tessera if the package is newer.",
        )
    if form.get("tables", _POSITIONS) != _POSITIONS:
        raise TransformError(
            f"the tables of step {number} are not {_POSITIONS!r}", remedy="Leave tables out for one table, or update."
        )
    if form.get("form", _FIXED) not in (_FIXED, _CONTENT):
        raise TransformError(f"the form of step {number} is neither fixed nor content", remedy="Update Tessera.")
    kind = cast(Kind, form["kind"])
    return Step(kind, form["block"], "tables" in form, form.get("epsilon", 0), form.get("form") == _CONTENT)
