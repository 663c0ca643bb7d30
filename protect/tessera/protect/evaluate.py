"""How well a model answers with the right key, with wrong keys and without any."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tessera.keystore.secrets import InputKey
from tessera.protect.data import ArrayDataset
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform, TransformSpec

EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers, 0 … 1. Without a transform there are no wrong keys, and `right_key` equals `plain`."""

    right_key: float
    plain: float
    wrong_keys: tuple[float, ...] = ()

    @property
    def wrong_key(self) -> float | None:
        """The mean over the wrong keys."""
        return sum(self.wrong_keys) / len(self.wrong_keys) if self.wrong_keys else None

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


def accuracy(model: nn.Module, data: ArrayDataset, device: torch.device, transform: TorchTransform | None) -> float:
    """Return the share of `data` that `model`, taking uint8 pixels, answers right after `transform`. Sets eval mode."""
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(data), EVALUATION_BATCH):
            pixels = data.images[start : start + EVALUATION_BATCH].to(device)
            answers = model(pixels if transform is None else transform(pixels)).argmax(dim=1)
            right += int((answers.cpu() == data.labels[start : start + EVALUATION_BATCH]).sum())
    return right / len(data)


def evaluate(
    model: nn.Module,
    data: ArrayDataset,
    *,
    transform: TransformSpec | None,
    key: InputKey | None,
    wrong_keys: Sequence[InputKey] = (),
    device: torch.device | str = "cpu",
) -> Accuracy:
    """Return the accuracies of a model that takes uint8 (N, C, H, W). Raises `TransformError` for a misfitting spec."""
    where = torch.device(device)
    plain = accuracy(model, data, where, None)
    if transform is None or key is None:
        return Accuracy(plain, plain)

    def under(candidate: InputKey) -> float:
        return accuracy(model, data, where, TorchTransform(Transform(transform, candidate, *data.shape), where))

    return Accuracy(under(key), plain, tuple(under(wrong) for wrong in wrong_keys))


def evaluation_keys(count: int, seed: int) -> list[InputKey]:
    """Return `count` keys for measuring wrong keys, the same for the same seed: SHA-256 of a label, never secret."""
    return [
        InputKey(hashlib.sha256(f"tessera/evaluation/wrong-key/{seed}/{index}".encode()).digest())
        for index in range(count)
    ]
