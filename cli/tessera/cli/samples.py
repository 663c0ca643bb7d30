"""Files that a buyer infers on: .npy arrays and images, read first, then held against what the model takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.cli import kinds
from tessera.cli.reading import reading
from tessera.keystore.errors import Malformed, NotFound

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from tessera.client import ModelContract

    Array = NDArray[Any]
    Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Given:
    """What one input file holds: an array, or a picture whose colours the model's channels decide on."""

    path: Path
    content: "Array | Image"

    def samples(self, contract: "ModelContract") -> "Pixels":
        """Return the file's samples as a batch in the model's layout.

        A grey image needs no channel axis, one sample no batch axis. Pictures become grey or RGB as the model has one
        channel or three, and are never resized. Raises `Malformed`, naming the file, for what does not fit.
        """
        import numpy as np

        shape = _pixel_shape(contract)
        array = self.content if isinstance(self.content, np.ndarray) else _planes(self.path, self.content, shape)
        if array.dtype != np.uint8:
            raise Malformed(
                f"{self.path} holds {array.dtype}, the model takes uint8", remedy="scale to 0 … 255 and convert"
            )
        if array.shape[-len(shape) :] != shape and array.shape[-2:] == shape[1:] and shape[0] == 1:
            array = array[..., None, :, :]
        if array.shape[-len(shape) :] != shape or array.ndim not in (len(shape), len(shape) + 1):
            raise _other_shape(self.path, array.shape, shape)
        if not array.size:
            raise Malformed(f"{self.path} holds no sample", remedy="give at least one sample")
        return np.ascontiguousarray(array.reshape(-1, *shape))


def read(path: Path) -> Given:
    """Return what an input file holds; nothing is unpickled. Raises `NotFound`, `Denied` or `Malformed`."""
    with reading(path, kinds.INPUT):
        return Given(path, _array(path) if path.suffix == ".npy" else _picture(path))


def load_samples(path: Path, contract: "ModelContract") -> "Pixels":
    """Return the samples of a file as a uint8 batch in the model's layout. Raises as `read` and `Given.samples`."""
    return read(path).samples(contract)


def _array(path: Path) -> "Array":
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, MemoryError):
        raise Malformed("not a .npy array of numbers") from None
    if not isinstance(found, np.ndarray):  # a zip archive of arrays under this name
        raise Malformed("not a .npy array of numbers")
    return found


def _picture(path: Path) -> "Image":
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError:
        raise NotFound(
            f"{path} is taken for an image, and image files need Pillow",
            reason="extra-missing",
            remedy="pip install pillow, or give a .npy array",
        ) from None
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        raise Malformed("not an image that can be read") from None


def _planes(path: Path, picture: "Image", shape: Sequence[int]) -> "Pixels":
    import numpy as np

    if shape[0] not in (1, 3):
        raise Malformed(
            f"{path} is an image, the model takes {shape[0]} channels", remedy="give a .npy array of all channels"
        )
    pixels = np.asarray(picture.convert("L" if shape[0] == 1 else "RGB"), dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def _pixel_shape(contract: "ModelContract") -> tuple[int, ...]:
    if len(contract.inputs) != 1 or len(contract.inputs[0].shape) != 4 or contract.inputs[0].datatype != "UINT8":
        takes = ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in contract.inputs)
        raise Malformed(
            f"model {contract.name} takes {takes}; this command feeds models of uint8 images",
            remedy="use the Python client, which takes a mapping of arrays",
        )
    return tuple(contract.inputs[0].shape[1:])


def _other_shape(path: Path, found: Sequence[int], shape: Sequence[int]) -> Malformed:
    return Malformed(
        f"{path} has shape {list(found)}, the model takes {list(shape)} for each sample",
        remedy="crop or resize it first: the size is part of the model, and nothing is resized silently",
    )
