"""Statistics that tell decoys from trained weights without a key, and how well a statistic tells (AUC).

Each test gives every unit a number, larger for what looks like a decoy; the AUC is the probability that an encrypted
unit gets a larger one than a plain unit. 0.5 tells nothing; far *below* 0.5 tells as much as far above. The first two
are the measured attacks on the paper's DPRM, the others try what a better decoy could get wrong.

    smoothness   total variation of the kernel over the root of its energy (slices larger than 1 x 1 only)
    residual     energy outside the leading principal directions of the layer, two thirds of them
    shape        the same as a share of the unit's energy, which leaves its size out
    neighbour    largest |cosine| with another unit of the layer: decoys copied from public units
    norm         the unit's norm
    twin         how near another unit's norm is: decoys that keep the norm of a public unit
    grain        how many of its weights occur nowhere else: decoys finer than weights that were rounded or quantised
    channel      the norm against what its output and its input usually have: a loud decoy in a quiet channel
    place        how quiet its output and its input are: where a selector likes to choose, which no decoy can hide
"""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from tessera.keystore.errors import ApiMisuse
from tessera.protect.selective.units import Floats, Layer, Mask

MAX_NEIGHBOUR_UNITS: Final = 16_384
"""The neighbour test compares all pairs; larger layers are left out of it."""
MOSTLY_ALONE: Final = 0.99
"""With more weights of a value of their own a layer is of full precision, and the test of grain says nothing."""
_TINY: Final = 1e-30

Test = Callable[[Layer, Floats], Floats | None]


def smoothness(layer: Layer, rows: Floats) -> Floats | None:
    """Return total variation / norm of every unit; None for blocks of rows and kernels with a side of one weight."""
    if layer.kind != "conv" or min(layer.shape[2:]) < 2:
        return None
    kernels = rows.reshape(-1, *layer.shape[2:])
    variation = np.zeros(len(rows))
    for axis in range(1, kernels.ndim):
        variation += np.abs(np.diff(kernels, axis=axis)).reshape(len(rows), -1).sum(axis=1)
    found: Floats = variation / np.sqrt((rows**2).sum(axis=1) + _TINY)
    return found


def residual(layer: Layer, rows: Floats) -> Floats | None:
    """Return each unit's energy outside the leading two thirds of the principal directions; None below 3 weights."""
    if layer.elements < 3:
        return None
    centred = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    trailing = vectors[:, np.argsort(values)[: layer.elements - (2 * layer.elements) // 3]]
    found: Floats = ((centred @ trailing) ** 2).sum(axis=1)
    return found


def shape(layer: Layer, rows: Floats) -> Floats | None:
    """Return `residual` as a share of the unit's energy."""
    outside = residual(layer, rows)
    return None if outside is None else outside / (((rows - rows.mean(axis=0)) ** 2).sum(axis=1) + _TINY)


def neighbour(layer: Layer, rows: Floats) -> Floats | None:
    """Return each unit's largest |cosine| with another; None for single weights and very large layers."""
    if layer.elements < 3 or len(rows) > MAX_NEIGHBOUR_UNITS:
        return None
    directions = (rows / np.sqrt((rows**2).sum(axis=1, keepdims=True) + _TINY)).astype(np.float32)
    nearest = np.empty(len(rows))
    for start in range(0, len(rows), 1024):
        block = np.abs(directions[start : start + 1024] @ directions.T)
        block[np.arange(len(block)), start + np.arange(len(block))] = 0
        nearest[start : start + 1024] = block.max(axis=1)
    return nearest


def norm(layer: Layer, rows: Floats) -> Floats | None:  # noqa: ARG001 - every test has one form
    """Return the unit's norm."""
    found: Floats = np.linalg.norm(rows, axis=1)
    return found


def twin(layer: Layer, rows: Floats) -> Floats | None:  # noqa: ARG001 - every test has one form
    """Return how near the next norm of the layer is, as the negative log of the relative distance."""
    if len(rows) < 2:
        return None
    norms = np.linalg.norm(rows, axis=1)
    order = np.argsort(norms)
    steps = np.diff(norms[order])
    nearest = np.empty_like(norms)
    nearest[order] = np.minimum(np.append(steps, np.inf), np.insert(steps, 0, np.inf))
    found: Floats = -np.log(nearest / (norms + _TINY) + _TINY)
    return found


def grain(layer: Layer, rows: Floats) -> Floats | None:  # noqa: ARG001 - every test has one form
    """Return the share of each unit's weights whose value no other weight of the layer has; None where few repeat."""
    _, place, counts = np.unique(rows, return_inverse=True, return_counts=True)
    alone = counts[place].reshape(rows.shape) == 1
    if alone.mean() > MOSTLY_ALONE:
        return None
    found: Floats = alone.mean(axis=1)
    return found


def channel(layer: Layer, rows: Floats) -> Floats | None:
    """Return how far the log norm lies above the medians of its output and its input; None for a single column."""
    if layer.columns < 2 or layer.shape[0] < 2:
        return None
    found: Floats = (_logs(layer, rows) - _usual(_logs(layer, rows))).reshape(-1)
    return found


def place(layer: Layer, rows: Floats) -> Floats | None:
    """Return how far the medians of the unit's output and input lie below the layer's; None for a single column."""
    if layer.columns < 2 or layer.shape[0] < 2:
        return None
    found: Floats = -_usual(_logs(layer, rows)).reshape(-1)
    return found


def _logs(layer: Layer, rows: Floats) -> Floats:
    found: Floats = np.log(np.linalg.norm(rows, axis=1) + _TINY).reshape(layer.shape[0], layer.columns)
    return found


def _usual(logs: Floats) -> Floats:
    """Return the log norm that a unit's output and input have on the whole, as an additive fit by medians."""
    found: Floats = np.median(logs, axis=1, keepdims=True) + np.median(logs, axis=0, keepdims=True) - np.median(logs)
    return found


TESTS: Final[Mapping[str, Test]] = {
    "smoothness": smoothness,
    "residual": residual,
    "shape": shape,
    "neighbour": neighbour,
    "norm": norm,
    "twin": twin,
    "grain": grain,
    "channel": channel,
    "place": place,
}

MEASURES: Final[Mapping[str, str]] = {
    "smoothness": "how rough a kernel is",
    "residual": "energy outside the layer's principal directions",
    "shape": "the same, size left out",
    "neighbour": "likeness to another unit",
    "norm": "size",
    "twin": "size shared with another unit",
    "grain": "weights of a value of their own",
    "channel": "size against its row and column",
    "place": "how quiet its row and column are",
}
"""What each test looks at, for people."""


def auc(suspicion: Floats, encrypted: Mask) -> float:
    """Return the area under the ROC curve, ties counting half. Raises `ApiMisuse` unless both classes are there."""
    positives, negatives = int(encrypted.sum()), int((~encrypted).sum())
    if not positives or not negatives:
        raise ApiMisuse("an AUC needs encrypted and plain units")
    _, place, counts = np.unique(suspicion, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[encrypted].sum() - positives * (positives + 1) / 2) / (positives * negatives))
