"""One spec, key and image shape, set up once and applied in few passes (docs/spec.md, rules T-10 to T-14).

Setting up a stack costs milliseconds, applying it a memory pass or two; set-ups are kept in a small cache under a
one-way digest of the key.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.kdf import derive
from tessera.keystore.secrets import InputKey
from tessera.transforms.compiled import IMPLEMENTATION, CompiledStack, Implementation
from tessera.transforms.passes import Pass, fold
from tessera.transforms.perturbation import FaintStack, Perturbation
from tessera.transforms.running import NumpyStack, spread
from tessera.transforms.spec import TransformError, TransformSpec

MAX_IMAGE_VALUES: Final = 64 * 1024 * 1024
"""Most values of one image (C * H * W)."""

_CACHED: Final = 32
_BYTE: Final = np.dtype(np.uint8)


Run = Callable[[object], NDArray[np.uint8] | None]


class _Ready:
    """A stack that is set up; the way back is worked out when somebody first asks for it."""

    __slots__ = ("_back", "_implementation", "_passes", "_shape", "_unit", "images_last", "run")

    def __init__(
        self, passes: tuple[Pass, ...], unit: int, shape: tuple[int, int, int], implementation: Implementation
    ) -> None:
        self._passes, self._unit, self._shape, self._implementation = passes, unit, shape, implementation
        self._back: _Ready | None = None
        stack = (CompiledStack if implementation == "compiled" else NumpyStack)(passes, unit, shape)
        self.run: Run = stack.run
        self.images_last: Run = stack.images_last

    def back(self) -> "_Ready":
        if self._back is None:  # two threads may both work it out; they find the same
            passes = tuple(done.inverse() for done in reversed(self._passes))
            self._back = _Ready(passes, self._unit, self._shape, self._implementation)
        return self._back

    def over_image(self) -> tuple[Pass, ...]:
        return tuple(spread(done, self._unit, self._shape) for done in self._passes)


def _prepare(
    spec: TransformSpec, key: InputKey, shape: tuple[int, int, int], implementation: Implementation
) -> _Ready | FaintStack:
    if spec.perturbation is not None:
        return FaintStack(Perturbation.of(spec, key, *shape), shape)
    unit = math.lcm(*(step.block for step in spec.steps))  # all tiles of this side are treated alike
    return _Ready(fold(spec, key, shape[0], unit, unit), unit, shape, implementation)


class Transform:
    """Applies `spec` under `key` to uint8 images of one `shape` (C, H, W); law: `t.inverse(t(x)) == x`, bit for bit.

    Safe to share between threads. `implementation` is for comparing the two, which give the same bits. Raises
    `TransformError` when the spec does not fit the shape, `ApiMisuse` for `compiled` where the extension is not built.
    """

    __slots__ = ("_ready", "_run", "channels", "height", "shape", "spec", "width")

    def __init__(
        self,
        spec: TransformSpec,
        key: InputKey,
        channels: int,
        height: int,
        width: int,
        *,
        implementation: Implementation = IMPLEMENTATION,
    ) -> None:
        if implementation not in ("numpy", IMPLEMENTATION):
            raise ApiMisuse(f"transforms are numpy or {IMPLEMENTATION} here, not {implementation}")
        self.spec = spec
        self.channels, self.height, self.width = self.shape = channels, height, width
        self._ready = _ready(spec, key, self.shape, implementation)
        self._run = self._ready.run

    def __repr__(self) -> str:
        return f"Transform({str(self.spec)!r}, {self.channels}x{self.height}x{self.width})"

    def passes(self) -> tuple[Pass, ...]:
        """Return the whole stack as arrays over a flattened image, one pass after the other; as secret as the key."""
        return self._ready.over_image()

    @property
    def perturbation(self) -> Perturbation | None:
        """The pattern of an isnn; None for the transforms that can be undone. As secret as the key."""
        return self._ready.perturbation if isinstance(self._ready, FaintStack) else None

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
        found = self._run(x)
        return self._copied(self._run, x) if found is None else found

    def inverse(self, y: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the copy of `y` that `self` would turn into `y`; same shapes and errors as calling it."""
        run = self._ready.back().run
        found = run(y)
        return self._copied(run, y) if found is None else found

    def images_last(self, x: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the transformed copy of `x`, uint8 (C, H, W, N): the layout in which moving values costs least.

        Whole rows of N bytes move instead of single ones; it pays from about 32 images on, for
        who has them in this order already.
        """
        run = self._ready.images_last
        found = run(x)
        return self._copied(run, x, images_last=True) if found is None else found

    def _copied(self, run: Run, x: NDArray[np.uint8], *, images_last: bool = False) -> NDArray[np.uint8]:
        """Return the run of a plain contiguous copy of `x`, once it is clear that it is uint8 of our shape."""
        self._check(x, images_last)
        found = run(np.ascontiguousarray(x))
        if found is None:
            raise AssertionError("uint8 of the right shape was refused")
        return found

    def _check(self, x: NDArray[np.uint8], images_last: bool) -> None:
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


def _ready(
    spec: TransformSpec, key: InputKey, shape: tuple[int, int, int], implementation: Implementation
) -> _Ready | FaintStack:
    """Return the composed stack from the cache, or build it; the key itself is never a cache key."""
    _check_shape(spec, shape)
    cache_key = (spec, derive(key.reveal(), "tessera/v1/transform/cache", length=16), shape, implementation)
    with _lock:
        found = _cache.get(cache_key)
        if found is not None:
            _cache.move_to_end(cache_key)
            return found
    built = _prepare(spec, key, shape, implementation)
    with _lock:
        _cache[cache_key] = built
        while len(_cache) > _CACHED:
            _cache.popitem(last=False)
    return built


_lock = threading.Lock()
_cache: OrderedDict[tuple[TransformSpec, bytes, tuple[int, int, int], Implementation], _Ready | FaintStack] = (
    OrderedDict()
)


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
