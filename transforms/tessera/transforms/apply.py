"""One spec, key and image shape, set up once and applied as one gather and one XOR (docs/spec.md, rules T-10 to T-14).

All steps move values or invert them, so any stack of them is `y = x[index] ^ xor` over the flattened image. Setting up
a stack costs milliseconds, applying it a memory pass; set-ups are kept in a small cache under a one-way digest of the
key.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tessera.keystore.kdf import derive
from tessera.keystore.secrets import InputKey
from tessera.transforms.schedule import mask, permutation
from tessera.transforms.spec import Kind, Step, TransformError, TransformSpec

MAX_IMAGE_VALUES: Final = 64 * 1024 * 1024
"""Most values of one image (C * H * W); its set-up takes nine bytes for each."""

_CACHED: Final = 32


class BlockMap(NamedTuple):
    """What one step does to a flattened block of L values: `y = x[gather] ^ xor`; int64 and uint8, both of length L."""

    gather: NDArray[np.int64]
    xor: NDArray[np.uint8]


class _Setup(NamedTuple):
    gather: NDArray[np.int64]
    inverse: NDArray[np.int64]
    xor: NDArray[np.uint8]


def _shuffle(key: InputKey, number: int, step: Step, channels: int) -> BlockMap:
    order = permutation(key, number, step.kind, step.block, channels)
    return BlockMap(order, np.zeros(len(order), dtype=np.uint8))


def _negative_positive(key: InputKey, number: int, step: Step, channels: int) -> BlockMap:
    inverted = mask(key, number, step.kind, step.block, channels)
    return BlockMap(np.arange(len(inverted), dtype=np.int64), inverted)


BLOCK_MAPS: Final[dict[Kind, Callable[[InputKey, int, Step, int], BlockMap]]] = {
    "shf": _shuffle,
    "np": _negative_positive,
}
"""Every kind of step and what makes its map from (key, index of the step, step, channels)."""


class Transform:
    """Applies `spec` under `key` to uint8 images of one shape; law: `t.inverse(t(x)) == x`, bit for bit.

    `index` (int64) and `xor` (uint8), both of length C * H * W and read-only, are the whole stack:
    `y = x.ravel()[index] ^ xor`. They are as secret as the key. Safe to share between threads.
    Raises `TransformError` when the spec does not fit the shape.
    """

    __slots__ = ("_inverse", "channels", "height", "index", "spec", "width", "xor")

    def __init__(self, spec: TransformSpec, key: InputKey, channels: int, height: int, width: int) -> None:
        self.spec = spec
        self.channels, self.height, self.width = channels, height, width
        self.index, self._inverse, self.xor = _setup(spec, key, (channels, height, width))

    def __repr__(self) -> str:
        return f"Transform({str(self.spec)!r}, {self.channels}x{self.height}x{self.width})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """The (C, H, W) of the images it is for."""
        return self.channels, self.height, self.width

    def __call__(self, x: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the transformed copy of `x`: uint8, (C, H, W) or (N, C, H, W). Raises `TransformError` otherwise."""
        self._check(x)
        y: NDArray[np.uint8] = np.take(x.reshape(-1, len(self.index)), self.index, axis=1)
        y ^= self.xor
        return y.reshape(x.shape)

    def inverse(self, y: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the copy of `y` that `self` would turn into `y`; same shapes and errors as calling it."""
        self._check(y)
        plain: NDArray[np.uint8] = np.take(y.reshape(-1, len(self.index)) ^ self.xor, self._inverse, axis=1)
        return plain.reshape(y.shape)

    def _check(self, x: NDArray[np.uint8]) -> None:
        if not isinstance(x, np.ndarray) or x.dtype != np.uint8:
            found = str(x.dtype) if isinstance(x, np.ndarray) else type(x).__name__
            raise TransformError(
                f"the transform needs a uint8 array, not {found}",
                remedy="Send raw 0-255 pixels; the model scales and normalises inside.",
            )
        if x.ndim not in (3, 4) or x.shape[-3:] != self.shape:
            raise TransformError(
                f"the transform is for images of {self.channels}x{self.height}x{self.width} (C, H, W), not {x.shape}",
                remedy="Give (C, H, W) or (N, C, H, W), resized and cropped before the transform.",
            )


def _setup(spec: TransformSpec, key: InputKey, shape: tuple[int, int, int]) -> _Setup:
    """Return the composed stack from the cache, or build it; the key itself is never a cache key."""
    _check_shape(spec, shape)
    cache_key = (spec, derive(key.reveal(), "tessera/v1/transform/cache", length=16), shape)
    with _lock:
        found = _cache.get(cache_key)
        if found is not None:
            _cache.move_to_end(cache_key)
            return found
    built = _compose(spec, key, shape)
    with _lock:
        _cache[cache_key] = built
        while len(_cache) > _CACHED:
            _cache.popitem(last=False)
    return built


_lock = threading.Lock()
_cache: OrderedDict[tuple[TransformSpec, bytes, tuple[int, int, int]], _Setup] = OrderedDict()


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


def _compose(spec: TransformSpec, key: InputKey, shape: tuple[int, int, int]) -> _Setup:
    channels, height, width = shape
    size = channels * height * width
    index: NDArray[np.int64] = np.arange(size, dtype=np.int64)
    xor: NDArray[np.uint8] = np.zeros(size, dtype=np.uint8)
    for number, step in enumerate(spec.steps):
        block_map = BLOCK_MAPS[step.kind](key, number, step, channels)
        blocks = block_positions(channels, height, width, step.block)
        gather, inverted = np.empty_like(index), np.empty_like(xor)
        gather[blocks] = blocks[:, block_map.gather]
        inverted[blocks] = block_map.xor
        index, xor = index[gather], xor[gather] ^ inverted
    inverse = np.empty_like(index)
    inverse[index] = np.arange(size, dtype=np.int64)
    for array in (index, inverse, xor):
        array.flags.writeable = False
    return _Setup(index, inverse, xor)


def block_positions(channels: int, height: int, width: int, block: int) -> NDArray[np.int64]:
    """Return (number of blocks, L): the flat (C, H, W) positions of each block's values in block order (rule T-10).

    Blocks go left to right, then down; inside a block row, then column, then channel, channel fastest.
    """
    grid = np.arange(channels * height * width, dtype=np.int64).reshape(
        channels, height // block, block, width // block, block
    )
    return grid.transpose(1, 3, 2, 4, 0).reshape(-1, block * block * channels)
