"""Labelled images in memory: what a model is trained on and judged by."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tessera.keystore.errors import ApiMisuse

MAX_CLASSES = 255
"""Most classes of a segmentation: a label is one byte and one value stays free to be ignored."""


class ArrayDataset(Dataset[tuple[Tensor, int]]):
    """Images uint8 (N, C, H, W) with labels int64 (N,), N >= 1, labels at least 0.

    `names` are the classes' names in the order of their labels, where they are known. Raises `ApiMisuse` for other
    dtypes, shapes or labels.
    """

    def __init__(self, images: Tensor, labels: Tensor, names: Sequence[str] = ()) -> None:
        _check_images(images)
        if labels.dtype != torch.int64 or labels.shape != (len(images),):
            raise ApiMisuse(f"labels are int64 ({len(images)},), not {labels.dtype} {tuple(labels.shape)}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or (names and high >= len(names)):
            raise ApiMisuse(f"labels reach from {low} to {high}, and there are {len(names) or 'no negative'} classes")
        self.images, self.labels, self.names = images.contiguous(), labels.contiguous(), tuple(names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    @property
    def shape(self) -> tuple[int, int, int]:
        """The (C, H, W) of its images."""
        return _shape(self.images)

    @property
    def classes(self) -> int:
        """The number of classes: of `names`, or where they are not known the largest label plus one."""
        return len(self.names) or int(self.labels.max()) + 1


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images uint8 (N, C, H, W) with a class for every pixel, labels uint8 (N, H, W), N >= 1.

    A label is below `classes`, or equals `ignore`: such a pixel counts neither in the loss nor in the score. Raises
    `ApiMisuse` for other dtypes, shapes or labels.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, classes: int, ignore: int | None = None, names: Sequence[str] = ()
    ) -> None:
        _check_images(images)
        if labels.dtype != torch.uint8 or labels.shape != (len(images), *images.shape[2:]):
            wanted = (len(images), *images.shape[2:])
            raise ApiMisuse(f"labels are uint8 {wanted}, not {labels.dtype} {tuple(labels.shape)}")
        if not 1 <= classes <= MAX_CLASSES or (ignore is not None and not classes <= ignore <= MAX_CLASSES):
            raise ApiMisuse(
                f"a segmentation has 1 to {MAX_CLASSES} classes and ignores a value above them, "
                f"not {classes} and {ignore}"
            )
        if names and len(names) != classes:
            raise ApiMisuse(f"there are {classes} classes and {len(names)} names")
        stray = stray_label(labels, classes, ignore)
        if stray is not None:
            raise ApiMisuse(f"label {stray} is neither below {classes} nor the ignored value {ignore}")
        self.images, self.labels = images.contiguous(), labels.contiguous()
        self.classes, self.ignore, self.names = classes, ignore, tuple(names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The (C, H, W) of its images."""
        return _shape(self.images)


class Split(NamedTuple):
    """What a model learns from and what it is judged by; the two share no sample and are of one kind."""

    train: ArrayDataset | SegmentationDataset
    test: ArrayDataset | SegmentationDataset


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


def image_shape(data: Split) -> tuple[int, int, int]:
    """Return the (C, H, W) that both halves share. Raises `ApiMisuse` when they differ."""
    if data.train.shape != data.test.shape:
        raise ApiMisuse(f"training images are {data.train.shape} and test images {data.test.shape}")
    return data.train.shape


def stray_label(labels: Tensor, classes: int, ignore: int | None) -> int | None:
    """Return a value of uint8 `labels` that is neither below `classes` nor `ignore`, or None when there is none."""
    counts = torch.bincount(labels.reshape(-1), minlength=256)
    counts[:classes] = 0
    if ignore is not None:
        counts[ignore] = 0
    found = counts.nonzero()
    return int(found[0]) if len(found) else None


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        raise ApiMisuse(f"images are uint8 (N, C, H, W) with N >= 1, not {images.dtype} {tuple(images.shape)}")


def _shape(images: Tensor) -> tuple[int, int, int]:
    channels, height, width = images.shape[1:]
    return channels, height, width
