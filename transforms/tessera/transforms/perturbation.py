"""The `isnn` transform: a faint keyed pattern on top of the image (docs/spec.md, rules T-20 to T-24).

Every value of a block is raised or lowered by epsilon, by a pattern of signs from the key. In the fixed form that
pattern is the same for every block of every image; by content, a keyed coarse measure of the block decides whether the
pattern or its opposite is added, so that nothing fixed is to be had by averaging.
"""

from collections.abc import Iterator
from typing import NoReturn, Self, TypeGuard

import numpy as np
from numpy.typing import NDArray

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.transforms.schedule import block_values, draw_order, mask, step_label
from tessera.transforms.spec import Step, TransformError, TransformSpec

CELL = 2
"""Side in pixels of the squares whose sums the coarse measure weighs."""

_PART_VALUES = 1 << 20
"""Most values that the content form works on at once, of several images."""

Bytes = NDArray[np.uint8]


class Perturbation:
    """What an isnn `step`, alone in its spec, does under `key` to images of (channels, height, width).

    `signs`, int8 (C, M, M) of 1 and -1, is its pattern; `weights`, int8 (C, M, M) of 1, 0 and -1, its coarse measure,
    None in the fixed form. Both are as secret as the key. Nothing undoes it: values at the ends of the range are
    clipped.
    """

    __slots__ = ("_ends", "_opposite_ends", "epsilon", "signs", "step", "weights")

    def __init__(self, step: Step, key: InputKey, channels: int, height: int, width: int) -> None:
        self.step, self.epsilon = step, step.epsilon
        self.signs = pattern(key, step.block, channels)
        self.weights = measure_weights(key, step.block, channels) if step.content else None
        across = (1, height // step.block, width // step.block)
        self._ends = _Ends(np.tile(self.signs, across), step.epsilon)
        self._opposite_ends = _Ends(np.tile(-self.signs, across), step.epsilon) if step.content else None

    @classmethod
    def of(cls, spec: TransformSpec, key: InputKey, channels: int, height: int, width: int) -> Self:
        """Return the perturbation of a spec whose only step is an isnn. Raises `TransformError` for another spec.

        The block must divide height and width, as rule T-2 says.
        """
        step = spec.perturbation
        if step is None:
            raise TransformError(f"{spec} is no isnn transform", remedy="Write it like isnn:8:12:content.")
        if min(channels, height, width) < 1 or height % step.block or width % step.block:
            raise TransformError(
                f"block size {step.block} of step {step} does not divide {height}x{width}",
                remedy="Choose a block size that divides height and width, or resize the images.",
            )
        return cls(step, key, channels, height, width)

    def __call__(self, x: Bytes) -> Bytes:
        """Return the perturbed copy of `x`: contiguous uint8 (N, C, H, W)."""
        if self._opposite_ends is None:
            return self._ends.added(x)
        y = np.empty(x.shape, dtype=np.uint8)
        images = max(1, _PART_VALUES // max(1, x[0].size)) if len(x) else 1
        for first in range(0, len(x), images):
            part = x[first : first + images]
            opposite = np.repeat(np.repeat(~self.bits(part), self.step.block, 1), self.step.block, 2)
            y[first : first + images] = np.where(
                opposite[:, np.newaxis], self._opposite_ends.added(part), self._ends.added(part)
            )
        return y

    def bits(self, x: Bytes) -> NDArray[np.bool_]:
        """Return which blocks of uint8 (N, C, H, W) get the pattern itself, bool (N, H / M, W / M) (rule T-23)."""
        images, channels, height, width = x.shape
        block = self.step.block
        if self.weights is None:
            return np.ones((images, height // block, width // block), dtype=np.bool_)
        shape = (images, channels, height // block, block, width // block, block)
        # At most 32 * 32 * 64 values of up to 255 each: the sum is far inside 32 bits.
        totals = np.einsum("ncyaxb,cab->nyx", x.reshape(shape).astype(np.int32), self.weights.astype(np.int32))
        found: NDArray[np.bool_] = totals >= 0
        return found


class FaintStack:
    """Runs a `perturbation` over images of `shape` (C, H, W) as a stack of passes is run; see `NumpyStack`."""

    __slots__ = ("_shape", "perturbation")

    def __init__(self, perturbation: Perturbation, shape: tuple[int, int, int]) -> None:
        self.perturbation, self._shape = perturbation, shape

    def run(self, x: object) -> Bytes | None:
        """Return the perturbed copy of (C, H, W) or (N, C, H, W), or None for what is not uint8 of such a shape."""
        if not _is_bytes(x) or self._shape not in (x.shape, x.shape[1:]):
            return None
        return self.perturbation(np.ascontiguousarray(x).reshape(-1, *self._shape)).reshape(x.shape)

    def images_last(self, x: object) -> Bytes | None:
        """Return the perturbed copy of (C, H, W, N), or None."""
        if not _is_bytes(x) or x.shape[:-1] != self._shape:
            return None
        images = np.ascontiguousarray(x.transpose(3, 0, 1, 2))
        return np.ascontiguousarray(self.perturbation(images).transpose(1, 2, 3, 0))

    def back(self) -> NoReturn:
        """Refuse: clipping loses values (rule T-20)."""
        raise ApiMisuse("an isnn transform cannot be undone", remedy="Keep the image from before it.")

    def over_image(self) -> NoReturn:
        """Refuse: it is no pass."""
        raise ApiMisuse("an isnn transform is no index and no table", remedy="Read `Transform.perturbation`.")


def _is_bytes(x: object) -> TypeGuard[Bytes]:
    return isinstance(x, np.ndarray) and x.dtype == np.uint8


class _Ends:
    """Adds epsilon times `signs` with clipping, in bytes: first clip so that nothing can pass an end, then add."""

    __slots__ = ("change", "highest", "lowest")

    def __init__(self, signs: NDArray[np.int8], epsilon: int) -> None:
        raised = signs > 0
        self.lowest = np.where(raised, 0, epsilon).astype(np.uint8)
        self.highest = np.where(raised, 255 - epsilon, 255).astype(np.uint8)
        self.change = np.where(raised, epsilon, 256 - epsilon).astype(np.uint8)

    def added(self, x: Bytes) -> Bytes:
        y: Bytes = np.clip(x, self.lowest, self.highest)
        y += self.change  # modulo 256, so that 256 - epsilon lowers
        return y


def pattern(key: InputKey, block: int, channels: int) -> NDArray[np.int8]:
    """Return the signs of a block, int8 (C, M, M): -1 in the step's mask (rule T-21), else 1. Raises as `mask`."""
    lowered = mask(key, 0, "isnn", block, channels).reshape(block, block, channels)
    return np.where(lowered, -1, 1).astype(np.int8).transpose(2, 0, 1).copy()


def measure_weights(key: InputKey, block: int, channels: int) -> NDArray[np.int8]:
    """Return the weights of a block's values in its coarse measure, int8 (C, M, M) of 1, 0 and -1 (rule T-22).

    In each channel as many cells count up as down, so that neither brightness nor colour alone decides.
    """
    block_values(block, channels)
    cells = (block // CELL) ** 2
    found = np.zeros((channels, cells), dtype=np.int8)
    for channel, order in enumerate(_cell_orders(key, block, channels, cells)):
        found[channel, order[: cells // 2]] = 1
        found[channel, order[cells // 2 : cells // 2 * 2]] = -1
    side = block // CELL
    return found.reshape(channels, side, side).repeat(CELL, 1).repeat(CELL, 2)


def _cell_orders(key: InputKey, block: int, channels: int, cells: int) -> Iterator[list[int]]:
    label = step_label(0, "isnn", block, channels)
    return (draw_order(key, f"{label}/measure={channel}", cells) for channel in range(channels))
