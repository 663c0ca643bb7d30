"""What a leaked tensor says about marks, before anybody's chips are asked (docs/spec.md, rules F-6 to F-8)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from torch import Tensor

from tessera.protect.fingerprint.align import NEAR, align, median_distance, tensor_signature, usable
from tessera.protect.fingerprint.chips import as_rows, carriers, row_scales
from tessera.protect.fingerprint.matching import Floats, assign, distances

CLIP: Final = 2.0
"""Differences count for no more than so many times the median of their tensor."""

LIMIT: Final = 1e60
"""Larger values say nothing; float32 ends at 3.4e38."""

_SAMPLED: Final = 8192


@dataclass(frozen=True)
class Evidence:
    """One marked tensor of the original and what the leaked one says about each of its chips."""

    name: str
    leaked_name: str
    how: str
    distance: float
    weights: Floats
    """In row-major order; 0 where the leaked value says nothing."""


def pair(original: Mapping[str, Tensor], leaked: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for each marked tensor of the original the leaked one that stands for it, where there is one.

    Tensors of one shape, sides of 1 left out, are paired by name where they are near each other; the others by
    nearness, so that a thief may rename them, and a name that both have counts in favour.
    """
    theirs: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in sorted(leaked.items()):
        if not tensor.is_complex() and tensor.numel():
            theirs.setdefault(_form(tensor), []).append(name)
    ours: dict[tuple[int, ...], list[tuple[str, ...]]] = {}
    for names in carriers(original).values():
        ours.setdefault(_form(original[names[0]]), []).append(names)
    found: dict[str, str] = {}
    for form, groups in ours.items():
        found |= _pair_alike(original, leaked, groups, theirs.get(form, []))
    return {names[0]: found[names[0]] for groups in ours.values() for names in groups if names[0] in found}


def evidence(
    original: Mapping[str, Tensor], leaked: Mapping[str, Tensor], pairs: Mapping[str, str]
) -> Iterator[Evidence]:
    """Yield what each pair says, one tensor at a time."""
    for name, leaked_name in pairs.items():
        ours, scales = _original(original[name])
        shape = _three(original[name])
        aligned = align(ours.reshape(shape), _shaped(leaked[leaked_name], original[name]), scales)
        yield Evidence(name, leaked_name, aligned.how, aligned.distance, _weights(ours, aligned.rows, scales))


def _weights(ours: Floats, theirs: Floats, scales: Floats) -> Floats:
    """Return the differences in medians of their tensor, clipped: every value has about as much to say.

    Clipping keeps the few weights that were cut or retrained from drowning the others. The matched filter would divide
    by the square of the median, and gains a hundredth in good faith; but a thief who knows some tensors of the
    original, as of a public backbone, could put those back with next to no noise and have them shout all others down.
    """
    told = usable(ours, theirs) & (scales > 0)
    differences = np.where(told, theirs - ours, 0.0) / np.where(scales > 0, scales, 1)
    sizes = np.abs(differences[differences != 0])
    if not sizes.size:
        return np.zeros(ours.size)
    found: Floats = np.clip(differences / float(np.median(sizes)), -CLIP, CLIP).reshape(-1)
    return found


def _pair_alike(
    original: Mapping[str, Tensor],
    leaked: Mapping[str, Tensor],
    groups: Iterable[tuple[str, ...]],
    candidates: list[str],
) -> dict[str, str]:
    """Pair tensors of one shape; `groups` are the original's, each with all its names."""
    free = list(candidates)
    found: dict[str, str] = {}
    rest: list[tuple[str, ...]] = []
    for names in groups:
        same = next((name for name in names if name in free and _near(original[names[0]], leaked[name])), None)
        if same is None:
            rest.append(names)
        else:
            found[names[0]] = same
            free.remove(same)
    if not rest or not free:
        return found
    costs = _costs([original[names[0]] for names in rest], [leaked[name] for name in free])
    for row, names in enumerate(rest):
        costs[row] *= [0.5 if name in names else 1.0 for name in free]
    side = max(len(rest), len(free))
    padded = np.full((side, side), 1e9)
    padded[: len(rest), : len(free)] = costs
    for row, column in enumerate(assign(padded)[: len(rest)]):
        if column < len(free):
            found[rest[row][0]] = free[column]
    return found


def _costs(ours: list[Tensor], theirs: list[Tensor]) -> Floats:
    """Return how unlike tensors are, from 0 to about 1: as they stand, or but for order and scale of channels."""
    directions = [np.stack([_direction(tensor) for tensor in side]) for side in (ours, theirs)]
    signatures = [np.stack([tensor_signature(_shaped(tensor, ours[0])) for tensor in side]) for side in (ours, theirs)]
    signatures = [side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-300) for side in signatures]
    found: Floats = np.minimum(1 - np.abs(directions[0] @ directions[1].T), distances(*signatures))
    return found


def _direction(tensor: Tensor) -> Floats:
    flat = _sound(tensor).reshape(-1)
    some = flat[:: max(1, flat.size // _SAMPLED)]
    length = float(np.linalg.norm(some))
    found: Floats = some / length if length else some
    return found


def _near(original: Tensor, leaked: Tensor) -> bool:
    ours, scales = _original(original)
    return median_distance(ours, _sound(leaked).reshape(ours.shape), scales) < NEAR


def _form(tensor: Tensor) -> tuple[int, ...]:
    return tuple(side for side in tensor.shape if side != 1)


def _three(tensor: Tensor) -> tuple[int, int, int]:
    return (tensor.shape[0], tensor.shape[1], -1)


def _shaped(tensor: Tensor, like: Tensor) -> Floats:
    return _sound(tensor).reshape(_three(like))


def _original(tensor: Tensor) -> tuple[Floats, Floats]:
    """Return rows and scales of a marked tensor; rows beyond float32 carry nothing, and are 0 here."""
    rows = as_rows(tensor)
    scales = row_scales(rows)
    sound = np.isfinite(scales)
    return np.where(sound, rows, 0.0), np.where(sound, scales, 0.0)


def _sound(tensor: Tensor) -> Floats:
    """Return a tensor's rows in which what is not finite, or beyond any weight, is 0 as if it had been cut."""
    rows = as_rows(tensor)
    found: Floats = np.where(np.abs(rows) < LIMIT, rows, 0.0)  # comparing with NaN is false
    return found
