"""Bit-compatible with published research code, to reproduce its numbers: NEVER for a product, never for a real key.

What the public code of MaungMaung and Kiya does (fugokidi/block_transform, written for arXiv 2010.00801; its transforms
are those of "A protection method of trained CNN model with a secret key from unauthorized access", 2021): keys are
seeds of a Mersenne twister, FFX is the ten-round HMAC-SHA1 Feistel of `pyffx` on three decimal digits, transforms work
on normalised floats, and FFX divides by the table's largest value, so that results are no bytes and rounding loses
information. Our own transforms (`tessera.transforms`) share none of it. Written from a description and recorded
vectors; nothing of either package is used.

    locked = ReproducedFfx(seed=42, block=4, mean=CIFAR10_MEAN, std=CIFAR10_STD)(normalised)   # float (N, C, H, W)
"""

import hmac
import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from tessera.transforms import TransformError

CIFAR10_MEAN: Final = (0.4914, 0.4822, 0.4465)
CIFAR10_STD: Final = (0.2471, 0.2435, 0.2616)

RIGHT_SEED: Final = 42
"""The key in the published runs; also the seed of everything else in them."""
WRONG_SEED: Final = 123
"""The one wrong key of the published evaluation."""
PASSWORD: Final = b"password"

_ROUNDS: Final = 10
_DIGITS: Final = 3
_DIGITS_OF_A_HASH: Final = 48


def reproduced_permutation(seed: int, length: int) -> Tensor:
    """Return the published shuffling key, int64: `torch.manual_seed(seed)`, then `torch.randperm(length)` on a CPU.

    torch's global generator is left as it was.
    """
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))


def reproduced_mask(seed: int, length: int) -> Tensor:
    """Return the published binary key of NP and FFX, bool: strictly above half, so `length` / 2 - 1 are True."""
    return reproduced_permutation(seed, length) > length / 2


def reproduced_table(password: bytes = PASSWORD) -> Tensor:
    """Return what the published FFX makes of 0 … 255: int64, 256 different values from 0 to 999."""
    return torch.tensor([pyffx_integer(password, value, _DIGITS) for value in range(256)], dtype=torch.int64)


def pyffx_integer(password: bytes, value: int, length: int) -> int:
    """Return what pyffx 0.3.0's `Integer(password, length).encrypt(value)` returns, on a little-endian machine.

    Raises `TransformError` for a value that has more than `length` decimal digits.
    """
    text = str(value).zfill(length)
    if value < 0 or len(text) > length:
        raise TransformError(f"{value} has not {length} decimal digits", remedy="Give a value that fits.")
    numerals = [int(character) for character in text]
    left, right = numerals[: length // 2], numerals[length // 2 :]
    for number in range(_ROUNDS):
        added = [(a + b) % 10 for a, b in zip(left, _stream(password, number, right), strict=False)]
        left, right = right, added
    return int("".join(map(str, left + right)))


def _stream(password: bytes, number: int, half: Sequence[int]) -> Iterator[int]:
    """Yield the decimal digits of a round, least significant of each hash first; each hash is chained into the next."""
    words = [number, *half]
    base = struct.pack(f"<{len(words)}I", *words)
    for counter in itertools.count():
        base = hmac.digest(password, base + struct.pack("<I", counter), "sha1")
        left = int.from_bytes(base, "big")
        for _ in range(_DIGITS_OF_A_HASH):
            left, digit = divmod(left, 10)
            yield digit


class _Reproduced:
    """What the published transforms share: float (N, C, H, W), normalised; M divides H and W, or `TransformError`."""

    def __init__(self, seed: int, block: int, mean: Sequence[float], std: Sequence[float]) -> None:
        if block < 1 or len(mean) != len(std):
            raise TransformError("block, mean or std is wrong", remedy="Give M of at least 1, and one pair a channel.")
        self.seed, self.block, self.channels = seed, block, len(mean)
        self.length = block * block * self.channels
        self._mean = torch.tensor(mean).reshape(1, -1, 1, 1)
        self._std = torch.tensor(std).reshape(1, -1, 1, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the transformed batch, normalised like `x`."""
        if not x.is_floating_point() or x.ndim != 4 or x.shape[1] != self.channels:
            raise TransformError(
                f"the reproduction needs normalised floats (N, {self.channels}, H, W), not {x.dtype} {tuple(x.shape)}",
                remedy="Scale to 0 … 1 and normalise first, as the published code does.",
            )
        if x.shape[2] % self.block or x.shape[3] % self.block:
            raise TransformError(
                f"block size {self.block} does not divide {tuple(x.shape[2:])}", remedy="Resize first."
            )
        return self._transform(x)

    def _transform(self, x: Tensor) -> Tensor:
        """Return NP's or FFX's result; SHF works on normalised values and has its own."""
        mean, std = self._mean.to(x), self._std.to(x)
        return (self._integrated(self._change(self._segmented(x * std + mean)), x) - mean) / std

    def _change(self, blocks: Tensor) -> Tensor:
        raise NotImplementedError

    def _segmented(self, x: Tensor) -> Tensor:
        """Return (N, H/M, W/M, L): in a block row, then column, then channel, channel fastest."""
        count, channels, height, width = x.shape
        m = self.block
        parts = x.permute(0, 2, 3, 1).reshape(count, height // m, m, width // m, m, channels)
        return parts.permute(0, 1, 3, 2, 4, 5).reshape(count, height // m, width // m, self.length)

    def _integrated(self, blocks: Tensor, like: Tensor) -> Tensor:
        count, channels, height, width = like.shape
        m = self.block
        parts = blocks.reshape(count, height // m, width // m, m, m, channels).permute(0, 1, 3, 2, 4, 5)
        return parts.reshape(count, height, width, channels).permute(0, 3, 1, 2)


class ReproducedShf(_Reproduced):
    """The published pixel shuffling, y[i] = x[p[i]], on normalised values as they are."""

    def _transform(self, x: Tensor) -> Tensor:
        order = reproduced_permutation(self.seed, self.length).to(x.device)
        return self._integrated(self._segmented(x)[..., order], x)


class ReproducedNp(_Reproduced):
    """The published negative/positive: 1 - x where the binary key is set, on values in 0 … 1."""

    def _change(self, blocks: Tensor) -> Tensor:
        inverted = reproduced_mask(self.seed, self.length).to(blocks.device)
        return torch.where(inverted, 1 - blocks, blocks)


class ReproducedFfx(_Reproduced):
    """The published FFX: floor(255 x), the table where the binary key is set, and everything over the table's maximum.

    Lossy: a value outside the mask comes back as floor(255 x) / 996 or so.
    """

    def __init__(
        self, seed: int, block: int, mean: Sequence[float], std: Sequence[float], password: bytes = PASSWORD
    ) -> None:
        super().__init__(seed, block, mean, std)
        self._table = reproduced_table(password)

    def _change(self, blocks: Tensor) -> Tensor:
        table = self._table.to(blocks.device)
        chosen = reproduced_mask(self.seed, self.length).to(blocks.device)
        values = (blocks.clamp(0, 1) * 255).long()
        return torch.where(chosen, table[values], values).to(blocks) / table.max()
