"""A buyer's copy of a model: the same weights, each a little up or down by the buyer's chips (rules F-4, F-5)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from tessera.keystore.copyright import CopyrightRecord
from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.keystore.secrets import FingerprintKey, InputKey
from tessera.protect.bundle import Bundle
from tessera.protect.fingerprint.chips import as_rows, carriers, draw_chips, fingerprint_key, row_scales
from tessera.protect.fingerprint.matching import Floats

STRENGTH: Final = 0.005
MIN_STRENGTH: Final = 0.001
MAX_STRENGTH: Final = 0.1
MIN_KEPT: Final = 0.5
"""Share of the chips that must survive rounding to the weights' own type."""
MIN_CHIPS: Final = 1024
"""Of a whole model. An untouched copy fits with z = 32 then, the square root of its chips, and being named takes
about 6: in a smaller model a thief would have little to spoil.
"""

_DIGITS: Final = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}
"""Binary digits of a value's significand, the hidden one included."""


def fingerprint(bundle: Bundle, key: InputKey, record: CopyrightRecord, *, strength: float = STRENGTH) -> Bundle:
    """Return a buyer's copy of `bundle`, which stays as it is; the same arguments give the same bits.

    `key` is the vendor's secret, `strength` the size of the mark in root mean squares of each row of weights. Measures
    and report are the original's: nothing is measured again. Raises `ApiMisuse` for a strength outside 0.001 to 0.1 and
    for one that the weights' type rounds away; `Malformed` for a bundle in tiers and one with too few weights.
    """
    refuse_tiers(bundle)
    return dataclasses.replace(bundle, tensors=mark(bundle.tensors, key, record, strength=strength))


def mark(
    tensors: Mapping[str, Tensor], key: InputKey, record: CopyrightRecord, *, strength: float = STRENGTH
) -> dict[str, Tensor]:
    """Return marked weights by name; those that carry nothing are the same objects. Raises as `fingerprint`."""
    check_strength(strength)
    own = fingerprint_key(key, record)
    found = dict(tensors)
    marked = kept = 0
    for name, names in carriers(tensors).items():
        rows = as_rows(tensors[name])
        made, change = _marked(tensors[name], rows, own, name, strength)
        marked += int(np.count_nonzero(rows))
        kept += change
        found |= {name: made.clone() if number else made for number, name in enumerate(names)}
    if marked < MIN_CHIPS:
        raise Malformed(
            f"the model has {marked} weights that can carry a fingerprint, fewer than {MIN_CHIPS}",
            remedy="Fingerprint a model with matrices or convolutions of 256 values and more.",
        )
    if kept < MIN_KEPT * marked:
        raise ApiMisuse(
            f"only {kept / marked:.0%} of a fingerprint of strength {strength} survive rounding to the weights' type",
            remedy=_stronger(tensors, strength),
        )
    return found


def check_strength(strength: float) -> None:
    """Raise `ApiMisuse` for a strength outside 0.001 to 0.1 (rule F-5)."""
    if not (math.isfinite(strength) and MIN_STRENGTH <= strength <= MAX_STRENGTH):
        raise ApiMisuse(
            f"a fingerprint's strength is from {MIN_STRENGTH} to {MAX_STRENGTH}, not {strength}",
            remedy=f"Take {STRENGTH}, unless you measured what another one costs.",
        )


def refuse_tiers(bundle: Bundle) -> None:
    """Raise `Malformed` for a bundle whose own weights are decoys in part."""
    if bundle.tiers:
        raise Malformed(
            "the bundle is in tiers: its fingerprint goes into the full model",
            remedy="Use the bundle from before `tessera protect encrypt`, and encrypt the copy.",
        )


def _marked(tensor: Tensor, rows: Floats, key: FingerprintKey, name: str, strength: float) -> tuple[Tensor, int]:
    """Return the tensor with its mark and how many values changed. Zeros stay, and what would overflow."""
    chips = draw_chips(key, name, rows.size).reshape(rows.shape)
    made = torch.from_numpy(rows + strength * row_scales(rows) * chips).reshape(tensor.shape).to(tensor.dtype)
    made = torch.where((tensor != 0) & torch.isfinite(made), made, tensor)
    return made, int((made != tensor).sum())


def _stronger(tensors: Mapping[str, Tensor], strength: float) -> str:
    """Return the remedy: the strength at which three quarters of the chips reach half a unit in the last place."""
    needed = []
    for name in carriers(tensors):
        rows = as_rows(tensors[name])
        half_unit = np.ldexp(0.5, np.frexp(rows)[1] - _DIGITS[tensors[name].dtype])
        scales = np.broadcast_to(row_scales(rows), rows.shape)
        sound = (rows != 0) & (scales > 0) & np.isfinite(scales)
        needed.append(half_unit[sound] / scales[sound])
    values = np.concatenate(needed)
    wanted = float(np.quantile(values, 0.75)) if values.size else math.inf
    if strength < wanted <= MAX_STRENGTH:
        return f"Take a strength of {wanted:.2g} or more, or fingerprint the weights before they are rounded."
    return "Fingerprint the weights before they are rounded to that type."
