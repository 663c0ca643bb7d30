"""Pictures from bytes: PNG, JPEG and WebP, size-capped, with every fault of a file as one typed error.

Only these three decoders are ever tried, whatever a file is called; nothing is written to disk.
"""

import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.protect.extras import MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS: Final = ("PNG", "JPEG", "WEBP")
MAX_PIXELS: Final = 64 * 2**20
"""Most pixels of one picture: what a file of a few bytes may claim before memory is given to it."""
MAX_FILE_BYTES: Final = 2**30

_DEPTH_8 = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})
_MODES: Final = {1: "L", 3: "RGB"}
_In = TypeVar("_In")
_Out = TypeVar("_Out")


def decode(raw: bytes, name: str, *, channels: int = 3, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Return a picture as uint8 (channels, H, W), channels 1 (grey) or 3 (RGB); `size` (H, W) resizes it, bilinear.

    `name` is how errors call the file. Raises `Malformed` when the bytes are no whole 8-bit PNG, JPEG or WebP of at
    most `MAX_PIXELS`, `MissingExtra` without Pillow.
    """
    if channels not in _MODES:
        raise ApiMisuse(f"a picture has 1 or 3 channels, not {channels}")
    pixels = _read(raw, name, mode=_MODES[channels], size=size, smooth=True)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1))


def decode_rows(raw: bytes, name: str) -> NDArray[np.uint8]:
    """Return an RGB picture as uint8 (H, W, 3), the order of the file; errors as `decode`."""
    return _read(raw, name, mode="RGB", size=None, smooth=True)


def decode_labels(raw: bytes, name: str, *, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Return a map of class numbers as uint8 (H, W): the grey values or palette indices as stored.

    `size` (H, W) resizes by the nearest pixel. Raises `Malformed` as `decode`, and for a coloured picture.
    """
    return _read(raw, name, mode="labels", size=size, smooth=False)


def map_files(work: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """Yield `work(item)` in order, computed on a few threads: the decoders let go of the interpreter's lock."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(work, items)


def stack(pictures: Iterable[NDArray[np.uint8]], names: list[str]) -> Tensor:
    """Return pictures (C, H, W) of one size as uint8 (N, C, H, W). Raises `Malformed` naming the first that differs."""
    result: NDArray[np.uint8] | None = None  # filled by NumPy: torch's threads would fight the decoders'
    for index, picture in enumerate(pictures):
        if result is None:
            result = np.empty((len(names), *picture.shape), dtype=np.uint8)
        if picture.shape != result.shape[1:]:
            wanted, found = result.shape[-2:], picture.shape[-2:]
            raise Malformed(
                f"{names[index]} is {found[0]}x{found[1]} pixels and {names[0]} is {wanted[0]}x{wanted[1]}",
                remedy="Give `size` so that all pictures are resized to one height and width.",
            )
        result[index] = picture
    if result is None:
        raise ApiMisuse("there are no pictures to stack")
    return torch.from_numpy(result)


def _read(raw: bytes, name: str, *, mode: str, size: tuple[int, int] | None, smooth: bool) -> NDArray[np.uint8]:
    if size is not None and min(size) < 1:
        raise ApiMisuse(f"pictures cannot be resized to {size[0]}x{size[1]} pixels")
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("Pillow", "vendor", "to read pictures") from error
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            _check(image, name, labels=mode == "labels")
            picture: Image.Image = image if mode == "labels" or image.mode == mode else image.convert(mode)
            if size is not None and picture.size != (size[1], size[0]):
                how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
                picture = picture.resize((size[1], size[0]), how)
            return np.array(picture, dtype=np.uint8)
    except Malformed:
        raise
    except Exception as error:  # each decoder has its own ways to fail on damaged bytes
        raise Malformed(
            f"{name} is not a readable picture ({type(error).__name__})",
            remedy="Replace or remove the file. PNG, JPEG and WebP are read.",
        ) from error


def _check(image: "Image", name: str, *, labels: bool) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Malformed(f"{name} has {width}x{height} pixels, more than {MAX_PIXELS}", remedy="Make it smaller.")
    if image.mode not in _DEPTH_8:
        raise Malformed(f"{name} has pixels of the kind {image.mode}", remedy="Save it with 8 bits per channel.")
    if labels and image.mode not in ("L", "P"):
        raise Malformed(
            f"{name} is a picture of the kind {image.mode}, not a map of class numbers",
            remedy="Save it as an 8-bit grey or palette PNG whose values are the class numbers.",
        )
