"""How well a model answers with the right key, with wrong keys and without any.

The measure is the share of right answers for a classification, the mean intersection over union for a segmentation.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.protect.data import ArrayDataset, SegmentationDataset
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform, TransformSpec

EVALUATION_BATCH: Final = 512
EVALUATION_VALUES: Final = 2**22
"""Most input values of one batch: 4 MiB of pixels, so that large images go in smaller batches."""

Metric = Literal["accuracy", "mean_iou"]

LabelledImages = ArrayDataset | SegmentationDataset

BatchTransform = Callable[[Tensor], Tensor]
"""From uint8 (N, C, H, W) to the same on the same device, such as a `TorchTransform`."""


@dataclass(frozen=True)
class Accuracy:
    """What was measured, 0 … 1. Without a transform there are no wrong keys, and `right_key` equals `plain`."""

    right_key: float
    plain: float
    wrong_keys: tuple[float, ...] = ()
    metric: Metric = "accuracy"

    @property
    def wrong_key(self) -> float | None:
        """The mean over the wrong keys."""
        return sum(self.wrong_keys) / len(self.wrong_keys) if self.wrong_keys else None

    @property
    def wrong_key_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean over wrong keys (normal approximation); None for fewer than two keys."""
        count, mean = len(self.wrong_keys), self.wrong_key
        if mean is None or count < 2:
            return None
        variance = sum((value - mean) ** 2 for value in self.wrong_keys) / (count - 1)
        half = 1.96 * math.sqrt(variance / count)
        return mean - half, mean + half

    def to_json(self) -> dict[str, float | int | None]:
        """Return the object kept in reports, rounded to 1e-4."""
        mean = self.wrong_key
        return {
            "right_key": round(self.right_key, 4),
            "wrong_key": None if mean is None else round(mean, 4),
            "wrong_key_max": round(max(self.wrong_keys), 4) if self.wrong_keys else None,
            "wrong_keys": len(self.wrong_keys),
            "plain": round(self.plain, 4),
        }


def metric_of(data: LabelledImages) -> Metric:
    """Return the measure that fits the labels of `data`."""
    return "mean_iou" if isinstance(data, SegmentationDataset) else "accuracy"


def score(model: nn.Module, data: LabelledImages, device: torch.device, transform: BatchTransform | None) -> float:
    """Return the measure that fits `data`, 0 … 1, of a model taking uint8 pixels, after `transform`. Sets eval mode."""
    if isinstance(data, SegmentationDataset):
        return mean_iou(model, data, device, transform)
    return accuracy(model, data, device, transform)


def accuracy(model: nn.Module, data: ArrayDataset, device: torch.device, transform: BatchTransform | None) -> float:
    """Return the share of `data` that `model`, taking uint8 pixels, answers right after `transform`. Sets eval mode."""
    right = torch.zeros((), dtype=torch.int64, device=device)
    for answers, labels in _answers(model, data, device, transform):
        right += (answers == labels).sum()
    return int(right) / len(data)


def mean_iou(
    model: nn.Module, data: SegmentationDataset, device: torch.device, transform: BatchTransform | None
) -> float:
    """Return the mean intersection over union of `model` on `data`, 0 … 1. Sets eval mode.

    Over all pixels of the set that are not ignored, and over the classes that occur in its labels.
    """
    kinds = data.classes + 1  # answers that are no class of the data are wrong, and counted in one more column
    table = torch.zeros(kinds * kinds, dtype=torch.int64, device=device)
    for answers, labels in _answers(model, data, device, transform):
        counted = labels < data.classes
        pairs = labels[counted].long() * kinds + answers[counted].clamp(max=data.classes)
        table += torch.bincount(pairs, minlength=kinds * kinds)
    found = table.reshape(kinds, kinds).double()
    hits, labelled, answered = found.diagonal(), found.sum(dim=1), found.sum(dim=0)
    present = labelled > 0
    return float((hits / (labelled + answered - hits))[present].mean()) if bool(present.any()) else 0.0


def evaluate(
    model: nn.Module,
    data: LabelledImages,
    *,
    transform: TransformSpec | None,
    key: InputKey | None,
    wrong_keys: Sequence[InputKey] = (),
    device: torch.device | str = "cpu",
) -> Accuracy:
    """Return what a model that takes uint8 (N, C, H, W) reaches. Raises `TransformError` for a misfitting spec."""
    where, metric = torch.device(device), metric_of(data)
    plain = score(model, data, where, None)
    if transform is None or key is None:
        return Accuracy(plain, plain, metric=metric)

    def under(candidate: InputKey) -> float:
        return score(model, data, where, TorchTransform(Transform(transform, candidate, *data.shape), where))

    return Accuracy(under(key), plain, tuple(under(wrong) for wrong in wrong_keys), metric)


def evaluation_keys(count: int, seed: int) -> list[InputKey]:
    """Return `count` keys for measuring wrong keys, the same for the same seed: SHA-256 of a label, never secret."""
    return [
        InputKey(hashlib.sha256(f"tessera/evaluation/wrong-key/{seed}/{index}".encode()).digest())
        for index in range(count)
    ]


def _answers(
    model: nn.Module, data: LabelledImages, device: torch.device, transform: BatchTransform | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (largest logit, label) of each batch, on the device."""
    model.eval()
    batch = max(1, min(EVALUATION_BATCH, EVALUATION_VALUES // data.images[0].numel()))
    for start in range(0, len(data), batch):
        pixels = data.images[start : start + batch].to(device)
        with torch.no_grad():
            logits = model(pixels if transform is None else transform(pixels))
        labels = data.labels[start : start + batch].to(device)
        if logits.ndim != labels.ndim + 1 or len(logits) != len(labels) or logits.shape[2:] != labels.shape[1:]:
            raise ApiMisuse(f"the model gives {tuple(logits.shape)} for labels of {tuple(labels.shape)}")
        yield logits.argmax(dim=1), labels
