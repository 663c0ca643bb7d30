"""Grey pictures for denoising: Set12, BSD68 and Train400, each a tar archive of PNG files or a folder of them."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tessera.keystore._files import read_limited
from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.protect.data.images import MAX_FILE_BYTES, decode, map_files
from tessera.protect.data.packed import read_tar
from tessera.protect.data.paths import dataset_folder

COUNTS: Final = {"Set12": 12, "BSD68": 68, "Train400": 400}
"""The sets and their numbers of pictures."""
OVERLAP: Final = "test_020.png"
"""The picture of Train400 that is Set12's starfish: leave it out of training when Set12 is the test."""


def denoise_set(path: Path, name: str) -> list[NDArray[np.uint8]]:
    """Return the pictures of the set `name` as uint8 (1, H, W), of various sizes, in the order of their file names.

    `path` is the folder of `<name>.tar` or of the folder `<name>`, or holds it as `denoise`. `Train400` comes without
    `OVERLAP`, so 399 pictures. Raises `NotFound` for a missing folder, `Malformed` for a damaged archive or picture or
    another number of pictures, `ApiMisuse` for another name.
    """
    if name not in COUNTS:
        raise ApiMisuse(f"{name} is no denoising set", remedy=f"Choose one of: {', '.join(COUNTS)}.")
    layout = f"{name}.tar, or a folder {name} with PNG files."
    folder = dataset_folder(path, "denoise", lambda found: _source(found, name).exists(), layout)
    source = _source(folder, name)
    files = _tarred(source) if source.is_file() else _loose(source)
    if len(files) != COUNTS[name]:
        raise Malformed(f"{source} holds {len(files)} PNG files, not {COUNTS[name]}", remedy="Fetch the set again.")
    kept = sorted(title for title in files if name != "Train400" or Path(title).name != OVERLAP)
    return list(map_files(lambda title: decode(files[title], f"{title} of {source}", channels=1), kept))


def _source(folder: Path, name: str) -> Path:
    archive = folder / f"{name}.tar"
    return archive if archive.is_file() else folder / name


def _tarred(archive: Path) -> dict[str, bytes]:
    return {name: raw for name, raw in read_tar(archive).items() if name.lower().endswith(".png")}


def _loose(folder: Path) -> dict[str, bytes]:
    return {file.name: read_limited(file, max_bytes=MAX_FILE_BYTES) for file in folder.glob("*.png")}
