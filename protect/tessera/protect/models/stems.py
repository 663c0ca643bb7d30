"""First layers that can absorb a keyed transform, by training or by `tessera.protect.locking`.

SHF and NP are an affine map of each block, so one linear map per block undoes them: `BlockStem`. FFX and NP replace
each value on its own, so a table of 256 entries per position undoes them: `ValueStem`. Both start as the identity, so
that a network with a stem starts where the same network without one does.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse

_VALUES = 256


class BlockStem(nn.Module):
    """Float (N, C, H, W) to the same shape: one linear map with bias for every `block` x `block` block, all alike.

    A convolution of kernel and stride `block` gives all values of a block, PixelShuffle puts them back in place. Its
    first weights are the identity. H and W are multiples of `block`. It has L * L + L parameters, L = C * block ** 2.
    """

    def __init__(self, channels: int, block: int) -> None:
        super().__init__()
        if channels < 1 or block < 1:
            raise ApiMisuse(f"a block stem needs channels and block above zero, not {channels} and {block}")
        self.channels, self.block = channels, block
        self.values = channels * block * block
        self.map = nn.Conv2d(channels, self.values, block, stride=block)
        with torch.no_grad():
            self.map.weight.copy_(torch.eye(self.values).reshape(self.map.weight.shape))
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return the mapped images."""
        return F.pixel_shuffle(self.map(x), self.block)

    @property
    def bias(self) -> Tensor:
        """The bias of the map, (L,)."""
        found = self.map.bias
        assert found is not None  # it is made with one
        return found


def block_stem(channels: int, block: int | None) -> nn.Module:
    """Return a `BlockStem`, or for None a layer that does nothing and has no parameters."""
    return nn.Identity() if block is None else BlockStem(channels, block)


class ValueStem(nn.Module):
    """Uint8 (N, C, H, W) to float (N, C, H, W): each value is looked up in a learned table of 256 entries.

    With `block` M there is a table for every channel and position in an M x M block, C * M * M in all, because FFX and
    NP leave about half of the positions as they are; with None, one for every channel. `table` (tables, 256) starts as
    `(v / 255 - mean) / std`. H and W are multiples of `block`.
    """

    offset: Tensor

    def __init__(self, block: int | None, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        side = block if block is not None else 1
        if side < 1 or len(mean) != len(std) or not mean or min(std) <= 0:
            raise ApiMisuse("a value stem needs a block above zero, one mean and std per channel, and std above zero")
        self.channels, self.block = len(mean), side
        centre, scale = (torch.tensor(part, dtype=torch.float32).repeat_interleave(side**2) for part in (mean, std))
        natural = torch.arange(_VALUES, dtype=torch.float32) / 255.0
        self.table = nn.Parameter((natural - centre[:, None]) / scale[:, None])
        tables = torch.arange(len(self.table), dtype=torch.int32) * _VALUES
        self.register_buffer("offset", tables.reshape(self.channels, side, side))

    def forward(self, image: Tensor) -> Tensor:
        """Return the looked-up values of uint8 images."""
        height, width = image.shape[2:]
        places = image.to(torch.int32) + self.offset.repeat(1, height // self.block, width // self.block)
        # One flat index_select: its gradient is a plain index_add, 30 times faster on a CPU than an embedding's.
        return self.table.reshape(-1).index_select(0, places.reshape(-1)).reshape(image.shape)
