"""Weights that turned up somewhere: the folder of a bundle, or what is left of one, or a safetensors file."""

from pathlib import Path
from typing import Final

from torch import Tensor

from tessera.keystore._files import read_limited
from tessera.keystore.errors import Malformed
from tessera.protect.bundle import MAX_WEIGHTS_BYTES, WEIGHTS_FILE, parse_weights

_REMEDY: Final = "Give a .safetensors file of plain weights, or the folder of a bundle."


def read_leaked(path: Path) -> dict[str, Tensor]:
    """Return the weights at `path` by name. Of a folder only `weights.safetensors` is read, whatever its permissions.

    Raises `NotFound` or `Denied` when there is nothing to read, `Malformed` for a file that is too large, that is no
    safetensors file, or that holds no tensor of two dimensions, as a sealed package does.
    """
    file = path / WEIGHTS_FILE if path.is_dir() else path
    found = parse_weights(read_limited(file, max_bytes=MAX_WEIGHTS_BYTES), str(file), remedy=_REMEDY)
    if not any(tensor.ndim >= 2 and not tensor.is_complex() for tensor in found.values()):
        raise Malformed(f"{file} holds no matrix of weights", remedy=_REMEDY)
    return found
