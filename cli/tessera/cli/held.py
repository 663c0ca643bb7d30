"""Labelled images that commands measure on: a recipe's, or those of a file."""

from pathlib import Path
from typing import TYPE_CHECKING

from tessera.cli.reading import argument
from tessera.keystore.errors import Malformed, NotFound

if TYPE_CHECKING:
    from tessera.protect import Split


def held_by_recipe(name: str, data: Path | None) -> "Split":
    """Return the data of a recipe. Raises what its loader raises."""
    from tessera.protect import recipe as recipe_called

    with argument("--recipe"):
        return recipe_called(name).task(data).data


def held_in_file(path: Path | None) -> "Split":
    """Return the labelled images of an .npz file: even ones to work with, odd ones to measure. Raises `Malformed`."""
    import numpy as np
    import torch

    from tessera.protect import ArrayDataset, Split
    from tessera.protect.data.npz import read_npz, take

    assert path is not None
    with argument("--samples", only=(Malformed, NotFound)):
        arrays = read_npz(path)
        images, labels = take(arrays, "images", path), take(arrays, "labels", path)
        if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != (len(images),) or len(images) < 2:
            raise Malformed(f"{path} does not hold two or more uint8 images (N, C, H, W) with a label each")
        if labels.dtype.kind not in "iu" or int(labels.min()) < 0:
            raise Malformed(f"{path} holds labels that are no classes")
    pixels, classes = torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
    return Split(ArrayDataset(pixels[::2], classes[::2]), ArrayDataset(pixels[1::2], classes[1::2]))
