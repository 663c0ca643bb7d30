"""A part of a data set, the same in every run."""

from typing import Any

import torch

from tessera.protect.data import ArrayDataset, SegmentationDataset


def sample(data: ArrayDataset | SegmentationDataset, count: int) -> Any:
    """Return `count` samples of a fixed shuffle, in the form of `data`: files hold them class by class."""
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]
    if isinstance(data, SegmentationDataset):
        return SegmentationDataset(data.images[chosen], data.labels[chosen], data.classes, data.ignore)
    return ArrayDataset(data.images[chosen], data.labels[chosen])
