"""Published parameters from .npz files, checked against the network before anything is changed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tessera.keystore.errors import Malformed
from tessera.protect.data.npz import read_npz

_SHOWN = 4


def load_npz(module: nn.Module, path: Path) -> None:
    """Copy the arrays of `path` into the parameters and buffers of the same names; all or nothing.

    The counters `num_batches_tracked` of batch normalisation may be missing: no answer depends on them. Raises
    `NotFound`, or `Malformed` for a damaged file, names or shapes of another architecture, numbers of another kind, NaN
    or infinity.
    """
    found = read_npz(path)
    state = module.state_dict()
    _check_names(state, found, path)
    for name, array in found.items():
        _check_array(name, array, state[name], path)
    with torch.no_grad():
        for name, array in found.items():
            state[name].copy_(torch.from_numpy(array))


def _check_names(state: Mapping[str, Tensor], found: Mapping[str, object], path: Path) -> None:
    missing = [name for name in state if name not in found and not name.endswith(".num_batches_tracked")]
    strange = [name for name in found if name not in state]
    if missing or strange:
        lacks = f"it lacks {_listed(missing)}" if missing else ""
        more = f"it has {_listed(strange)}" if strange else ""
        raise Malformed(
            f"{path} holds the weights of another architecture: {' and '.join(filter(None, (lacks, more)))}",
            remedy="Build the network with the options its weights were trained with.",
        )


def _check_array(name: str, array: NDArray[Any], wanted: Tensor, path: Path) -> None:
    if array.shape != tuple(wanted.shape):
        raise Malformed(
            f"{path} holds the weights of another architecture: {name} is {array.shape}, not {tuple(wanted.shape)}",
            remedy="Build the network with the options its weights were trained with.",
        )
    kinds = "f" if wanted.is_floating_point() else "iu"
    if array.dtype.kind not in kinds:
        raise Malformed(f"{path} holds {name} as {array.dtype}, not as {wanted.dtype}")
    if not np.isfinite(array).all():
        raise Malformed(f"{path} holds NaN or infinity in {name}", remedy="Fetch or train the weights again.")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
