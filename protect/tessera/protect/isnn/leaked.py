"""A leaked model and labelled images, read from files for a trace."""

from pathlib import Path
from typing import Final

from torch import nn

from tessera.keystore.errors import Malformed
from tessera.protect.audit.loading import labelled
from tessera.protect.audit.programs import ProgramModel
from tessera.protect.bundle import Bundle
from tessera.protect.data import ArrayDataset
from tessera.protect.data.npz import read_npz, take

_MOST_CLASSES: Final = 1 << 16
_REMEDY: Final = "Write it with numpy.savez(FILE, images=uint8 NCHW, labels=integers)."


def module_of(bundle: Bundle) -> nn.Module:
    """Return a bundle's model. Raises `Malformed` when its program cannot be loaded or does not fit its weights."""
    return ProgramModel(bundle.program, bundle.tensors)


def labelled_npz(path: Path) -> ArrayDataset:
    """Return the plain images and labels of an .npz: `images` uint8 (N, C, H, W), `labels` integers (N,).

    Raises `NotFound`, or `Malformed` naming the file when it holds anything else.
    """
    arrays = read_npz(path)
    found = labelled(take(arrays, "images", path), take(arrays, "labels", path), _MOST_CLASSES, path)
    if not isinstance(found, ArrayDataset):
        raise Malformed(f"{path}: a trace needs one label for each image, not one for each pixel", remedy=_REMEDY)
    return found
