"""Reading an `ffx` step off transformed images alone: which places of a block are replaced, and by which table.

A table is fixed, so it can be seen in statistics, as letters can in a substitution cipher. Nothing here has a key, a
label or a pair of images.

    places   unreplaced places of a block share the histogram of ordinary pixels; replaced ones have a shuffled one.
             They are told apart by likeness to each other; the ordinary half is the one like plain images, or without
             any the one whose neighbouring pixels are close to each other
    tables   pixels resemble their neighbours, so the mean of a value's unreplaced neighbours says which plain value it
             stands for; ranks by that mean are matched with ranks in the plain histogram
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tessera.transforms import Step, block_positions

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_ROUNDS: Final = 8
"""Most corrections of the two halves; each one ends when nothing moves."""
_PASSES: Final = 3
"""How often tables are read: from the second time on, values that were read before serve as neighbours as well."""
_LEVELS: Final = np.arange(256)
_ALL, _AHEAD, _BEHIND = slice(None), slice(1, None), slice(None, -1)
_SHIFTS: Final = (
    ((_ALL, _BEHIND), (_ALL, _AHEAD)),
    ((_ALL, _AHEAD), (_ALL, _BEHIND)),
    ((_BEHIND, _ALL), (_AHEAD, _ALL)),
    ((_AHEAD, _ALL), (_BEHIND, _ALL)),
)
"""Rows and columns of pixels, and of those beside them, in each of four directions."""


@dataclass(frozen=True, eq=False)
class ReadOff:
    """What was read."""

    chosen: Flags
    """(L,): the replaced places."""
    plain: Bytes
    """(L, 256): the plain value that each one stands for; the identity where nothing is replaced or was seen."""
    seen: Flags
    """(L, 256): which values occurred in the replaced places."""

    def tables(self) -> Bytes:
        """Return uint8 (L, 256): what each place makes of a plain value, by the nearest one that was seen."""
        found = np.broadcast_to(_LEVELS.astype(np.uint8), self.plain.shape).copy()
        for place in np.flatnonzero(self.seen.any(axis=1)):
            values = np.flatnonzero(self.seen[place])
            if len(values):
                away = np.abs(self.plain[place, values].astype(np.int64)[None, :] - _LEVELS[:, None])
                found[place] = values[away.argmin(axis=1)]
        return found


def read_off(step: Step, keyed: Bytes, plain: Bytes | None = None) -> ReadOff:
    """Return what statistics tell of the `ffx` step that made `keyed`, uint8 (N, C, H, W).

    `plain` are other images of the same kind before any transform; without them what is unreplaced stands in for them.
    """
    desk = _Images(keyed, step)
    reference = None if plain is None else _Images(plain, step).histograms
    chosen = _replaced(desk, reference)
    decoded, seen = _tables(desk, chosen, reference, shared=not step.positions)
    return ReadOff(chosen, decoded, seen)


class _Images:
    """Images with the place in the block of each of their values."""

    def __init__(self, images: Bytes, step: Step) -> None:
        self.images = images
        channels, height, width = images.shape[1:]
        blocks = block_positions(channels, height, width, step.block)
        flat = np.empty(blocks.size, dtype=np.int64)
        flat[blocks] = np.arange(blocks.shape[1])
        self.place = flat.reshape(images.shape[1:])
        """(C, H, W)."""
        self.places = blocks.shape[1]
        self.histograms = self.counted(images)
        """(L, 256): how often each place has each value."""

    def counted(self, images: Bytes) -> Floats:
        """Return the histograms of `images` (N, C, H, W)."""
        codes = self.place[None] * 256 + images
        return np.bincount(codes.reshape(-1), minlength=self.places * 256).reshape(-1, 256).astype(np.float64)


def _replaced(desk: _Images, reference: Floats | None) -> Flags:
    """Return which floor(L / 2) places are replaced: as many as the spec says, so that no threshold is needed."""
    count = desk.places // 2
    alike = _affinity(desk.histograms, desk.histograms)
    np.fill_diagonal(alike, 0.0)
    np.fill_diagonal(alike, alike.sum(axis=1) / max(1, desk.places - 1))
    centred = alike - alike.mean(axis=0) - alike.mean(axis=1, keepdims=True) + alike.mean()
    first = _settled(desk, _largest(np.linalg.eigh(centred)[1][:, -1], count))
    # The other half may be the replaced one; with an odd number of places it has one place more, which is dropped.
    other = _settled(desk, _largest(_pull(desk, ~first), count))
    if reference is None:
        return min((first, other), key=lambda chosen: _roughness(desk, ~chosen))
    plain = reference.sum(axis=0, keepdims=True)
    return max((first, other), key=lambda chosen: _like(desk.histograms[~chosen], plain))


def _like(histograms: Floats, plain: Floats) -> float:
    """Return how like plain images each place is, on the mean: pooled, shuffled places would look like a mixture."""
    return float(_affinity(histograms, plain).mean())


def _settled(desk: _Images, chosen: Flags) -> Flags:
    """Return the halves after places have moved to the one whose pooled histogram they are more like."""
    count = int(chosen.sum())
    for _ in range(_ROUNDS):
        after = _largest(_pull(desk, chosen), count)
        if (after == chosen).all():
            break
        chosen = after
    return chosen


def _pull(desk: _Images, chosen: Flags) -> Floats:
    """Return how much more each place is like the chosen ones than like the others."""
    pooled = np.stack([desk.histograms[part].sum(axis=0) for part in (chosen, ~chosen)])
    alike = _affinity(desk.histograms, pooled)
    found: Floats = alike[:, 0] - alike[:, 1]
    return found


def _roughness(desk: _Images, ordinary: Flags) -> float:
    """Return how far neighbours with different values are apart, against what chance gives: well below 1 in pictures.

    Equal values are left out, because a table keeps them equal.
    """
    near, usual, count = 0.0, 0.0, 0
    pooled = desk.histograms[ordinary].sum(axis=0)
    share = pooled / max(1.0, pooled.sum())
    apart = np.abs(_LEVELS[:, None] - _LEVELS[None, :])
    for first, second, own, others in _neighbours(desk.images, desk.place):
        both = (ordinary[own] & ordinary[others])[None] & (first != second)
        near += float(np.abs(first.astype(np.int64) - second)[both].sum())
        count += int(both.sum())
    chance = share @ apart @ share
    usual = chance / max(1e-12, 1.0 - float((share**2).sum()))
    return near / count / usual if count and usual > 0 else 1.0


def _neighbours(
    images: Bytes, place: NDArray[np.int64]
) -> list[tuple[Bytes, Bytes, NDArray[np.int64], NDArray[np.int64]]]:
    """Return, for each direction, values with those beside them, and the places of both."""
    return [
        (images[..., :-1], images[..., 1:], place[..., :-1], place[..., 1:]),
        (images[..., :-1, :], images[..., 1:, :], place[..., :-1, :], place[..., 1:, :]),
    ]


def _tables(desk: _Images, chosen: Flags, reference: Floats | None, *, shared: bool) -> tuple[Bytes, Flags]:
    """Return the plain value of each value of each place, and which ones were seen; `shared`: one table for all."""
    plain = np.broadcast_to(_LEVELS.astype(np.uint8), (desk.places, 256)).copy()
    seen = np.zeros((desk.places, 256), dtype=np.bool_)
    places = np.flatnonzero(chosen)
    groups: list[NDArray[np.intp]] = [places] if shared else [places[at : at + 1] for at in range(len(places))]
    known = ~chosen
    for _ in range(_PASSES):
        sums, counts = _around(desk, plain, known)
        for group in groups:
            wanted = desk.histograms[~chosen] if reference is None else reference[group]
            read, present = _matched(desk.histograms[group].sum(axis=0), sums[group], counts[group], wanted.sum(axis=0))
            plain[group], seen[group] = read, present
        known = np.ones(desk.places, dtype=np.bool_)
    return plain, seen


def _around(desk: _Images, plain: Bytes, known: Flags) -> tuple[Floats, Floats]:
    """Return (L, 256) sums and counts of the plain values beside each value of each place, as far as they are known."""
    decoded = plain[desk.place[None], desk.images].astype(np.float32) * known[desk.place]
    weight = known[desk.place].astype(np.float32)
    total, count = np.zeros_like(decoded), np.zeros_like(weight)
    for into, out in _SHIFTS:
        total[..., *into] += decoded[..., *out]
        count[..., *into] += weight[..., *out]
    if len(weight) > 1:  # the other colours of the same pixel
        total += decoded.sum(axis=1, keepdims=True) - decoded
        count += weight.sum(axis=0, keepdims=True) - weight
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    codes = (desk.place[None] * 256 + desk.images).reshape(-1)
    size = desk.places * 256
    have = np.broadcast_to(count > 0, desk.images.shape).reshape(-1)
    sums = np.bincount(codes, weights=mean.reshape(-1) * have, minlength=size).astype(np.float64)
    counts = np.bincount(codes, weights=have, minlength=size).astype(np.float64)
    return sums.reshape(-1, 256), counts.reshape(-1, 256)


def _matched(used: Floats, sums: Floats, counts: Floats, wanted: Floats) -> tuple[Bytes, Flags]:
    """Return the plain value of each of 256 values, from how often it is `used` and what stands beside it.

    Values are ordered by the mean beside them and laid along the plain histogram `wanted`, rank by rank where there are
    as many plain values as seen ones, else by the share of pixels below.
    """
    present = used > 0
    mean = np.divide(sums.sum(axis=0), counts.sum(axis=0), out=np.full(256, 127.5), where=counts.sum(axis=0) > 0)
    order = np.flatnonzero(present)[np.argsort(mean[present], kind="stable")]
    found = _LEVELS.astype(np.uint8)
    levels = np.flatnonzero(wanted > 0)
    if not len(order) or not len(levels):
        return found, present
    if len(levels) == len(order):
        found[order] = levels
        return found, present
    share = (np.cumsum(used[order]) - used[order] / 2) / used.sum()
    below = np.cumsum(wanted[levels]) / wanted.sum()
    found[order] = levels[np.minimum(np.searchsorted(below, share), len(levels) - 1)]
    return found, present


def _affinity(first: Floats, second: Floats) -> Floats:
    """Return how alike histograms are (Bhattacharyya), 0 … 1: each of `first` with each of `second`."""
    roots = [np.sqrt(part / np.maximum(1.0, part.sum(axis=1, keepdims=True))) for part in (first, second)]
    found: Floats = roots[0] @ roots[1].T
    return found


def _largest(values: Floats, count: int) -> Flags:
    found = np.zeros(len(values), dtype=np.bool_)
    found[np.argsort(-values, kind="stable")[:count]] = True
    return found
