"""Ten classes of Tiny ImageNet (Stanford CS231N), 64x64: JPEG files one after another beside an index.

`train.jpegs` and `val.jpegs` hold the pictures; `train_index.npz` and `val_index.npz` hold `offsets` (n + 1 places in
the file), `labels` (n) and `classes` (their names). The complete set as folders of pictures is an `image_folder`.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from tessera.keystore._files import read_limited
from tessera.keystore.errors import Malformed
from tessera.protect.data.arrays import ArrayDataset, Split
from tessera.protect.data.images import MAX_FILE_BYTES, decode, map_files, stack
from tessera.protect.data.npz import read_npz, take
from tessera.protect.data.paths import dataset_folder

MEAN: Final = (0.4878, 0.4502, 0.3899)
STD: Final = (0.2791, 0.2626, 0.2881)

_LAYOUT: Final = "train.jpegs, train_index.npz, val.jpegs and val_index.npz."


def tiny_imagenet(path: Path) -> Split:
    """Return the set from `path`, its folder or one that holds it as `tiny_imagenet10`, as uint8 (N, 3, H, W).

    `val` is the test half. Raises `NotFound` for a missing folder or file, `Malformed` for an index that does not fit
    its pictures, a label out of range or a damaged picture.
    """
    folder = dataset_folder(path, "tiny_imagenet10", lambda found: (found / "train_index.npz").is_file(), _LAYOUT)
    return Split(_half(folder, "train"), _half(folder, "val"))


def _half(folder: Path, name: str) -> ArrayDataset:
    index_file, file = folder / f"{name}_index.npz", folder / f"{name}.jpegs"
    arrays = read_npz(index_file)
    raw = read_limited(file, max_bytes=MAX_FILE_BYTES)
    offsets, labels, classes = (take(arrays, part, index_file) for part in ("offsets", "labels", "classes"))
    places, numbers, names = check_index(offsets, labels, classes, len(raw), index_file)
    titles = [f"picture {number} of {file}" for number in range(len(numbers))]

    def load(number: int) -> NDArray[np.uint8]:
        return decode(raw[places[number] : places[number + 1]], titles[number])

    return ArrayDataset(stack(map_files(load, range(len(numbers))), titles), torch.tensor(numbers), names)


def check_index(
    offsets: NDArray[Any], labels: NDArray[Any], classes: NDArray[Any], size: int, path: Path
) -> tuple[list[int], list[int], list[str]]:
    """Return the three as lists, checked against each other and the `size` of the pictures' file in bytes.

    Raises `Malformed`, naming `path`.
    """
    if offsets.dtype.kind not in "iu" or labels.dtype.kind not in "iu" or classes.dtype.kind != "U":
        raise Malformed(f"{path} is to hold whole numbers as offsets and labels, and text as classes")
    if {offsets.ndim, labels.ndim, classes.ndim} != {1} or not len(labels) or len(offsets) != len(labels) + 1:
        raise Malformed(f"{path} has {offsets.shape} offsets, {labels.shape} labels and {classes.shape} classes")
    places, numbers = [int(place) for place in offsets], [int(label) for label in labels]
    if places[0] != 0 or places[-1] != size or any(high <= low for low, high in pairwise(places)):
        raise Malformed(f"{path} does not fit its pictures, a file of {size} bytes", remedy="Fetch both files again.")
    if not 0 <= min(numbers) <= max(numbers) < len(classes):
        raise Malformed(f"{path} has labels from {min(numbers)} to {max(numbers)} for {len(classes)} classes")
    return places, numbers, [str(name) for name in classes]
