"""One pass over a batch, at the speed of NumPy's fastest primitives for it.

Moving is one `np.take`, inverting one XOR. A single table is `bytearray.translate`, the only lookup within reach that
neither widens bytes to 64-bit indices nor compares its results; where the table does not apply is masked out
afterwards. Several tables are one `np.take` from all of them. Every strip of an image is treated alike, so a set-up is
that of one strip.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tessera.transforms.passes import Bytes, Pass, Places

_Scalar = TypeVar("_Scalar", bound=np.generic)

STRIP_VALUES: Final = 1 << 16
"""Most values of a strip, unless one row of blocks has more, and of several small images that are done together."""
PART_VALUES: Final = 1 << 16
"""Most values that one `translate` of planes takes."""
WHOLE_VALUES: Final = 1 << 23
"""Most values of an image that is moved by one index of its own, 64 MiB, when the stack has no tables."""


def strip_height(blocks: Sequence[int], channels: int, height: int, width: int) -> int:
    """Return the rows of a strip: a divisor of `height` that all `blocks` divide, as large as `STRIP_VALUES` allows."""
    unit = math.lcm(*blocks)
    units = height // unit
    fitting = [count for count in range(1, units + 1) if units % count == 0]
    return unit * max([count for count in fitting if channels * unit * count * width <= STRIP_VALUES], default=1)


class Runner:
    """Runs the `Pass` of one strip over images of `channels` planes, each of `strips` strips."""

    __slots__ = ("_at", "_differences", "_mask", "_offsets", "_pass", "_tables", "channels", "strips")

    def __init__(self, done: Pass, channels: int, strips: int) -> None:
        self._pass, self.channels, self.strips = done, channels, strips
        self._at = None if done.index is None else _in_image(done.index, channels, strips)
        self._differences: bytes | None = None
        self._mask: Bytes | None = None
        self._offsets: Places | None = None
        self._tables: Bytes | None = None
        if done.choice is not None and len(done.tables) == 2:
            self._differences = (done.tables[0] ^ done.tables[1]).tobytes()
            self._mask = np.where(done.choice, 255, 0).astype(np.uint8)
        elif done.choice is not None:
            self._offsets = done.choice.astype(np.int64) * 256
            self._tables = done.tables.reshape(-1)

    def __call__(self, x: Bytes) -> Bytes:
        """Return the pass of `x`, contiguous uint8 (N, C * H * W), as a new array."""
        images = max(1, STRIP_VALUES // self._pass.size)
        if self.strips == 1 and len(x) <= images:
            return self._changed(self._moved(x))
        y = np.empty(x.shape, dtype=np.uint8)
        if self.strips > 1:
            self._by_strip(x, y)
            return y
        for first in range(0, len(x), images):
            y[first : first + images] = self._changed(self._moved(x[first : first + images]))
        return y

    def _by_strip(self, x: Bytes, y: Bytes) -> None:
        part = self._pass.size // self.channels
        shape = (len(x), self.channels, self.strips, part)
        for image, planes, targets in zip(x, x.reshape(shape), y.reshape(shape), strict=True):
            for strip in range(self.strips):
                # Indices count from where the strip begins in the first plane.
                rest = image[np.newaxis, strip * part :]
                moved = planes[:, strip].reshape(1, -1) if self._at is None else self._moved(rest)
                targets[:, strip] = self._changed(moved).reshape(self.channels, part)

    def _moved(self, x: Bytes) -> Bytes:
        # Every index is inside; "wrap" is the quickest way to have that checked.
        return x if self._at is None else x.take(self._at, 1, None, "wrap")

    def _changed(self, moved: Bytes) -> Bytes:
        """Return all of the pass but the moving, of uint8 (N, size), as a new array."""
        done = self._pass
        if self._differences is not None and self._mask is not None:
            # What the single table changes, then only where it applies.
            values = bytearray(moved)
            moved = np.frombuffer(values, dtype=np.uint8).reshape(moved.shape)
            if done.before is not None:
                moved ^= done.before
            y: Bytes = np.frombuffer(values.translate(self._differences), dtype=np.uint8).reshape(moved.shape)
            y &= self._mask
            y ^= moved
        elif self._offsets is not None and self._tables is not None:
            at = (moved if done.before is None else moved ^ done.before).astype(np.int64)
            at += self._offsets
            y = self._tables.take(at, None, None, "wrap")
        else:  # a pass without tables inverts after moving only
            y = moved.copy()
        if done.after is not None:
            y ^= done.after
        return y


class PlaneRunner:
    """Runs a `Pass` over planes: uint8 (size, N), the N values of one place side by side.

    Planes that are treated alike are brought together, treated, and taken to their places. A plane's kind is four times
    its table, plus two if it is inverted before, plus one if it is inverted after.
    """

    def __init__(self, done: Pass) -> None:
        zeros = np.zeros(done.size, dtype=np.uint8)
        before, after = (zeros if part is None else part for part in (done.before, done.after))
        choice = zeros.astype(np.int64) if done.choice is None else done.choice.astype(np.int64)
        kinds = choice * 4 + np.where(choice, before & 2 | after & 1, (before ^ after) & 1)
        order = np.argsort(kinds, kind="stable")
        self._sources = order if done.index is None else done.index[order]
        self._targets = np.empty_like(order)
        self._targets[order] = np.arange(done.size)
        kinds = kinds[order]
        edges = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), done.size]
        self._runs = [(slice(*run), int(kinds[run[0]])) for run in itertools.pairwise(edges) if kinds[run[0]]]
        self._tables = {kind: _variant(done.tables[kind // 4], kind).tobytes() for _, kind in self._runs}

    def __call__(self, x: Bytes) -> Bytes:
        """Return the pass of `x`, uint8 (size, N), as a new array."""
        y: Bytes = x.take(self._sources, 0)
        for run, kind in self._runs:
            if kind == 1:
                y[run] ^= 255
            else:
                self._look_up(y[run], self._tables[kind])
        return y.take(self._targets, 0) if self._runs else y

    def _look_up(self, planes: Bytes, table: bytes) -> None:
        step = max(1, PART_VALUES // max(1, planes.shape[1]))
        for first in range(0, len(planes), step):
            part = planes[first : first + step]
            part[...] = np.frombuffer(bytearray(part).translate(table), dtype=np.uint8).reshape(part.shape)


def _variant(table: Bytes, kind: int) -> Bytes:
    """Return the table with the inversions of a plane's kind."""
    turned = table[::-1] if kind & 2 else table
    return np.invert(turned) if kind & 1 else turned


def over_image(done: Pass, channels: int, strips: int) -> Pass:
    """Return the pass over a whole image that does to each of its strips what `done` does to one."""
    if strips == 1:
        return done
    part = done.size // channels
    index = None
    if done.index is not None:
        strip = _in_image(done.index, channels, strips).reshape(channels, 1, part)
        index = (strip + np.arange(0, strips * part, part).reshape(1, strips, 1)).reshape(-1)
    before, after = _tiled(done.before, channels, strips), _tiled(done.after, channels, strips)
    choice = _tiled(done.choice, channels, strips)
    return Pass(done.size * strips, index, before, after, done.tables, choice).frozen()


def _tiled(values: NDArray[_Scalar] | None, channels: int, strips: int) -> NDArray[_Scalar] | None:
    """Return a strip's values for the whole image."""
    return None if values is None else np.tile(values.reshape(channels, 1, -1), (1, strips, 1)).reshape(-1)


def _in_image(index: Places, channels: int, strips: int) -> Places:
    """Return where the values that a strip's own `index` names stand in the image, seen from the strip's beginning."""
    part = index.size // channels
    channel, place = np.divmod(index, part)
    return channel * (part * strips) + place
