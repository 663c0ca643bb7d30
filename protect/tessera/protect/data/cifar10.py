"""CIFAR-10 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009) in the three usual forms.

* mosaics: `train_1.webp` … `train_5.webp` and `test.webp`, each 100x100 pictures of 32x32 in one lossless 3200x3200
  WebP, row by row, picture i with label i // 1000;
* the official python batches: `data_batch_1` … `data_batch_5` and `test_batch`, also inside `cifar-10-batches-py`;
* folders of pictures: `train/<class>/*.png` and `test/<class>/*.png`, also JPEG or WebP.
"""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.keystore._files import read_limited
from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.protect.data.arrays import ArrayDataset, Split
from tessera.protect.data.folders import image_folder
from tessera.protect.data.images import MAX_FILE_BYTES, decode_rows, map_files
from tessera.protect.data.paths import dataset_folder
from tessera.protect.data.pickles import read_batch

NAMES: Final = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN: Final = (0.4914, 0.4822, 0.4465)
STD: Final = (0.2470, 0.2435, 0.2616)
SIDE: Final = 32
TRAIN_FILES: Final = 5

_GRID: Final = 100
_PER_FILE: Final = _GRID * _GRID
_BATCHES: Final = "cifar-10-batches-py"
_LAYOUT: Final = (
    "train_1.webp to train_5.webp and test.webp, or data_batch_1 to data_batch_5 and test_batch, "
    "or the folders train/<class> and test/<class> with pictures."
)


def cifar10(path: Path, *, train_files: int = TRAIN_FILES) -> Split:
    """Return CIFAR-10 from `path`, the data set's folder or one that holds it as `cifar10`, as uint8 (N, 3, 32, 32).

    `train_files` 1 to 5 limits training to the first of the five files of 10,000 pictures, for quick trials; image
    folders are always read whole. Raises `NotFound` for a missing folder or file, `Malformed` for a damaged one.
    """
    if not 1 <= train_files <= TRAIN_FILES:
        raise ApiMisuse(f"train_files is 1 to {TRAIN_FILES}, not {train_files}")
    folder = dataset_folder(path, "cifar10", _holds, _LAYOUT)
    if _has_mosaics(folder):
        return _from_files([folder / f"train_{i + 1}.webp" for i in range(train_files)], folder / "test.webp")
    if (folder / _BATCHES).is_dir():
        folder = folder / _BATCHES
    if _has_batches(folder):
        return _from_files([folder / f"data_batch_{i + 1}" for i in range(train_files)], folder / "test_batch")
    return _from_folders(folder)


def _has_mosaics(folder: Path) -> bool:
    return (folder / "test.webp").is_file() or (folder / "train_1.webp").is_file()


def _has_batches(folder: Path) -> bool:
    return (folder / "test_batch").is_file() or (folder / "data_batch_1").is_file()


def _holds(folder: Path) -> bool:
    batches = _has_batches(folder) or (folder / _BATCHES).is_dir()
    return _has_mosaics(folder) or batches or (folder / "train" / NAMES[0]).is_dir()


def _from_files(train: list[Path], test: Path) -> Split:
    images = np.empty(((len(train) + 1) * _PER_FILE, 3, SIDE, SIDE), dtype=np.uint8)
    labels = np.empty(len(images), dtype=np.int64)
    paths = [*train, test]

    def load(index: int) -> None:
        part = slice(index * _PER_FILE, (index + 1) * _PER_FILE)
        pixels, classes = (_mosaic if paths[index].suffix == ".webp" else _batch)(paths[index])
        images[part], labels[part] = pixels, classes

    list(map_files(load, range(len(paths))))
    return _split(torch.from_numpy(images), torch.from_numpy(labels), len(train) * _PER_FILE)


def _split(images: Tensor, labels: Tensor, train: int) -> Split:
    return Split(
        ArrayDataset(images[:train], labels[:train], NAMES), ArrayDataset(images[train:], labels[train:], NAMES)
    )


def _mosaic(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    picture = decode_rows(read_limited(path, max_bytes=MAX_FILE_BYTES), str(path))
    if picture.shape != (_GRID * SIDE, _GRID * SIDE, 3):
        height, width = picture.shape[:2]
        raise Malformed(
            f"{path} is {height}x{width} pixels, not {_GRID * SIDE}x{_GRID * SIDE}",
            remedy="It is to hold 100 by 100 pictures of 32x32 pixels.",
        )
    tiles = picture.reshape(_GRID, SIDE, _GRID, SIDE, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, SIDE, SIDE)
    return tiles, np.arange(_PER_FILE, dtype=np.int64) // (_PER_FILE // len(NAMES))


def _batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    pixels, labels = read_batch(path, values=3 * SIDE * SIDE)
    if len(labels) != _PER_FILE:
        raise Malformed(f"{path} holds {len(labels)} pictures, not {_PER_FILE}", remedy="Fetch the file again.")
    if labels.min() < 0 or labels.max() >= len(NAMES):
        raise Malformed(f"{path} has labels from {labels.min()} to {labels.max()}, not 0 to {len(NAMES) - 1}")
    return pixels.reshape(-1, 3, SIDE, SIDE), labels


def _from_folders(folder: Path) -> Split:
    found = image_folder(folder, size=None, channels=3)
    if found.train.names != NAMES:
        raise Malformed(
            f"{folder / 'train'} has the classes {', '.join(found.train.names)}",
            remedy=f"The classes of CIFAR-10 are {', '.join(NAMES)}. Read other pictures as an image folder.",
        )
    for part in found:
        if part.shape != (3, SIDE, SIDE):
            raise Malformed(f"{folder} has pictures of {part.shape[1]}x{part.shape[2]} pixels, not {SIDE}x{SIDE}")
    return found
