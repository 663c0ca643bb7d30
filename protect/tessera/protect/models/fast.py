"""A network that two CPU cores train in minutes."""

from torch import Tensor, nn

from tessera.protect.models.convmixer import Residual


class FastNet(nn.Module):
    """Float (N, C, H, W) to logits: 24 million multiplications for a 32x32 image, a twentieth of ResNet-18's.

    Our own: features at half the resolution, one convolution there, then two stages of residual blocks at a quarter and
    an eighth, the maximum over positions, one linear layer. `enter` is what `keyed` replaces for keyed images. With
    RGB input and ten classes: 719,962 parameters. H and W are at least 8.
    """

    def __init__(self, classes: int = 10, in_channels: int = 3, width: int = 96, entry: int = 24) -> None:
        super().__init__()
        self.enter = nn.Conv2d(in_channels, entry, 4, stride=2, padding=1, bias=False)
        self.body = nn.Sequential(
            nn.BatchNorm2d(entry), nn.ReLU(),
            _conv(entry, width // 2),
            _conv(width // 2, width, stride=2), Residual(_conv(width, width), _conv(width, width)),
            _conv(width, 2 * width, stride=2), Residual(_conv(2 * width, 2 * width)),
        )  # fmt: skip
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.head(self.body(self.enter(x)).amax((2, 3)))
        return logits * _TEMPERATURE


_TEMPERATURE = 0.25
"""Logits are scaled down, so that the linear layer may take the learning rate of the others."""


def _conv(wide_in: int, wide_out: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(wide_in, wide_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(wide_out), nn.ReLU())
