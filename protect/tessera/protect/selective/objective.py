"""What "important" means for a model: batches to run it on, and a loss that says how badly it then does.

    batch: (CPU generator) -> (inputs, targets)      any device the model is on, drawn anew at every call
    loss:  (outputs, targets) -> scalar              mean over the batch

The three kinds of model that we know come ready: classification, denoising, segmentation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse
from tessera.protect.augment import Augmentation

Batch = Callable[[torch.Generator], tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """A model with what it is judged by. Nothing here changes the model."""

    model: nn.Module
    batch: Batch
    loss: Loss


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (N, K) or (N, K, H, W); labels integer, 255 and negative are ignored."""
    wanted = labels.to(torch.int64)
    return F.cross_entropy(outputs.float(), torch.where(wanted >= outputs.shape[1], -1, wanted), ignore_index=-1)


def squared_error(outputs: Tensor, clean: Tensor) -> Tensor:
    """Return half the summed squared error of a restored image, mean over the batch: the loss that DnCNN trains with.

    The *mean* over pixels would be so small that neither PSS's learning rate nor its price of open gates fits it.
    """
    return 0.5 * F.mse_loss(outputs.float(), clean.float(), reduction="sum") / len(clean)


def labelled(images: Tensor, labels: Tensor, size: int, augment: Augmentation | None = None) -> Batch:
    """Return batches of `size` images drawn with replacement from `images` (N, …) and `labels` (N,) or (N, H, W).

    `augment` changes images alone, so it fits classification only. Raises `ApiMisuse` for lengths that differ.
    """
    if len(images) != len(labels) or not len(images) or size < 1:
        raise ApiMisuse(f"{len(images)} images, {len(labels)} labels and batches of {size} do not go together")

    def draw(draws: torch.Generator) -> tuple[Tensor, Tensor]:
        picked = torch.randint(len(images), (min(size, len(images)),), generator=draws).to(images.device)
        chosen = images[picked]
        return chosen if augment is None else augment(chosen, draws), labels[picked]

    return draw


def noisy_patches(images: list[Tensor], sigma: float, patch: int, size: int) -> Batch:
    """Return batches of (noisy, clean) float patches, `size` of `patch` x `patch` pixels, noise sigma / 255.

    `images` are float (C, H, W) in 0 … 1, each at least `patch` high and wide. Raises `ApiMisuse` when one is smaller.
    """
    if not images or size < 1 or any(min(image.shape[-2:]) < patch for image in images):
        raise ApiMisuse(f"denoising needs images of at least {patch} x {patch} pixels")

    def draw(draws: torch.Generator) -> tuple[Tensor, Tensor]:
        clean = torch.stack([_crop(images, patch, draws) for _ in range(size)])
        noise = torch.randn(clean.shape, generator=draws).to(clean.device)
        return clean + noise * (sigma / 255), clean

    return draw


def _crop(images: list[Tensor], patch: int, draws: torch.Generator) -> Tensor:
    image = images[int(torch.randint(len(images), (), generator=draws))]
    top, left = (int(torch.randint(length - patch + 1, (), generator=draws)) for length in image.shape[-2:])
    return image[:, top : top + patch, left : left + patch]
