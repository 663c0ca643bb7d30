"""First layers that can absorb a keyed transform, learned or set from the key by its owner.

SHF and NP are an affine map of each block, so one linear map per block undoes them: `BlockStem`. FFX and NP replace
each value on its own, so a table of 256 entries per position undoes them: `ValueStem`. Both start as the identity, so
that a network with a stem starts where the same network without one does.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.transforms import Transform, TransformSpec

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

    def undo(self, spec: TransformSpec, key: InputKey, mean: Sequence[float], std: Sequence[float]) -> None:
        """Put the inverse of `spec` under `key` before the present map, for pixels normalised with `mean` and `std`.

        A network behind it then answers transformed images as it answered plain ones before, up to rounding. Raises
        `ApiMisuse` for a spec that is not affine (FFX), `TransformError` when its blocks do not divide this one.
        """
        if len(mean) != self.channels or len(std) != self.channels or min(std) <= 0:
            raise ApiMisuse(f"mean and std need {self.channels} numbers each, and std above zero")
        matrix, offset = self._inverse(spec, key)
        centre, scale = (np.repeat(np.asarray(part, np.float64), self.block**2) for part in (mean, std))
        # pixels = scale * normalised + centre, on both sides of the inverse
        first = torch.from_numpy(matrix * scale / scale[:, None])
        first_bias = torch.from_numpy((matrix @ centre + offset - centre) / scale)
        with torch.no_grad():
            present = self.map.weight.reshape(self.values, self.values).double()
            bias = present @ first_bias + self.bias.double()
            self.map.weight.copy_((present @ first).reshape(self.map.weight.shape))
            self.bias.copy_(bias)

    @property
    def bias(self) -> Tensor:
        """The bias of the map, (L,)."""
        found = self.map.bias
        assert found is not None  # it is made with one
        return found

    def _inverse(self, spec: TransformSpec, key: InputKey) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return A (L, L) and b (L,) with plain = A keyed + b, for a block's pixels scaled to 0 … 1."""
        inverse = Transform(spec, key, self.channels, self.block, self.block).inverse

        def answers(blocks: NDArray[np.uint8]) -> NDArray[np.int64]:
            shaped = blocks.reshape(-1, self.channels, self.block, self.block)
            return inverse(shaped).reshape(-1, self.values).astype(np.int64)

        offset = answers(np.zeros(self.values, dtype=np.uint8))[0]
        matrix = (answers(np.eye(self.values, dtype=np.uint8) * np.uint8(255)) - offset).T // 255
        probe = np.random.default_rng(0).integers(0, 256, (8, self.values), dtype=np.uint8)
        if not np.array_equal(probe.astype(np.int64) @ matrix.T + offset, answers(probe)):
            raise ApiMisuse(f"{spec} is not an affine map of a block", remedy="Use a ValueStem for FFX.")
        return matrix.astype(np.float64), offset / 255.0


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

    def undo(self, spec: TransformSpec, key: InputKey) -> None:
        """Put the entries of each table in the order that undoes `spec` under `key`: entry T(v) becomes v's entry.

        A network behind it then answers transformed images exactly as it answered plain ones before. Raises `ApiMisuse`
        for a spec that moves values (SHF), `TransformError` when its blocks do not divide this one.
        """
        side = self.block
        transform = Transform(spec, key, self.channels, side, side)
        levels = np.arange(_VALUES, dtype=np.uint8)[:, None, None, None]
        keyed = transform(np.broadcast_to(levels, (_VALUES, self.channels, side, side)).copy())
        probe = np.random.default_rng(0).integers(0, 256, (8, self.channels, side, side), dtype=np.uint8)
        looked_up = np.take_along_axis(keyed.reshape(_VALUES, -1), probe.reshape(8, -1).astype(np.int64), axis=0)
        if not np.array_equal(looked_up, transform(probe).reshape(8, -1)):
            raise ApiMisuse(f"{spec} moves values between positions", remedy="Use a BlockStem for SHF.")
        places = torch.from_numpy(keyed.reshape(_VALUES, -1).T.astype(np.int64))
        with torch.no_grad():
            self.table.copy_(torch.empty_like(self.table).scatter_(1, places, self.table))
