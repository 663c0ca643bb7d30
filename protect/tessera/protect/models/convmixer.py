"""ConvMixer, a network that embeds patches."""

from torch import Tensor, nn


class Residual(nn.Module):
    """Its layers in a row, with the input added to their output."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the input's shape."""
        result: Tensor = self.layers(x) + x
        return result


class ConvMixer(nn.Module):
    """Float (N, C, H, W) to logits: patches embedded by one convolution, then mixed over space and over channels.

    Trockman & Kolter 2022 (arXiv 2201.09792); `width` 256, `depth` 8, `kernel` 5 and `patch` 2 is the ConvMixer-256/8
    of its CIFAR-10 section, 594,186 parameters for ten classes. H and W are multiples of `patch`. The embedding sees
    each patch whole, so where the block of a transform divides `patch` it learns SHF and NP without a `BlockStem`.
    """

    def __init__(
        self, classes: int = 10, in_channels: int = 3, width: int = 256, depth: int = 8, kernel: int = 5, patch: int = 2
    ) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(in_channels, width, patch, stride=patch), nn.GELU(), nn.BatchNorm2d(width))
        self.mix = nn.Sequential(*(_mixer(width, kernel) for _ in range(depth)))
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.linear(self.mix(self.embed(x)).mean((2, 3)))
        return logits


def _mixer(width: int, kernel: int) -> nn.Sequential:
    space = nn.Conv2d(width, width, kernel, padding="same", groups=width)
    channels = nn.Conv2d(width, width, 1)
    return nn.Sequential(Residual(space, nn.GELU(), nn.BatchNorm2d(width)), channels, nn.GELU(), nn.BatchNorm2d(width))
