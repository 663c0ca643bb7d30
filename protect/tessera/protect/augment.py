"""Random changes to training images, made before the keyed transform, with the same draws on every device.

A classification's augmentation changes images; a segmentation's changes images and the labels of their pixels alike.
"""

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""From uint8 (N, C, H, W) and a CPU generator to uint8 of the same shape, on the same device."""

PairAugmentation = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""From uint8 (N, C, H, W), uint8 labels (N, H, W) and a CPU generator to both, of the same shapes and device."""


def random_shift(max_pixels: int) -> Augmentation:
    """Return the augmentation that moves each image by up to `max_pixels` in both directions and fills with 0."""

    def shift(images: Tensor, draws: torch.Generator) -> Tensor:
        return _shifted(images, _offsets(len(images), max_pixels, draws), max_pixels, 0)

    return shift


def random_flip() -> Augmentation:
    """Return the augmentation that mirrors each image left to right with probability one half."""

    def flip(images: Tensor, draws: torch.Generator) -> Tensor:
        return _flipped(images, _coins(len(images), draws))

    return flip


def chain(*parts: Augmentation) -> Augmentation:
    """Return the augmentation that applies `parts` in order."""

    def all_parts(images: Tensor, draws: torch.Generator) -> Tensor:
        for part in parts:
            images = part(images, draws)
        return images

    return all_parts


def paired_shift_and_flip(max_pixels: int, fill_label: int) -> PairAugmentation:
    """Return the augmentation that shifts and mirrors images with their labels.

    What comes in from outside is black and has the label `fill_label`, normally the ignored one.
    """

    def change(images: Tensor, labels: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        coins = _coins(len(images), draws)
        moves = _offsets(len(images), max_pixels, draws)
        moved = _shifted(labels[:, None], moves, max_pixels, fill_label)
        return _flipped(_shifted(images, moves, max_pixels, 0), coins), _flipped(moved, coins)[:, 0]

    return change


def _coins(count: int, draws: torch.Generator) -> Tensor:
    return torch.rand(count, generator=draws) < _HALF


def _flipped(images: Tensor, coins: Tensor) -> Tensor:
    return torch.where(coins.to(images.device)[:, None, None, None], images.flip(3), images)


def _offsets(count: int, max_pixels: int, draws: torch.Generator) -> Tensor:
    return torch.randint(0, 2 * max_pixels + 1, (2, count, 1), generator=draws)


def _shifted(images: Tensor, offsets: Tensor, max_pixels: int, fill: int) -> Tensor:
    count, channels, height, width = images.shape
    padded = F.pad(images, (max_pixels,) * 4, value=fill)
    down, right = offsets.to(images.device)
    rows = (down + torch.arange(height, device=images.device)).reshape(count, 1, height, 1)
    columns = (right + torch.arange(width, device=images.device)).reshape(count, 1, 1, width)
    samples = torch.arange(count, device=images.device).reshape(count, 1, 1, 1)
    return padded[samples, torch.arange(channels, device=images.device).reshape(1, channels, 1, 1), rows, columns]


_HALF: Final = 0.5
