"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747; MIT licence), and any set in MNIST's IDX format.

Read as the official IDX files, packed with gzip or not, or with the pictures as xz of raw bytes, in files named for the
number of their first picture: `train_images_00000.xz`, `train_images_10000.xz`, …, `test_images.xz`.
"""

import math
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tessera.keystore.errors import Malformed
from tessera.protect.data.arrays import ArrayDataset, Split
from tessera.protect.data.packed import read_unpacked
from tessera.protect.data.paths import dataset_folder, first_file

NAMES: Final = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
MEAN: Final = (0.28604,)
STD: Final = (0.35302,)
SIDE: Final = 28

_MAX_BYTES: Final = 2**30
_HALVES: Final = (("train", "train"), ("t10k", "test"))
_LAYOUT: Final = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k, each as it is or as .gz; "
    "or train_images_00000.xz … and test_images.xz beside the two label files."
)


def fashion_mnist(path: Path) -> Split:
    """Return Fashion-MNIST from `path`, its folder or one that holds it as `fashion_mnist`, as uint8 (N, 1, 28, 28).

    Raises `NotFound` for a missing folder or file, `Malformed` for a damaged one or for counts that do not agree.
    """
    folder = dataset_folder(path, "fashion_mnist", _holds, _LAYOUT)
    train, test = (_half(folder, official, ours) for official, ours in _HALVES)
    return Split(train, test)


def parse_idx(raw: bytes, name: str, *, dimensions: int) -> NDArray[np.uint8]:
    """Return the uint8 array of an IDX file: 0, 0, 8, D, then D big-endian 32-bit sizes, then the bytes.

    Raises `Malformed` for another kind, another D than `dimensions`, or sizes that do not fit the bytes.
    """
    start = 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes((0, 0, 8, dimensions)):
        raise Malformed(
            f"{name} is not an IDX file of bytes with {dimensions} dimensions", remedy="Fetch the official file again."
        )
    sizes = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4))
    if math.prod(sizes) != len(raw) - start:
        shown = "x".join(map(str, sizes))
        raise Malformed(f"{name} claims {shown} bytes and holds {len(raw) - start}", remedy="Fetch the file again.")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(sizes)


def _files(stem: str) -> tuple[str, str]:
    return f"{stem}.gz", stem


def _images_file(folder: Path, official: str) -> Path | None:
    return first_file(folder, _files(f"{official}-images-idx3-ubyte"))


def _parts(folder: Path, ours: str) -> list[Path]:
    whole = folder / f"{ours}_images.xz"
    return [whole] if whole.is_file() else sorted(folder.glob(f"{ours}_images_[0-9][0-9][0-9][0-9][0-9].xz"))


def _holds(folder: Path) -> bool:
    return any(_images_file(folder, official) or _parts(folder, ours) for official, ours in _HALVES)


def _half(folder: Path, official: str, ours: str) -> ArrayDataset:
    labels_file = first_file(folder, _files(f"{official}-labels-idx1-ubyte"))
    if labels_file is None:
        raise Malformed(f"{folder} has no labels: {official}-labels-idx1-ubyte(.gz) is missing", remedy=_LAYOUT)
    labels = parse_idx(read_unpacked(labels_file, max_bytes=_MAX_BYTES), str(labels_file), dimensions=1)
    source = _images_file(folder, official)
    if source is not None:
        images = parse_idx(read_unpacked(source, max_bytes=_MAX_BYTES), str(source), dimensions=3)
    else:
        images = _raw_images(folder, ours)
        labels = labels[: len(images)]  # the raw files may hold the first part of the set only
    if len(images) != len(labels) or not len(images):
        raise Malformed(f"{folder} has {len(images)} pictures and {len(labels)} labels in its {ours} half")
    if images.shape[1:] != (SIDE, SIDE) or labels.max() >= len(NAMES):
        height, width = images.shape[1:]
        raise Malformed(
            f"the {ours} half of {folder} has {height}x{width} pixels and labels up to {labels.max()}, "
            f"not {SIDE}x{SIDE} and {len(NAMES) - 1}"
        )
    return ArrayDataset(torch.from_numpy(images[:, None].copy()), torch.from_numpy(labels.astype(np.int64)), NAMES)


def _raw_images(folder: Path, ours: str) -> NDArray[np.uint8]:
    parts: list[NDArray[np.uint8]] = []
    for part in _parts(folder, ours):
        raw = read_unpacked(part, max_bytes=_MAX_BYTES)
        have = sum(map(len, parts))
        if len(raw) % (SIDE * SIDE) or not raw:
            raise Malformed(f"{part} holds {len(raw)} bytes, not a multiple of {SIDE * SIDE}", remedy="Fetch it again.")
        if part.stem != f"{ours}_images" and int(part.stem.rsplit("_", 1)[1]) != have:
            raise Malformed(f"{part} does not follow on the {have} pictures before it", remedy="Fetch all the parts.")
        parts.append(np.frombuffer(raw, dtype=np.uint8).reshape(-1, SIDE, SIDE))
    if not parts:
        raise Malformed(f"{folder} has no pictures for {ours}", remedy=_LAYOUT)
    return np.concatenate(parts)
