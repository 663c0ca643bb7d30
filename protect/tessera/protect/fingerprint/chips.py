"""Which weights carry a fingerprint, and what each of them carries (docs/spec.md, rules F-1 to F-5).

A buyer's mark is one sign, a *chip*, for each weight, drawn from the vendor's secret and the buyer's copyright record.
Chips of different records are independent coin tosses to whoever does not hold the secret; that is all that the
significance of an identification rests on.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.keystore.copyright import CopyrightRecord
from tessera.keystore.kdf import expand, extract
from tessera.keystore.secrets import FingerprintKey, InputKey
from tessera.transforms.schedule import draw_bits

MIN_VALUES: Final = 256
"""Fewer values in a tensor carry too little to be worth a change."""
DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_KEY_LABEL: Final = b"tessera/v1/fingerprint-key\n"
_CHIPS_LABEL: Final = "tessera/v1/fingerprint-chips/tensor="


def fingerprint_key(secret: InputKey, record: CopyrightRecord) -> FingerprintKey:
    """Return what a record's chips are drawn from (rule F-1)."""
    return FingerprintKey(expand(extract(b"", secret.reveal()), _KEY_LABEL + record.to_bytes(), 32))


def draw_chips(key: FingerprintKey, name: str, count: int) -> NDArray[np.int8]:
    """Return `count` chips, each -1 or +1, of the tensor `name`, in row-major order (rule F-2)."""
    label = _CHIPS_LABEL + hashlib.sha256(name.encode("utf-8")).hexdigest()
    chips = draw_bits(key, label, count).view(np.int8)
    chips <<= 1
    chips -= 1
    return chips


def carriers(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Return the tensors that carry a mark, each with the names under which it is stored (rule F-3).

    Weights that are tied are stored once for each name; they carry one mark, that of the name that sorts first, so
    that they stay equal.
    """
    groups: dict[object, list[list[str]]] = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if not _is_carrier(tensor):
            continue
        alike = groups.setdefault((tensor.dtype, tensor.shape, tuple(tensor.reshape(-1)[:8].tolist())), [])
        tied = next((names for names in alike if torch.equal(tensors[names[0]], tensor)), None)
        if tied is None:
            alike.append([name])
        else:
            tied.append(name)
    found = {names[0]: tuple(names) for alike in groups.values() for names in alike}
    return dict(sorted(found.items()))


def row_scales(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the root mean square of each row's values that are not zero, (rows, 1), as float32 knows it (rule F-4).

    Rounding makes it the same whatever the order of summation. A row of zeros has the scale 0.
    """
    energy = np.einsum("ij,ij->i", rows, rows)
    filled = np.count_nonzero(rows, axis=1)
    with np.errstate(over="ignore"):  # a row beyond float32 has an infinite scale and keeps its values
        scales = np.sqrt(energy / np.maximum(filled, 1)).astype(np.float32)
    found: NDArray[np.float64] = scales.astype(np.float64)[:, None]
    return found


def as_rows(tensor: Tensor) -> NDArray[np.float64]:
    """Return a tensor as float64 (outputs, rest): its first axis by all others."""
    found: NDArray[np.float64] = tensor.detach().to(torch.float64).reshape(tensor.shape[0], -1).numpy()
    return found


def _is_carrier(tensor: Tensor) -> bool:
    if tensor.dtype not in DTYPES or tensor.ndim < 2 or tensor.numel() < MIN_VALUES:
        return False
    return bool(torch.isfinite(tensor).all()) and bool((tensor != 0).any())
