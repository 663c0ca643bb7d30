"""A small U-Net for semantic segmentation."""

from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse
from tessera.protect.models.stems import block_stem


class UNet(nn.Module):
    """Float (N, C, H, W) to logits (N, classes, H, W), for any H and W of at least 16.

    After Ronneberger et al. 2015 (arXiv 1505.04597), made small for a CPU: the first convolution already halves the
    image, four scales of widths 1, 2, 4 and 6 times `width`, two residual blocks of growing dilation at the bottom
    (as DeepLab does, arXiv 1706.05587), bilinear steps back with the encoder's features beside, batch normalisation.
    With `width` 16, RGB input and 11 classes: 798,443 parameters. `stem_block` puts a `BlockStem` in front.
    """

    def __init__(self, classes: int, in_channels: int = 3, width: int = 16, stem_block: int | None = None) -> None:
        super().__init__()
        if classes < 1 or width < 1:
            raise ApiMisuse(f"a U-Net needs classes and width above zero, not {classes} and {width}")
        widths = [width, 2 * width, 4 * width, 6 * width]
        self.stem = block_stem(in_channels, stem_block)
        self.enter = _conv(in_channels, width, 5, stride=2)
        self.down = nn.ModuleList(
            nn.Sequential(_conv(thin, wide, 3, stride=2), _Residual(wide)) for thin, wide in pairwise(widths)
        )
        self.bottom = nn.Sequential(_Residual(widths[-1], dilation=2), _Residual(widths[-1], dilation=4))
        self.up = nn.ModuleList(_conv(thin + wide, thin, 3) for thin, wide in pairwise(widths))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for every pixel."""
        y = self.enter(self.stem(x))
        skips = [y]
        for step in self.down:
            y = step(y)
            skips.append(y)
        y = self.bottom(skips.pop())
        for step in reversed(list(self.up)):
            y = step(torch.cat([_resized(y, skips[-1]), skips.pop()], dim=1))
        return _resized(self.head(y), x)


class _Residual(nn.Module):
    """Two 3x3 convolutions with the input added."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = _conv(width, width, 3, dilation=dilation)
        self.second = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))))


def _conv(wide_in: int, wide_out: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    pad = dilation * (kernel // 2)
    conv = nn.Conv2d(wide_in, wide_out, kernel, stride=stride, padding=pad, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(wide_out), nn.ReLU())


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
