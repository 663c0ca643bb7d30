"""What a keyed transform does to one block: every place takes the value of one place, through one table."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.transforms import Transform, TransformSpec

LEVELS = 256
_PROBES = 8


@dataclass(frozen=True)
class BlockMap:
    """Place q of a keyed block holds `values[q, plain[source[q]]]`; places of a (C, M, M) block in that order.

    `source` int64 (L,) is a permutation, each row of `values` uint8 (L, 256) one of the bytes.
    """

    source: NDArray[np.int64]
    values: NDArray[np.uint8]

    @property
    def moves(self) -> bool:
        """Whether any place takes another place's value."""
        return bool((self.source != np.arange(len(self.source))).any())

    @property
    def inverted(self) -> NDArray[np.bool_] | None:
        """Which places hold 255 minus the value, the others the value itself; None where a table does more."""
        levels = np.arange(LEVELS, dtype=np.uint8)
        kept, turned = (self.values == levels).all(axis=1), (self.values == 255 - levels).all(axis=1)
        return turned if bool((kept | turned).all()) else None

    def undone(self) -> "BlockMap":
        """Return the map that leads back."""
        back = np.argsort(self.source)
        tables = np.argsort(self.values, axis=1, kind="stable").astype(np.uint8)
        return BlockMap(back, tables[back])

    def then(self, after: "BlockMap") -> "BlockMap":
        """Return the map that is this one followed by `after`."""
        tables = np.take_along_axis(after.values, self.values[after.source].astype(np.int64), axis=1)
        return BlockMap(self.source[after.source], tables)


def block_map(spec: TransformSpec, key: InputKey, channels: int, side: int) -> BlockMap:
    """Return what `spec` under `key` does to a block of `side` x `side` pixels, found by applying it.

    Raises `TransformError` when a block of the spec does not divide `side`, and `ApiMisuse` for an isnn, which adds to
    values and cannot be undone.
    """
    if spec.perturbation is not None:
        raise ApiMisuse(f"{spec} adds a pattern, which no first layer can undo", remedy="Lock with shf, np or ffx.")
    transform, length = Transform(spec, key, channels, side, side), channels * side * side

    def keyed(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return transform(np.ascontiguousarray(blocks).reshape(-1, channels, side, side)).reshape(len(blocks), length)

    levels = np.arange(LEVELS, dtype=np.uint8)
    values = keyed(np.repeat(levels[:, None], length, axis=1)).T.copy()  # all places alike: moves do not show
    black = values[:, 0]
    changed = keyed(np.eye(length, dtype=np.uint8)) != black  # row p: where the value of place p arrives
    source = changed.argmax(axis=0)
    found = BlockMap(source.astype(np.int64), values)
    probe = np.random.default_rng(0).integers(0, LEVELS, (_PROBES, length), dtype=np.uint8)
    told = np.take_along_axis(values[None], probe[:, source].astype(np.int64)[..., None], axis=2)[..., 0]
    if not (changed.sum(axis=0) == 1).all() or not np.array_equal(told, keyed(probe)):
        raise ApiMisuse(f"{spec} does more to a block than move its values and replace each by itself")
    return found
