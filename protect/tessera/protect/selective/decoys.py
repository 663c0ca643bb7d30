"""Decoys: what stands in the public weights where the true ones were taken out.

    normal    the paper's: every position an independent normal with the layer's mean and spread at that position. It
              needs statistics over the secret units too, and a test of smoothness tells it from trained kernels.
    kernel    a public (unselected) unit of the layer, drawn at random, its direction blended with noise of the
              directions' covariance, its norm kept. It keeps how the weights of a unit hang together and how norms
              are spread, and tells nothing about the secret values: it is a function of the public units alone.

Random bits come from SHAKE-256 under a 32-byte secret seed; no small integer is ever a seed. Nobody needs decoys again,
so the seed may be thrown away; keep it to make the same file again, or one file per buyer.
"""

import hashlib
import math
import secrets
from collections.abc import Callable
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import Key32
from tessera.protect.selective.units import Layer

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
DecoyKind = Literal["kernel", "normal"]

BLEND: Final = 0.6
"""Noise against drawn direction. Below 0.3 the nearest public unit gives a decoy away; above 0.7 its roughness does."""
MIN_DONORS: Final = 16
"""With fewer public units a layer says nothing about itself, and decoys are what an untrained layer would hold."""


class DecoySeed(Key32):
    """Seed of decoys; whoever has it can tell decoys from true weights."""

    __slots__ = ()


class SecretStream:
    """Random numbers that nobody without the seed can tell from uniform ones; the same for the same seed and label."""

    def __init__(self, seed: DecoySeed, label: str) -> None:
        name = label.encode()
        self._prefix = b"tessera/v1/decoys\n" + seed.reveal() + len(name).to_bytes(4, "big") + name
        self._draws = 0

    def uniforms(self, *shape: int) -> Floats:
        """Return float64 in the open interval 0 … 1 with 53 random bits each."""
        count = int(np.prod(shape))
        raw = hashlib.shake_256(self._prefix + self._draws.to_bytes(8, "big")).digest(8 * count)
        self._draws += 1
        return ((np.frombuffer(raw, "<u8") >> 11).astype(np.float64) + 0.5).reshape(shape) * 2.0**-53

    def normals(self, *shape: int) -> Floats:
        """Return standard normal float64."""
        found: Floats = torch.special.ndtri(torch.from_numpy(self.uniforms(*shape))).numpy()
        return found

    def integers(self, count: int, below: int) -> npt.NDArray[np.int64]:
        """Return `count` integers 0 … below - 1 (their bias is under below / 2^53)."""
        return np.minimum((self.uniforms(count) * below).astype(np.int64), below - 1)


def make_decoys(kind: DecoyKind, layer: Layer, rows: Floats, selected: Mask, seed: DecoySeed) -> Floats:
    """Return decoys (selected.sum(), layer.elements) for the selected of `rows` (layer.count, layer.elements).

    Raises `ApiMisuse` for an unknown kind or arrays that do not fit the layer.
    """
    if rows.shape != (layer.count, layer.elements) or selected.shape != (layer.count,):
        raise ApiMisuse(f"{layer.weight} has {layer.count} units of {layer.elements} weights")
    check_kind(kind)
    return DECOYS[kind](layer, rows, selected, SecretStream(seed, f"{kind}/{layer.weight}"))


def check_kind(kind: str) -> None:
    """Raise `ApiMisuse` for a kind of decoys that there is none of."""
    if kind not in DECOYS:
        raise ApiMisuse(f"there are no decoys of the kind {kind!r}", remedy=f"They are: {', '.join(DECOYS)}.")


def normal_decoys(layer: Layer, rows: Floats, selected: Mask, stream: SecretStream) -> Floats:
    """Return the paper's decoys: N(mean, spread^2) of the layer at each position, independently."""
    found: Floats = rows.mean(axis=0) + rows.std(axis=0) * stream.normals(int(selected.sum()), layer.elements)
    return found


def kernel_decoys(layer: Layer, rows: Floats, selected: Mask, stream: SecretStream) -> Floats:
    """Return decoys drawn from the public units: direction of one, blended with noise like the others, its norm."""
    count, public = int(selected.sum()), rows[~selected]
    norms = np.linalg.norm(public, axis=1)
    public, norms = public[norms > 0], norms[norms > 0]
    if len(norms) < MIN_DONORS:
        spread = math.sqrt(2 / (layer.columns * layer.elements))
        return spread * stream.normals(count, layer.elements)
    directions = public / norms[:, None]
    donors = stream.integers(count, len(norms))
    noise = stream.normals(count, layer.elements) @ _root(directions).T
    blended = directions[donors] + BLEND * noise
    found: Floats = blended / np.linalg.norm(blended, axis=1, keepdims=True) * norms[donors][:, None]
    return found


DECOYS: Final[dict[str, Callable[[Layer, Floats, Mask, SecretStream], Floats]]] = {
    "kernel": kernel_decoys,
    "normal": normal_decoys,
}


def fresh_seed() -> DecoySeed:
    """Return a seed from the operating system's generator."""
    return DecoySeed(secrets.token_bytes(32))


def _root(directions: Floats) -> Floats:
    """Return a square root of the directions' second moments, so that noise through it looks like them."""
    values, vectors = np.linalg.eigh(directions.T @ directions / len(directions))
    root: Floats = vectors * np.sqrt(np.clip(values, 0, None))
    return root
