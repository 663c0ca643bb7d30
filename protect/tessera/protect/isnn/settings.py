"""How an input-sensitive network is trained."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, get_args

from tessera.keystore.errors import ApiMisuse
from tessera.protect.isnn.illegal import IllegalMixture
from tessera.transforms import TransformSpec

IllegalTarget = Literal["uniform", "wrong-class", "random-label"]
"""What illegal inputs are answered with: all classes alike, always the same class, or a class by chance each time."""

TARGETS: Final[tuple[IllegalTarget, ...]] = get_args(IllegalTarget)

FEW_BLOCKS: Final = 16
"""An image of fewer blocks has too few turns to tell a legal one by."""


@dataclass(frozen=True, kw_only=True)
class IsnnSettings:
    """What is asked of illegal inputs, and how much it counts. Raises `ApiMisuse`.

    The defaults are for the form by content in many blocks; `advised` has others where there are no turns to learn.
    """

    target: IllegalTarget = "uniform"
    wrong_class: int = 0
    """The class that illegal inputs are answered with, for the target wrong-class."""
    weight: float = 1.5
    """Of the illegal term beside the legal one, each a mean over its inputs."""
    illegal_share: float = 0.5
    """Of the images of every batch, how many are made illegal; the others are made legal."""
    adversary_share: float = 0.35
    """Of the illegal inputs of the form by content, how many get an optimised fixed perturbation."""
    teacher_share: float = 0.9
    """In a fine-tune, how much of the legal term asks for the first model's answers to clean images, not for labels."""
    mixture: IllegalMixture = field(default_factory=IllegalMixture)

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ApiMisuse(f"the illegal target is one of {', '.join(TARGETS)}, not {str(self.target)[:40]!r}")
        if not 0 < self.illegal_share < 1 or not 0 <= self.adversary_share < 1:
            raise ApiMisuse("the share of illegal inputs lies between 0 and 1, that of the adversary from 0 to below 1")
        if not 0 <= self.teacher_share <= 1:
            raise ApiMisuse("the share of the teacher lies from 0 to 1")
        if not 0 < self.weight < math.inf or self.wrong_class < 0:
            raise ApiMisuse("the weight of the illegal term is above 0, and the wrong class a class")

    @classmethod
    def advised(cls, transform: TransformSpec, shape: tuple[int, int, int], **changes: Any) -> Self:
        """Return the settings for `transform` of (C, H, W), with `changes` to them.

        In the fixed form, and by content in fewer than `FEW_BLOCKS` blocks, the network cannot learn which turns an
        image calls for. To ask for them with the default's weight costs accuracy there, and brings nothing.
        """
        step = transform.perturbation
        blocks = 0 if step is None or not step.content else (shape[1] // step.block) * (shape[2] // step.block)
        return cls(**(dict(changes) if blocks >= FEW_BLOCKS else {**_GENTLE, **changes}))

    def to_json(self) -> Mapping[str, Any]:
        """Return the object kept in reports."""
        return {
            "target": self.target,
            "wrong_class": self.wrong_class if self.target == "wrong-class" else None,
            "weight": self.weight,
            "illegal_share": self.illegal_share,
            "adversary_share": self.adversary_share,
            "teacher_share": self.teacher_share,
            "mixture": dict(self.mixture.shares),
        }


_GENTLE: Final[Mapping[str, Any]] = {
    "weight": 1.0,
    "adversary_share": 0.1,
    "mixture": IllegalMixture({"clean": 0.25, "other-key": 0.2, "near-key": 0.25, "noise": 0.1, "misplaced": 0.1}),
}
