"""The invertible mask: encryption that keeps a layer's distribution exactly, for comparison with the paper's DPRM.

    u = F(w)        u' = u + PRF(key, layer, index) mod 1        w' = F^-1(u')        F: the layer's normal

w' is distributed as F whatever w is, since u' is uniform. The key and the two public statistics decrypt. It is *not*
what packages use: it goes through floats, so it is exact to about 1e-15 spreads near the mean, worse in the tails
(`mask_error`), and lost beyond 8 spreads; and F is a normal while trained weights are heavy-tailed, so masked weights
are lighter-tailed than their layer. Tiers carry the true bytes under an AEAD instead.
"""

from dataclasses import dataclass

import numpy as np
import torch

from tessera.keystore.errors import Malformed
from tessera.protect.selective.decoys import DecoySeed, SecretStream
from tessera.protect.selective.units import Floats


@dataclass(frozen=True)
class Normal:
    """F: a normal distribution of a layer's weights."""

    mean: float
    spread: float

    @classmethod
    def of(cls, weights: Floats) -> "Normal":
        """Return the normal with the mean and spread of `weights`. Raises `Malformed` when they are all the same."""
        found = cls(float(weights.mean()), float(weights.std()))
        if not found.spread > 0:
            raise Malformed("a layer whose weights are all the same cannot be masked")
        return found


def mask(weights: Floats, law: Normal, key: DecoySeed, label: str) -> Floats:
    """Return masked float64 weights of the same shape; `label` names the layer, and no two share one under one key."""
    return _shifted(weights, law, _shift(weights, key, label))


def unmask(masked: Floats, law: Normal, key: DecoySeed, label: str) -> Floats:
    """Return what `mask` was given, up to float error."""
    return _shifted(masked, law, -_shift(masked, key, label))


def mask_error(weights: Floats, key: DecoySeed) -> dict[str, float]:
    """Return the error of masking and unmasking `weights`, in spreads: its median, 99th percentile and maximum.

    `float32` says what the maximum becomes when masked weights are stored as float32, as a delivered model would be.
    """
    law = Normal.of(weights)
    masked = mask(weights, law, key, "error")
    error = np.abs(unmask(masked, law, key, "error") - weights) / law.spread
    stored = masked.astype(np.float32).astype(np.float64)
    rough = np.abs(unmask(stored, law, key, "error") - weights) / law.spread
    return {
        "median": float(np.median(error)),
        "p99": float(np.quantile(error, 0.99)),
        "max": float(error.max()),
        "float32_median": float(np.median(rough)),
        "float32_max": float(rough.max()),
    }


def _shift(weights: Floats, key: DecoySeed, label: str) -> Floats:
    return SecretStream(key, f"mask/{label}").uniforms(*weights.shape)


def _shifted(weights: Floats, law: Normal, shift: Floats) -> Floats:
    share = torch.special.ndtr(torch.from_numpy((weights - law.mean) / law.spread)).numpy()
    moved = np.clip((share + shift) % 1.0, 2.0**-53, 1 - 2.0**-53)  # the ends would be infinite
    found: Floats = torch.special.ndtri(torch.from_numpy(moved)).numpy() * law.spread + law.mean
    return found
