"""Passes over a batch with NumPy alone, at the speed of its fastest primitives; compiled.py is faster where it can be.

Moving is one `np.take`, inverting one XOR. A single table is `bytearray.translate`, the only lookup within reach that
neither widens bytes to 64-bit indices nor compares its results; where the table does not apply is masked out
afterwards. Several tables are one `np.take` from all of them. Every tile of an image is treated alike, so a set-up is
spread from one tile over a strip of them that stays in the cache, and used for all strips.
"""

import itertools
from collections.abc import Sequence
from typing import Final, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from tessera.transforms.passes import Bytes, Pass, Places

_Scalar = TypeVar("_Scalar", bound=np.generic)
_BYTE: Final = np.dtype(np.uint8)

STRIP_VALUES: Final = 1 << 16
"""Most values of a strip, unless one row of blocks has more, and of several small images that are done together."""
PART_VALUES: Final = 1 << 16
"""Most values that one `translate` of planes takes."""
WHOLE_VALUES: Final = 1 << 23
"""Most values of an image that is moved by one index of its own, 64 MiB, when the stack has no tables."""


class NumpyStack:
    """Runs the `passes` of one `unit` x `unit` tile over images of `shape` (C, H, W).

    `run` takes (C, H, W) or (N, C, H, W), `images_last` takes (C, H, W, N); both return a new contiguous array, or None
    for what is not uint8 of such a shape.
    """

    def __init__(self, passes: Sequence[Pass], unit: int, shape: tuple[int, int, int]) -> None:
        channels, height, width = shape
        self._passes, self._unit, self._shape = passes, unit, shape
        self._size = channels * height * width
        self._sorted: list[PlaneRunner] | None = None
        self._index: Places | None = None
        self._flips: Bytes | None = None
        self._row: Bytes | None = None
        self._simple = len(passes) == 1 and passes[0].choice is None and self._size <= WHOLE_VALUES
        self._runners: list[Runner] = []
        if self._simple:
            done = spread(passes[0], unit, shape)
            # A copy: `take` would make one of a read-only index every time.
            self._index = None if done.index is None else done.index.copy()
            self._flips = None if done.after is None else done.after.reshape(1, *shape)
            self._row = None if done.after is None else done.after.reshape(1, -1)
        else:
            rows = strip_height(unit, *shape)
            strips = [spread(done, unit, (channels, rows, width)) for done in passes]
            self._runners = [Runner(done, channels, height // rows) for done in strips]

    def run(self, x: object) -> Bytes | None:
        """Return the stack of one image or of many."""
        if not (_is_bytes(x) and (x.shape == self._shape or x.shape[1:] == self._shape)):
            return None
        if self._index is not None:
            # Every index is inside; "wrap" is the quickest way to have that checked.
            moved = x.reshape(-1, self._size).take(self._index, 1, None, "wrap")
            if self._row is not None:
                moved ^= self._row
            return moved.reshape(x.shape)
        if self._flips is not None:
            return np.bitwise_xor(x, self._flips if x.ndim == 4 else self._flips[0], order="C")
        if self._simple:
            return x.copy()
        flat = np.ascontiguousarray(x).reshape(-1, self._size)
        for runner in self._runners:
            flat = runner(flat)
        return flat.reshape(x.shape)

    def images_last(self, x: object) -> Bytes | None:
        """Return the stack of images that are last; what it needs is worked out when it is first called."""
        if not (_is_bytes(x) and x.shape[:-1] == self._shape):
            return None
        if self._sorted is None:
            self._sorted = [PlaneRunner(spread(done, self._unit, self._shape)) for done in self._passes]
        planes = x.reshape(self._size, x.shape[3])
        for runner in self._sorted:
            planes = runner(planes)
        return planes.reshape(x.shape)


def _is_bytes(x: object) -> TypeGuard[Bytes]:
    return isinstance(x, np.ndarray) and x.dtype == _BYTE


def strip_height(unit: int, channels: int, height: int, width: int) -> int:
    """Return the rows of a strip: a multiple of `unit` that divides `height`, as large as `STRIP_VALUES` allows."""
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

    Planes that are treated alike, of one kind, are brought together, treated, and taken to their places.
    """

    def __init__(self, done: Pass) -> None:
        kinds = kinds_of(done)
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


def kinds_of(done: Pass) -> NDArray[np.int64]:
    """Return how each value is treated: four times its table, plus 2 if inverted before and 1 if inverted after."""
    zeros = np.zeros(done.size, dtype=np.uint8)
    before, after = (zeros if part is None else part for part in (done.before, done.after))
    choice = zeros.astype(np.int64) if done.choice is None else done.choice.astype(np.int64)
    found: NDArray[np.int64] = choice * 4 + np.where(choice, before & 2 | after & 1, (before ^ after) & 1)
    return found


def spread(done: Pass, unit: int, shape: tuple[int, int, int]) -> Pass:
    """Return the pass over (C, H, W) that does to each of its `unit` x `unit` tiles what `done` does to one."""
    channels, height, width = shape
    if height == width == unit:
        return done
    within, across = (channels, 1, unit, 1, unit), (channels, height // unit, unit, width // unit, unit)
    index = None
    if done.index is not None:
        line, column = np.divmod(done.index, unit)
        channel, row = np.divmod(line, unit)
        corners = np.add.outer(np.arange(0, height * width, unit * width), np.arange(0, width, unit))
        tile = ((channel * height + row) * width + column).reshape(within)
        index = (tile + corners[np.newaxis, :, np.newaxis, :, np.newaxis]).reshape(-1)

    def tiled(values: NDArray[_Scalar] | None) -> NDArray[_Scalar] | None:
        return None if values is None else np.broadcast_to(values.reshape(within), across).reshape(-1)

    size = channels * height * width
    return Pass(size, index, tiled(done.before), tiled(done.after), done.tables, tiled(done.choice)).frozen()


def _in_image(index: Places, channels: int, strips: int) -> Places:
    """Return where the values that a strip's own `index` names stand in the image, seen from the strip's beginning."""
    part = index.size // channels
    channel, place = np.divmod(index, part)
    return channel * (part * strips) + place
