"""Random changes to training images, made before the keyed transform, with the same draws on every device."""

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""From uint8 (N, C, H, W) and a CPU generator to uint8 of the same shape, on the same device."""


def random_shift(max_pixels: int) -> Augmentation:
    """Return the augmentation that moves each image by up to `max_pixels` in both directions and fills with 0."""

    def shift(images: Tensor, draws: torch.Generator) -> Tensor:
        count, channels, height, width = images.shape
        padded = F.pad(images, (max_pixels,) * 4)
        down, right = torch.randint(0, 2 * max_pixels + 1, (2, count, 1), generator=draws).to(images.device)
        rows = (down + torch.arange(height, device=images.device)).reshape(count, 1, height, 1)
        columns = (right + torch.arange(width, device=images.device)).reshape(count, 1, 1, width)
        samples = torch.arange(count, device=images.device).reshape(count, 1, 1, 1)
        return padded[samples, torch.arange(channels, device=images.device).reshape(1, channels, 1, 1), rows, columns]

    return shift


def random_flip() -> Augmentation:
    """Return the augmentation that mirrors each image left to right with probability one half."""

    def flip(images: Tensor, draws: torch.Generator) -> Tensor:
        chosen = torch.rand(len(images), generator=draws).to(images.device) < _HALF
        return torch.where(chosen[:, None, None, None], images.flip(3), images)

    return flip


def chain(*parts: Augmentation) -> Augmentation:
    """Return the augmentation that applies `parts` in order."""

    def all_parts(images: Tensor, draws: torch.Generator) -> Tensor:
        for part in parts:
            images = part(images, draws)
        return images

    return all_parts


_HALF: Final = 0.5
