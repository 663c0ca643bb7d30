"""Decoys: what stands in the public weights where the true ones were taken out.

    normal    the paper's: every position an independent normal with the layer's mean and spread at that position. It
              needs statistics over the secret units too, and a test of smoothness tells it from trained kernels.
    kernel    a public (unselected) unit of the layer, drawn at random, its direction blended with noise of the
              directions' covariance, its norm with noise of the norms' spread: a norm kept as it was would be the only
              one in the layer that two units have. It keeps how the weights of a unit hang together and how norms are
              spread, and tells nothing about the secret values: it is a function of the public units alone. How
              much noise is chosen for each layer: too little, and a decoy's likeness to its donor gives it away; too
              much, and its roughness does. Where the layer's weights are coarser than their dtype (they were rounded to
              half precision, quantised or pruned), so are the decoys: one number of full precision, or one that is
              not zero where others are, would tell.

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
from tessera.protect.selective.suspicion import auc, residual, shape, smoothness
from tessera.protect.selective.units import Floats, Layer, Mask

DecoyKind = Literal["kernel", "normal"]
Indices = npt.NDArray[np.int64]

BLENDS: Final = (0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.4, 2.0)
"""Noise against drawn direction: what is tried."""
USUAL_BLEND: Final = 0.6
"""For units of one or two weights, whose likeness to each other says nothing."""
TRIALS: Final = 512
"""Decoys made to try a blend, and public units that they are compared with."""
MAX_REFERENCES: Final = 32_768
"""Public units of larger layers are sampled for the search of nearest ones."""
HALVES: Final = (torch.bfloat16, torch.float16)
"""Precisions that weights of a finer dtype may have been rounded to."""
FEW: Final = 0.1
REPEATED: Final = 0.9
"""Different weights as a share of all but the zeros: up to `FEW` they are on a grid, whatever precision holds it; up to
`REPEATED` where no half precision holds them. Weights of full precision hardly repeat."""
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
    lively, norms = public[norms > 0], norms[norms > 0]
    if len(norms) < MIN_DONORS:
        spread = math.sqrt(2 / (layer.columns * layer.elements))
        return as_coarse(spread * stream.normals(count, layer.elements), public)
    donors = _Donors(layer, lively / norms[:, None], norms)
    return as_coarse(donors.decoys(count, donors.best_blend(stream), stream), public)


def as_coarse(decoys: Floats, public: Floats) -> Floats:
    """Return `decoys` rounded as the `public` weights are: to a precision that holds them all, else to their grid."""
    if not public.size:
        return decoys
    exact, numbers = torch.from_numpy(public), public[public != 0]
    grid = np.unique(numbers)
    kind = next((kind for kind in HALVES if torch.equal(exact.to(kind).double(), exact)), None)
    if kind is not None and len(grid) > FEW * len(numbers):
        rounded: Floats = torch.from_numpy(decoys).to(kind).double().numpy()
        return rounded
    return decoys if len(grid) > REPEATED * len(numbers) or len(grid) < 2 else _nearest(decoys, grid)


def _nearest(values: Floats, grid: Floats) -> Floats:
    """Return each of `values` that is not zero moved to the nearest number of the sorted `grid`, two at least."""
    above = np.clip(np.searchsorted(grid, values), 1, len(grid) - 1)
    low, high = grid[above - 1], grid[above]
    found: Floats = np.where(values == 0, 0.0, np.where(values - low < high - values, low, high))
    return found


class _Donors:
    """The public units of a layer, taken apart into directions and norms."""

    def __init__(self, layer: Layer, directions: Floats, norms: Floats) -> None:
        self._layer, self._directions, self._norms = layer, directions, norms
        self._root, self._spread = _root(directions), _smoothing(np.log(norms))

    def decoys(self, count: int, blend: float, stream: SecretStream) -> Floats:
        """Return `count` decoys with so much noise."""
        donors = stream.integers(count, len(self._norms))
        noise = stream.normals(count, self._layer.elements) @ self._root.T
        # A pruned kernel's zeros stay: a decoy without any among kernels full of them would stand out.
        blended = (self._directions[donors] + blend * noise) * (self._directions[donors] != 0)
        norms = self._norms[donors] * np.exp(self._spread * stream.normals(count))
        found: Floats = blended / np.linalg.norm(blended, axis=1, keepdims=True) * norms[:, None]
        return found

    def best_blend(self, stream: SecretStream) -> float:
        """Return the blend whose decoys the most telling of the tests tells least from public units."""
        if self._layer.elements < 3:
            return USUAL_BLEND
        shown = np.argsort(stream.uniforms(len(self._norms)))[:TRIALS]
        known = np.argsort(stream.uniforms(len(self._norms)))[:MAX_REFERENCES]
        likeness = self._likeness(self._directions[shown], known, shown)
        telling = {blend: self._telling(self.decoys(TRIALS, blend, stream), shown, known, likeness) for blend in BLENDS}
        return min(telling, key=telling.__getitem__)

    def _telling(self, trial: Floats, shown: Indices, known: Indices, likeness: Floats) -> float:
        """Return how far the AUC of any test lies from 0.5, which tells nothing."""
        is_decoy = np.arange(len(shown) + len(trial)) >= len(shown)
        units = np.concatenate([self._directions[shown] * self._norms[shown][:, None], trial])
        scores = [test(self._layer, units) for test in (smoothness, residual, shape)]
        near = self._likeness(trial / np.linalg.norm(trial, axis=1, keepdims=True), known)
        scores.append(np.concatenate([likeness, near]))
        return max(abs(auc(score, is_decoy) - 0.5) for score in scores if score is not None)

    def _likeness(self, directions: Floats, known: Indices, own: Indices | None = None) -> Floats:
        """Return each direction's largest |cosine| with a known unit other than itself."""
        found = np.abs(directions.astype(np.float32) @ self._directions[known].astype(np.float32).T)
        if own is not None:
            found[own[:, None] == known[None]] = 0
        largest: Floats = found.max(axis=1).astype(np.float64)
        return largest


DECOYS: Final[dict[str, Callable[[Layer, Floats, Mask, SecretStream], Floats]]] = {
    "kernel": kernel_decoys,
    "normal": normal_decoys,
}


def fresh_seed() -> DecoySeed:
    """Return a seed from the operating system's generator."""
    return DecoySeed(secrets.token_bytes(32))


def _smoothing(values: Floats) -> float:
    """Return a width of noise that is many times the gaps between sorted `values` and small beside their spread.

    A quarter of Silverman's, by quartiles: what a density is smoothed with, less what would widen it.
    """
    low, high = np.quantile(values, (0.25, 0.75))
    return float(0.25 * (high - low) / 1.349 * len(values) ** -0.2)


def _root(directions: Floats) -> Floats:
    """Return a square root of the directions' second moments, so that noise through it looks like them."""
    values, vectors = np.linalg.eigh(directions.T @ directions / len(directions))
    root: Floats = vectors * np.sqrt(np.clip(values, 0, None))
    return root
