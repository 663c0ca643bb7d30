"""VGG networks with batch normalisation for small images."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from tessera.protect.models.stems import block_stem

_POOL: Final = 0
_VGG19: Final = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512, 0)
_COMPACT: Final = (32, 0, 64, 64, 0, 128, 128, 0, 256, 256)


class CifarVgg19(nn.Module):
    """Float (N, 3, 32, 32) to logits: VGG-19 with batch normalisation, 20,040,522 parameters for ten classes.

    Simonyan & Zisserman 2015 (arXiv 1409.1556), configuration E, with the changes of github.com/kuangliu/pytorch-cifar:
    batch normalisation after each of the 16 convolutions and one linear layer. Parameter names match that repository's.
    """

    def __init__(self, classes: int = 10, in_channels: int = 3, stem_block: int | None = None) -> None:
        super().__init__()
        self.stem = block_stem(in_channels, stem_block)
        self.features = _features(_VGG19, in_channels)
        self.classifier = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.classifier(torch.flatten(self.features(self.stem(x)), 1))
        return logits


class CompactVgg(nn.Module):
    """Float (N, C, H, W) to logits: a VGG that two CPU cores train in minutes, 1,167,434 parameters for ten classes.

    Our own: seven convolutions of widths 32 to 256, three poolings and global average pooling, so any H and W from 8
    will do. A stand-in for `CifarVgg19` where there is no GPU, at a tenth of its arithmetic.
    """

    def __init__(self, classes: int = 10, in_channels: int = 3, stem_block: int | None = None) -> None:
        super().__init__()
        self.stem = block_stem(in_channels, stem_block)
        self.features = _features(_COMPACT, in_channels)
        self.classifier = nn.Linear(_COMPACT[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.classifier(self.features(self.stem(x)).mean((2, 3)))
        return logits


def _features(plan: Sequence[int], channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in plan:
        if width == _POOL:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers)
