"""What unlabelled images tell a first layer before any training: components of blocks, an order of their values.

Both fits see images as the network will see them, transformed, and neither the key nor a plain image. They commute with
the keyed transforms: SHF and NP permute and invert the columns of a whitening, FFX the entries of a table.
"""

from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from tessera.protect.models.stems import ValueStem

MAX_VALUES: Final = 2**24
"""Most pixel values that a fit looks at; of more images a part is taken, evenly."""

_FLOOR = 1e-2
"""Added to the variance of each principal component, of pixels of variance one: the faintest stay faint."""

_RIDGE = 0.02
_PSEUDO_COUNT = 10.0
"""A table entry that is seldom seen is drawn towards the mean as if by so many values at it."""


def whiten(images: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Return weight (L, L) and bias (L,) that map a block of normalised float `images` to its principal components.

    Rows come in the order of falling variance; L = C * block ** 2, in the order of a convolution's kernel.
    """
    patches = F.unfold(_part(images), block, stride=block).transpose(1, 2).reshape(-1, images.shape[1] * block * block)
    mean = patches.mean(dim=0)
    centred = (patches - mean).double()
    variances, components = torch.linalg.eigh(centred.T @ centred / len(centred))
    order = variances.argsort(descending=True)
    weight = (components[:, order] / (variances[order].clamp(min=0) + _FLOOR).sqrt()).T.float()
    return weight, -weight @ mean


def scale_values(stem: ValueStem, pixels: Tensor) -> None:
    """Set the tables of `stem` so that neighbouring positions of a block tell each other's values, from uint8 `pixels`.

    Optimal scaling by alternating conditional expectations (Breiman & Friedman 1985): a table's entry for v becomes the
    mean, over all places that hold v, of what the other positions of the block say; first by their common principal
    component, then by linear regression. Values of natural images are ordered so after two rounds, whatever table they
    went through, because neighbours are alike. Each table gets mean 0 and variance 1 over the images.
    """
    shown, side = _part(pixels), stem.block
    patches = F.unfold(shown.float(), side, stride=side).transpose(1, 2).reshape(-1, len(stem.table))
    entries = (patches.long() + torch.arange(len(stem.table)) * 256).reshape(-1)
    counts = torch.bincount(entries, minlength=stem.table.numel()).float()
    scaled = _standard(patches)
    for told in (_common, _by_the_others):
        sums = torch.bincount(entries, weights=told(scaled).reshape(-1), minlength=stem.table.numel())
        table = (sums.float() / (counts + _PSEUDO_COUNT)).reshape(stem.table.shape)
        scaled = table.reshape(-1)[entries].reshape(patches.shape)
        mean, deviation = scaled.mean(dim=0), scaled.std(dim=0).clamp(min=1e-6)
        scaled = (scaled - mean) / deviation
        table = (table - mean[:, None]) / deviation[:, None]
    with torch.no_grad():
        stem.table.copy_(table)


def _common(values: Tensor) -> Tensor:
    """Return the first principal component of each row, in every column."""
    _, components = torch.linalg.eigh(values.T @ values / len(values))
    found: Tensor = values @ components[:, -1]
    return (found / found.std())[:, None].expand(values.shape)


def _by_the_others(values: Tensor) -> Tensor:
    """Return what the other columns of each row say about each column, by ridge regression."""
    covariance = values.T @ values / len(values)
    precision = torch.linalg.inv(covariance + _RIDGE * torch.eye(len(covariance)))
    told: Tensor = values - (values @ precision) / precision.diagonal()
    return told


def _standard(values: Tensor) -> Tensor:
    return (values - values.mean(dim=0)) / values.std(dim=0).clamp(min=1e-6)


def _part(images: Tensor) -> Tensor:
    return images[:: max(1, -(-images.numel() // MAX_VALUES))]
