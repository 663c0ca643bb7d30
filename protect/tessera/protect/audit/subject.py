"""What is attacked and with what: a protected model, and labelled images that attackers and judges do not share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.protect.audit.cut import Cut
from tessera.protect.augment import Augmentation, PairAugmentation
from tessera.protect.data import ArrayDataset, SegmentationDataset
from tessera.protect.evaluate import LabelledImages, Metric, metric_of
from tessera.transforms import Transform, TransformSpec

Kind = Literal["classification", "segmentation"]
Protection = Literal["keyed-input", "tiers"]
"""What protects a subject; each attack of the table says which it applies to."""

MIN_IMAGES: Final = 20
"""Fewest labelled images that can be split into an attacker's and a judge's part."""


@dataclass(frozen=True)
class Lock:
    """What a model's inputs are transformed with: a public spec, and the key that is for the judge alone."""

    spec: TransformSpec
    key: InputKey = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A protected model as an attacker holds it: the whole model and what is public of its protections.

    `victim()` gives a fresh copy of the full model each time, `fresh(seed)` the same network with untrained weights;
    both take uint8 (N, C, H, W), and train and eval modes work on them. Raises `TransformError` when the lock's spec
    does not fit `shape`, and `ApiMisuse` for a model that nothing protects.
    """

    name: str
    victim: Callable[[], nn.Module] = field(repr=False)
    fresh: Callable[[int], nn.Module] = field(repr=False)
    shape: tuple[int, int, int]
    lock: Lock | None = None
    """None where the model takes plain inputs."""
    cut: Cut | None = field(default=None, repr=False)
    """How its weights are cut into tiers; None where they are not."""
    kind: Kind = "classification"
    classes: int = 10
    training: str = ""
    """How `victim` and `fresh` behave in training mode, for the report."""
    augment: Augmentation | PairAugmentation | None = field(default=None, repr=False)
    """The recipe's own augmentation, which attackers use as well."""

    def __post_init__(self) -> None:
        if self.classes < 2 or self.kind not in ("classification", "segmentation"):
            raise ApiMisuse(f"an audit needs two classes or more of a known kind, not {self.classes} of {self.kind!r}")
        if self.lock is not None:
            Transform(self.lock.spec, self.lock.key, *self.shape)
        if not self.protections:
            raise ApiMisuse(f"{self.name} takes plain inputs and has no tiers, so there is nothing to audit")

    @property
    def protections(self) -> frozenset[Protection]:
        """What protects it."""
        found: dict[Protection, object] = {"keyed-input": self.lock, "tiers": self.cut}
        return frozenset(name for name, there in found.items() if there is not None)

    @property
    def spec(self) -> TransformSpec:
        """The spec of its lock. Raises `ApiMisuse` without one, as `key` does."""
        return self._locked().spec

    @property
    def key(self) -> InputKey:
        """The key of its lock."""
        return self._locked().key

    def _locked(self) -> Lock:
        if self.lock is None:
            raise ApiMisuse(f"{self.name} takes plain inputs; this attack needs a keyed model")
        return self.lock

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of the steps in its spec; none where inputs are plain."""
        return frozenset(() if self.lock is None else (step.kind for step in self.lock.spec.steps))


@dataclass(frozen=True)
class Sample:
    """Labelled plain images: `attacker`'s own, and `held_out` ones by which every attack is judged.

    Raises `ApiMisuse` when the two are of different kinds or shapes.
    """

    attacker: LabelledImages
    held_out: LabelledImages
    source: str
    """Where they are from, in words."""

    def __post_init__(self) -> None:
        if type(self.attacker) is not type(self.held_out) or self.attacker.shape != self.held_out.shape:
            raise ApiMisuse("an attacker's images and those held out are of one kind and shape")

    @property
    def metric(self) -> Metric:
        """The measure that fits the labels."""
        return metric_of(self.held_out)


def split_sample(data: LabelledImages, source: str, *, seed: int) -> Sample:
    """Return half of `data` as the attacker's and half held out, by chance. Raises `ApiMisuse` below `MIN_IMAGES`."""
    if len(data) < MIN_IMAGES:
        raise ApiMisuse(
            f"{source} holds {len(data)} labelled images, and an audit needs at least {MIN_IMAGES}",
            remedy="Give more images: a thousand or more make the numbers worth reading.",
        )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    half = len(data) // 2
    return Sample(subset(data, order[half:]), subset(data, order[:half]), source)


def subset(data: LabelledImages, chosen: Tensor) -> LabelledImages:
    """Return the images of `data` with the indices `chosen`, at least one."""
    if isinstance(data, SegmentationDataset):
        return SegmentationDataset(data.images[chosen], data.labels[chosen], data.classes, data.ignore, data.names)
    return ArrayDataset(data.images[chosen], data.labels[chosen], data.names)


def some(data: LabelledImages, count: int, seed: int) -> LabelledImages:
    """Return `count` images of `data` by chance, or all when it has no more; smaller draws of a seed lie in larger."""
    if count >= len(data):
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return subset(data, order[:count])
