"""Networks of our own recipes, and the adapter that lets any network take raw pixels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse


class PixelModel(nn.Module):
    """Takes uint8 (N, C, H, W), gives `network((pixels / 255 - mean) / std)`; what is exported and served.

    `mean` and `std` hold one number per channel, of pixels scaled to 0 … 1. They are buffers, so they are sealed with
    the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ApiMisuse("mean and std need one number per channel, and std above zero")
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return the network's output for uint8 images."""
        scaled = (image.to(torch.float32) / 255.0 - self.mean) / self.std
        result: Tensor = self.network(scaled)
        return result


class DigitsNet(nn.Module):
    """Float (N, 1, 8, 8) to 10 logits: one convolution per 4x4 block, one across blocks, one over all of them.

    The first convolution sees each 4x4 block whole, so it learns a keyed order of a block's pixels as easily as the
    natural one; 0.3 million parameters.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(1, width, 4, stride=4, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.mix = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.join = nn.Sequential(nn.Conv2d(width, 2 * width, 2, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(2 * width, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10)."""
        logits: Tensor = self.head(self.join(self.mix(self.blocks(x))))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is a 1x1 convolution where size or width changes."""

    def __init__(self, wide_in: int, wide_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide_out)
        self.conv2 = nn.Conv2d(wide_out, wide_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or wide_in != wide_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(wide_in, wide_out, 1, stride=stride, bias=False), nn.BatchNorm2d(wide_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, wide_out, H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class CifarResNet18(nn.Module):
    """Float (N, 3, 32, 32) to logits: ResNet-18 as it is used on CIFAR, 11,173,962 parameters for ten classes.

    He et al. 2016 (arXiv 1512.03385) with the changes of github.com/kuangliu/pytorch-cifar, which the block-transform
    papers use: a 3x3 stem of stride 1 without max-pooling, widths 64-128-256-512 with two basic blocks each, and 4x4
    average pooling. Parameter names match that repository's.
    """

    def __init__(self, classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.layer4(self.layer3(self.layer2(self.layer1(y))))
        logits: Tensor = self.linear(torch.flatten(F.avg_pool2d(y, 4), 1))
        return logits
