"""Whose key unlocks a leaked model: buyers ranked by how well their keys work, against keys that nobody has.

A model that was trained for several buyers answers all of them, so a ranking names every buyer it was trained for, not
the one it leaked from: to tell copies apart, train one for each buyer or group of buyers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.protect.data import ArrayDataset
from tessera.protect.evaluate import accuracy, evaluation_keys
from tessera.protect.isnn.measure import under_key
from tessera.transforms import TransformSpec

NULL_KEYS: Final = 100
SIGNIFICANT: Final = 1e-3
"""A buyer is named when the chance that a stranger's key works as well, over all buyers, is below this."""

_NULL_SEED: Final = 4099


@dataclass(frozen=True)
class Suspect:
    """One buyer: the share of images answered right with their key, and what that signifies."""

    name: str
    accuracy: float
    p_value: float
    """Chance of at least so many right answers for a key that has nothing to do with the model, times the number of
    buyers (Bonferroni), at most 1."""

    @property
    def named(self) -> bool:
        """Whether the model answers this buyer's key beyond doubt."""
        return self.p_value < SIGNIFICANT


@dataclass(frozen=True)
class Trace:
    """Buyers, best first, beside what keys that nobody has reach."""

    suspects: tuple[Suspect, ...]
    images: int
    null_mean: float
    null_max: float
    null_keys: int
    clean: float
    """Without any key: high when the model is not locked, and then no key is told from another."""

    @property
    def named(self) -> tuple[Suspect, ...]:
        """The buyers whose keys unlock the model."""
        return tuple(suspect for suspect in self.suspects if suspect.named)

    def to_json(self) -> dict[str, Any]:
        """Return the object printed with --json."""
        return {
            "images": self.images,
            "clean": round(self.clean, 4),
            "null": {"keys": self.null_keys, "mean": round(self.null_mean, 4), "max": round(self.null_max, 4)},
            "significant_below": SIGNIFICANT,
            "suspects": [
                {"buyer": one.name, "accuracy": round(one.accuracy, 4), "p_value": one.p_value, "named": one.named}
                for one in self.suspects
            ],
        }


def trace(
    model: nn.Module,
    data: ArrayDataset,
    spec: TransformSpec,
    buyers: Mapping[str, InputKey],
    *,
    null_keys: int = NULL_KEYS,
    device: torch.device | str = "cpu",
) -> Trace:
    """Return the ranking of `buyers`, bound keys by name, for a model that takes uint8 (N, C, H, W).

    `data` are labelled images of the model's task. A key that nobody has gives a share of right answers that varies
    from key to key; p-values are those of Student's law for one more key beside `null_keys` such keys, at least 2,
    whose spread is taken to be at least the binomial one of so many images. A normal law would name a stranger now and
    then: the spread of a few keys is itself uncertain, and some keys share much of a pattern by chance. Raises
    `ApiMisuse` without buyers, and as `LegalInputs`.
    """
    if not buyers or null_keys < 2 or not len(data):
        raise ApiMisuse("a trace needs buyers, at least two keys that nobody has, and images")
    where = torch.device(device)

    def under(key: InputKey) -> float:
        return accuracy(model, data, where, under_key(spec, key, data.shape, where))

    null = [under(key) for key in evaluation_keys(null_keys, _NULL_SEED)]
    mean = sum(null) / len(null)
    between = sum((value - mean) ** 2 for value in null) / (len(null) - 1)
    spread = math.sqrt(max(between, mean * (1 - mean) / len(data), 0.25 / len(data) ** 2) * (1 + 1 / len(null)))
    suspects = []
    for name, key in buyers.items():
        found = under(key)
        tail = student_tail((found - mean) / spread, len(null) - 1)
        suspects.append(Suspect(name, found, min(1.0, tail * len(buyers))))
    ranked = tuple(sorted(suspects, key=lambda one: (-one.accuracy, one.name)))
    return Trace(ranked, len(data), mean, max(null), len(null), accuracy(model, data, where, None))


def student_tail(value: float, freedom: int) -> float:
    """Return the chance that Student's t with `freedom` degrees of freedom, at least 1, is above `value`.

    With t = sqrt(freedom) * tan(angle) the density is a power of the cosine, which Simpson's rule integrates.
    """
    if value < 0:
        return 1.0 - student_tail(-value, freedom)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    begin, steps = math.atan2(value, math.sqrt(freedom)), 2000
    width = (math.pi / 2 - begin) / steps
    heights = [math.cos(begin + width * step) ** (freedom - 1) for step in range(steps)]
    heights.append(1.0 if freedom == 1 else 0.0)
    inner = 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])
    return scale * width / 3 * (heights[0] + inner + heights[-1])
