"""Folders of pictures, one folder per class: `train/<class>/*.png` beside `test/<class>/*.png`.

`val` or `valid` stand for `test` where there is none. Classes are numbered in the order of their names, of `train`.
"""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tessera.keystore._files import read_limited
from tessera.keystore.errors import Malformed, NotFound
from tessera.protect.data.arrays import ArrayDataset, Split
from tessera.protect.data.images import MAX_FILE_BYTES, decode, map_files, stack
from tessera.protect.data.paths import ENVIRONMENT, entries, looking_into

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".webp"})

_TESTS: Final = ("test", "val", "valid")
_LAYOUT: Final = "Expected: train/<class>/*.png and test/<class>/*.png (or val/…); JPEG and WebP are read too."


def image_folder(path: Path, *, size: tuple[int, int] | None = None, channels: int = 3) -> Split:
    """Return the pictures below `path` as uint8 (N, channels, H, W) with their folders' numbers as labels.

    `size` (H, W) resizes every picture; without it all must have one size. `channels` is 3 (RGB) or 1 (grey). Raises
    `NotFound` for a missing folder, `Malformed` for one without labels, a class of `test` that `train` lacks, an empty
    class or a damaged picture.
    """
    test = _test_folder(path)
    names = _classes(path / "train")
    strangers = [name for name in _classes(test) if name not in names]
    if strangers:
        raise Malformed(f"{test} has the class {strangers[0]} and {path / 'train'} has not", remedy=_LAYOUT)
    return Split(_half(path / "train", names, size, channels), _half(test, names, size, channels))


def _test_folder(path: Path) -> Path:
    """Return the folder to test with, once that and the one to train with are there."""
    with looking_into(path):
        if not (path / "train").is_dir():
            raise NotFound(
                f"there is no folder {path / 'train'}",
                remedy=f"Give the folder above it with --data PATH or the variable {ENVIRONMENT}. {_LAYOUT}",
            )
        test = next((path / name for name in _TESTS if (path / name).is_dir()), None)
        if test is None:
            raise NotFound(f"{path} has none of the folders {', '.join(_TESTS)}", remedy=_LAYOUT)
        return test


def _classes(folder: Path) -> list[str]:
    found = [entry.name for entry in entries(folder) if entry.is_dir() and not entry.name.startswith(".")]
    if not found:
        raise Malformed(f"{folder} has no folders, so its pictures have no labels", remedy=_LAYOUT)
    return found


def _half(folder: Path, names: list[str], size: tuple[int, int] | None, channels: int) -> ArrayDataset:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if not (folder / name).is_dir():  # a test set may lack a class
            continue
        found = [entry for entry in entries(folder / name) if entry.suffix.lower() in SUFFIXES]
        if not found:
            raise Malformed(f"{folder / name} has no pictures", remedy=f"Remove the folder or fill it. {_LAYOUT}")
        files += found
        labels += [label] * len(found)

    def load(file: Path) -> NDArray[np.uint8]:
        return decode(read_limited(file, max_bytes=MAX_FILE_BYTES), str(file), channels=channels, size=size)

    images = stack(map_files(load, files), [str(file) for file in files])
    return ArrayDataset(images, torch.tensor(labels, dtype=torch.int64), names)
