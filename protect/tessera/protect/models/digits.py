"""A network for 8x8 scans of digits."""

from torch import Tensor, nn


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
