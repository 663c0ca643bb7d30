"""One spec, key and image shape, set up once and applied in few passes (docs/spec.md, rules T-10 to T-14).

Setting up a stack costs milliseconds, applying it a memory pass or two; set-ups are kept in a small cache under a
one-way digest of the key.
"""

import threading
from collections import OrderedDict
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.kdf import derive
from tessera.keystore.secrets import InputKey
from tessera.transforms.passes import Pass, fold
from tessera.transforms.running import WHOLE_VALUES, PlaneRunner, Runner, over_image, strip_height
from tessera.transforms.spec import TransformError, TransformSpec

MAX_IMAGE_VALUES: Final = 64 * 1024 * 1024
"""Most values of one image (C * H * W)."""

_CACHED: Final = 32
_BYTE: Final = np.dtype(np.uint8)


class _Ready:
    """A stack that is set up, strip by strip; the way back is worked out when somebody first asks for it."""

    def __init__(self, passes: tuple[Pass, ...], shape: tuple[int, int, int], rows: int) -> None:
        channels, height, width = shape
        self._passes, self._shape, self._rows = passes, shape, rows
        self._strips = height // rows
        self._size = channels * height * width
        self._back: _Ready | None = None
        self._sorted: list[PlaneRunner] | None = None
        self._index: NDArray[np.int64] | None = None
        self._flips: NDArray[np.uint8] | None = None
        self._row: NDArray[np.uint8] | None = None
        self._simple = len(passes) == 1 and passes[0].choice is None and self._size <= WHOLE_VALUES
        if self._simple:
            (done,) = self.over_image()
            # A copy: `take` would make one of a read-only index every time.
            self._index = None if done.index is None else done.index.copy()
            self._flips = None if done.after is None else done.after.reshape(1, *shape)
            self._row = None if done.after is None else done.after.reshape(1, -1)
        self._runners = [] if self._simple else [Runner(done, channels, self._strips) for done in passes]

    def back(self) -> "_Ready":
        if self._back is None:  # two threads may both work it out; they find the same
            self._back = _Ready(tuple(done.inverse() for done in reversed(self._passes)), self._shape, self._rows)
        return self._back

    def over_image(self) -> tuple[Pass, ...]:
        return tuple(over_image(done, self._shape[0], self._strips) for done in self._passes)

    def run(self, x: NDArray[np.uint8]) -> NDArray[np.uint8]:
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

    def run_images_last(self, x: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._sorted is None:
            self._sorted = [PlaneRunner(done) for done in self.over_image()]
        planes = x.reshape(self._size, x.shape[3])
        for runner in self._sorted:
            planes = runner(planes)
        return planes.reshape(x.shape)


def _prepare(spec: TransformSpec, key: InputKey, shape: tuple[int, int, int]) -> _Ready:
    channels, height, width = shape
    rows = strip_height([step.block for step in spec.steps], channels, height, width)
    return _Ready(fold(spec, key, channels, rows, width), shape, rows)


class Transform:
    """Applies `spec` under `key` to uint8 images of one `shape` (C, H, W); law: `t.inverse(t(x)) == x`, bit for bit.

    Safe to share between threads. Raises `TransformError` when the spec does not fit the shape.
    """

    __slots__ = ("_ready", "_run", "channels", "height", "shape", "spec", "width")

    def __init__(self, spec: TransformSpec, key: InputKey, channels: int, height: int, width: int) -> None:
        self.spec = spec
        self.channels, self.height, self.width = self.shape = channels, height, width
        self._ready = _ready(spec, key, self.shape)
        self._run = self._ready.run

    def __repr__(self) -> str:
        return f"Transform({str(self.spec)!r}, {self.channels}x{self.height}x{self.width})"

    def passes(self) -> tuple[Pass, ...]:
        """Return the whole stack as arrays over a flattened image, one pass after the other; as secret as the key."""
        return self._ready.over_image()

    @property
    def index(self) -> NDArray[np.int64]:
        """Where each value of the transformed image comes from: int64, C * H * W (rule T-19)."""
        found = np.arange(self.channels * self.height * self.width, dtype=np.int64)
        for done in self.passes():
            found = found if done.index is None else found[done.index]
        return found

    @property
    def xor(self) -> NDArray[np.uint8]:
        """What a stack without `ffx` inverts: uint8, 0 or 255, C * H * W. Raises `ApiMisuse` with `ffx` (rule T-14)."""
        (done, *more) = self.passes()
        if more or done.choice is not None:
            raise ApiMisuse(f"{self.spec} looks values up in tables; read `passes()`")
        return np.zeros(done.size, dtype=np.uint8) if done.after is None else done.after.copy()

    def __call__(self, x: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the transformed copy of `x`: uint8, (C, H, W) or (N, C, H, W). Raises `TransformError` otherwise."""
        self._check(x)
        return self._run(x)

    def inverse(self, y: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the copy of `y` that `self` would turn into `y`; same shapes and errors as calling it."""
        self._check(y)
        return self._ready.back().run(y)

    def images_last(self, x: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the transformed copy of `x`, uint8 (C, H, W, N): the layout in which moving values costs least.

        Whole rows of N bytes move instead of single ones; it pays from about 32 images on, for
        who has them in this order already.
        """
        self._check(x, images_last=True)
        return self._ready.run_images_last(x)

    def _check(self, x: NDArray[np.uint8], *, images_last: bool = False) -> None:
        if isinstance(x, np.ndarray) and x.dtype == _BYTE:
            shape = x.shape
            if shape[:-1] == self.shape if images_last else shape[1:] == self.shape or shape == self.shape:
                return
            wanted = "(C, H, W, N)" if images_last else "(C, H, W) or (N, C, H, W)"
            raise TransformError(
                f"the transform is for images of {self.channels}x{self.height}x{self.width} (C, H, W), not {shape}",
                remedy=f"Give {wanted}, resized and cropped before the transform.",
            )
        found = str(x.dtype) if isinstance(x, np.ndarray) else type(x).__name__
        raise TransformError(
            f"the transform needs a uint8 array, not {found}",
            remedy="Send raw 0-255 pixels; the model scales and normalises inside.",
        )


def _ready(spec: TransformSpec, key: InputKey, shape: tuple[int, int, int]) -> _Ready:
    """Return the composed stack from the cache, or build it; the key itself is never a cache key."""
    _check_shape(spec, shape)
    cache_key = (spec, derive(key.reveal(), "tessera/v1/transform/cache", length=16), shape)
    with _lock:
        found = _cache.get(cache_key)
        if found is not None:
            _cache.move_to_end(cache_key)
            return found
    built = _prepare(spec, key, shape)
    with _lock:
        _cache[cache_key] = built
        while len(_cache) > _CACHED:
            _cache.popitem(last=False)
    return built


_lock = threading.Lock()
_cache: OrderedDict[tuple[TransformSpec, bytes, tuple[int, int, int]], _Ready] = OrderedDict()


def _check_shape(spec: TransformSpec, shape: tuple[int, int, int]) -> None:
    channels, height, width = shape
    if min(shape) < 1 or channels * height * width > MAX_IMAGE_VALUES:
        raise TransformError(
            f"an image of {channels}x{height}x{width} cannot be transformed",
            remedy=f"Every side is at least 1 and C * H * W at most {MAX_IMAGE_VALUES}.",
        )
    for step in spec.steps:
        if height % step.block or width % step.block:
            raise TransformError(
                f"block size {step.block} of step {step} does not divide {height}x{width}",
                remedy="Choose a block size that divides height and width, or resize the images.",
            )
