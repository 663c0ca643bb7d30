"""Data that models are trained on: uint8 images and integer labels, held in memory."""

import hashlib
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tessera.keystore.errors import ApiMisuse
from tessera.protect.extras import MissingExtra

DIGITS_TEST_COUNT: Final = 500


class ArrayDataset(Dataset[tuple[Tensor, int]]):
    """Images uint8 (N, C, H, W) with labels int64 (N,), N >= 1. Raises `ApiMisuse` for other dtypes or shapes."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
            raise ApiMisuse(f"images are uint8 (N, C, H, W) with N >= 1, not {images.dtype} {tuple(images.shape)}")
        if labels.dtype != torch.int64 or labels.shape != (len(images),):
            raise ApiMisuse(f"labels are int64 ({len(images)},), not {labels.dtype} {tuple(labels.shape)}")
        self.images, self.labels = images.contiguous(), labels.contiguous()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    @property
    def shape(self) -> tuple[int, int, int]:
        """The (C, H, W) of its images."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width


class Split(NamedTuple):
    """What a model learns from and what it is judged by; the two share no sample."""

    train: ArrayDataset
    test: ArrayDataset


def materialise(dataset: Dataset[tuple[Tensor, int]]) -> ArrayDataset:
    """Return any map-style dataset of (uint8 (C, H, W) tensor or array, integer label) as arrays in memory.

    Raises `ApiMisuse` when it has no length, is empty, or an item has another form.
    """
    if isinstance(dataset, ArrayDataset):
        return dataset
    size = getattr(dataset, "__len__", None)
    if size is None or not size():
        raise ApiMisuse("a training set needs a length above zero", remedy="Give a map-style torch Dataset.")
    pairs = [dataset[index] for index in range(size())]
    try:
        images = torch.stack([torch.as_tensor(image) for image, _ in pairs])
        labels = torch.tensor([int(label) for _, label in pairs], dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ApiMisuse("a dataset's items are not all (uint8 C x H x W, integer label) of one shape") from error
    return ArrayDataset(images, labels)


def digits(test_count: int = DIGITS_TEST_COUNT) -> Split:
    """Return scikit-learn's 1,797 scans of handwritten digits as uint8 (N, 1, 8, 8), split the same way everywhere.

    The scans hold 0 … 16 ink levels v; a pixel is (v * 255 + 8) // 16, so 0 stays 0 and 16 becomes 255. Sample i goes
    to the test set when SHA-256 of the text `tessera/digits/<i>` is among the `test_count` smallest. Raises
    `MissingExtra` when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "demo", "for the digits data") from error
    found = load_digits()
    levels = np.asarray(found.images, dtype=np.int64)
    images = torch.from_numpy(((levels * 255 + 8) // 16).astype(np.uint8))[:, None]
    labels = torch.from_numpy(np.asarray(found.target, dtype=np.int64))
    ranked = sorted(range(len(images)), key=lambda index: hashlib.sha256(f"tessera/digits/{index}".encode()).digest())
    test, train = sorted(ranked[:test_count]), sorted(ranked[test_count:])
    return Split(ArrayDataset(images[train], labels[train]), ArrayDataset(images[test], labels[test]))


def image_shape(data: Split) -> tuple[int, int, int]:
    """Return the (C, H, W) that both halves share. Raises `ApiMisuse` when they differ."""
    if data.train.shape != data.test.shape:
        raise ApiMisuse(f"training images are {data.train.shape} and test images {data.test.shape}")
    return data.train.shape
