"""Adapters that let any network take raw pixels; what is exported and served."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse


class PixelModel(nn.Module):
    """Takes uint8 (N, C, H, W), gives `network((pixels / 255 - mean) / std)`, in the dtype of the network's weights.

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
        pixels = self.normalised(image)
        kind = _kind(self.network)
        result: Tensor = self.network(pixels if kind == pixels.dtype else pixels.to(kind))
        return result

    def normalised(self, image: Tensor) -> Tensor:
        """Return float32 of the same shape; the network is given it in the dtype of its own weights."""
        return (image.to(torch.float32) / 255.0 - self.mean) / self.std


def _kind(network: nn.Module) -> torch.dtype:
    """Return the dtype of the first weights of `network`: half precision and double take no float32."""
    kinds = (weight.dtype for weight in network.parameters() if weight.is_floating_point())
    return next(kinds, torch.float32)


class ByteModel(nn.Module):
    """Takes uint8 (N, C, H, W), gives `network(stem(pixels))`; the stem makes floats of bytes, see `ValueStem`."""

    def __init__(self, stem: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.stem, self.network = stem, network

    def forward(self, image: Tensor) -> Tensor:
        """Return the network's output for uint8 images."""
        result: Tensor = self.network(self.normalised(image))
        return result

    def normalised(self, image: Tensor) -> Tensor:
        """Return what the network is given: the stem's floats."""
        found: Tensor = self.stem(image)
        return found
