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
        ours = as_rows(original[name])
        scales = row_scales(ours)
        shape = _three(original[name])
        aligned = align(ours.reshape(shape), as_rows(leaked[leaked_name]).reshape(shape), scales)
        yield Evidence(name, leaked_name, aligned.how, aligned.distance, _weights(ours, aligned.rows, scales))


def _weights(ours: Floats, theirs: Floats, scales: Floats) -> Floats:
    """Return the clipped differences divided by the square of their median: quiet tensors speak louder.

    That is the matched filter for one mark of the same strength in tensors with different noise, and clipping keeps
    the few weights that were cut or retrained from drowning the others.
    """
    told = usable(ours, theirs) & (scales > 0)
    differences = np.where(told, theirs - ours, 0.0) / np.where(scales > 0, scales, 1)
    sizes = np.abs(differences[differences != 0])
    if not sizes.size:
        return np.zeros(ours.size)
    middle = float(np.median(sizes))
    found: Floats = (np.clip(differences, -CLIP * middle, CLIP * middle) / middle**2).reshape(-1)
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
    flat = as_rows(tensor).reshape(-1)
    some = np.nan_to_num(flat[:: max(1, flat.size // _SAMPLED)], nan=0.0, posinf=0.0, neginf=0.0)
    length = float(np.linalg.norm(some))
    found: Floats = some / length if length else some
    return found


def _near(original: Tensor, leaked: Tensor) -> bool:
    ours = as_rows(original)
    return median_distance(ours, as_rows(leaked).reshape(ours.shape), row_scales(ours)) < NEAR


def _form(tensor: Tensor) -> tuple[int, ...]:
    return tuple(side for side in tensor.shape if side != 1)


def _three(tensor: Tensor) -> tuple[int, int, int]:
    return (tensor.shape[0], tensor.shape[1], -1)


def _shaped(tensor: Tensor, like: Tensor) -> Floats:
    return as_rows(tensor).reshape(_three(like))
