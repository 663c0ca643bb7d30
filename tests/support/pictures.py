"""Small picture files for the tests of data readers, made with Pillow from known pixels."""

import io
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def pixels(seed: int, *shape: int) -> Pixels:
    """Return uint8 noise of `shape`, the same for the same seed."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(picture: Pixels, kind: str = "PNG", **options: object) -> bytes:
    """Return (C, H, W) or (H, W) pixels as a picture file."""
    rows = picture if picture.ndim == 2 else picture.transpose(1, 2, 0)
    rows = rows[..., 0] if rows.shape[2:] == (1,) else rows
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rows)).save(file, kind, **options)
    return file.getvalue()


def write(path: Path, picture: Pixels, kind: str = "PNG", **options: object) -> None:
    """Write the picture file, making its folder when needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(picture, kind, **options))


def tar(path: Path, files: dict[str, bytes]) -> None:
    """Write a tar archive of regular files."""
    with tarfile.open(path, "w") as archive:
        for name, raw in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
