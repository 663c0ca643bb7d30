"""Residual networks for 32x32 images."""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from tessera.protect.models.stems import block_stem


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is a 1x1 convolution where size or width changes."""

    def __init__(self, wide_in: int, wide_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide_out)
        self.conv2 = nn.Conv2d(wide_out, wide_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide_out)
        self.shortcut = self._shortcut(wide_in, wide_out, stride)

    def _shortcut(self, wide_in: int, wide_out: int, stride: int) -> nn.Module:
        if stride == 1 and wide_in == wide_out:
            return nn.Sequential()
        return nn.Sequential(nn.Conv2d(wide_in, wide_out, 1, stride=stride, bias=False), nn.BatchNorm2d(wide_out))

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, wide_out, H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class CifarResNet18(nn.Module):
    """Float (N, 3, 32, 32) to logits: ResNet-18 as it is used on CIFAR, 11,173,962 parameters for ten classes.

    He et al. 2016 (arXiv 1512.03385) with the changes of github.com/kuangliu/pytorch-cifar, which the block-transform
    papers use: a 3x3 stem of stride 1 without max-pooling, widths 64-128-256-512 with two basic blocks each, and 4x4
    average pooling. Parameter names match that repository's. `stem_block` puts a `BlockStem` in front.
    """

    def __init__(self, classes: int = 10, in_channels: int = 3, stem_block: int | None = None) -> None:
        super().__init__()
        self.stem = block_stem(in_channels, stem_block)
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        y = F.relu(self.bn1(self.conv1(self.stem(x))))
        y = self.layer4(self.layer3(self.layer2(self.layer1(y))))
        logits: Tensor = self.linear(torch.flatten(F.avg_pool2d(y, 4), 1))
        return logits


class PaddedShortcut(nn.Module):
    """The paper's shortcut A: every second pixel, and channels of zeros, half before and half after; no parameters."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.before, self.after = added // 2, added - added // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C + added, H / 2, W / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class PaddedBlock(BasicBlock):
    """A `BasicBlock` whose shortcut is a `PaddedShortcut` where the width changes."""

    def _shortcut(self, wide_in: int, wide_out: int, stride: int) -> nn.Module:
        return nn.Sequential() if stride == 1 else PaddedShortcut(wide_out - wide_in)


class ResNet20(nn.Module):
    """Float (N, 3, 32, 32) to logits: the paper's ResNet-20 for CIFAR, 269,722 parameters for ten classes.

    He et al. 2016 (arXiv 1512.03385), section 4.2: widths 16-32-64 with three basic blocks each, shortcuts without
    parameters, global average pooling. Parameter names match github.com/akamaster/pytorch_resnet_cifar10, whose
    published weights (8.27 % error) it loads; their input is normalised with `IMAGENET_MEAN` and `IMAGENET_STD`.
    """

    def __init__(self, classes: int = 10, in_channels: int = 3, stem_block: int | None = None) -> None:
        super().__init__()
        self.stem = block_stem(in_channels, stem_block)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _three(16, 16, 1)
        self.layer2 = _three(16, 32, 2)
        self.layer3 = _three(32, 64, 2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        y = F.relu(self.bn1(self.conv1(self.stem(x))))
        y = self.layer3(self.layer2(self.layer1(y)))
        logits: Tensor = self.linear(y.mean((2, 3)))
        return logits


def _three(wide_in: int, wide_out: int, stride: int) -> nn.Sequential:
    first = PaddedBlock(wide_in, wide_out, stride)
    return nn.Sequential(first, PaddedBlock(wide_out, wide_out, 1), PaddedBlock(wide_out, wide_out, 1))


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
