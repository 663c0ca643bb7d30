"""A stack of steps folded into as few passes over the flattened image as its tables allow (docs/spec.md, rule T-14).

Moving values and inverting them fold without end. Tables fold with both, and with other tables while there are few
different ones; a stack with more than `MAX_TABLES` of them takes another pass.
"""

from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tessera.keystore.secrets import InputKey
from tessera.transforms.ff1 import byte_tables, inverted
from tessera.transforms.schedule import ff1_key, mask, permutation
from tessera.transforms.spec import Step, TransformSpec

MAX_TABLES: Final = 4096
"""Most tables that several folded steps may have together: one MiB, which stays in a processor's second cache."""

_FEW_CODES: Final = 1 << 20

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """`y[p] = tables[choice[p], x[index[p]] ^ before[p]] ^ after[p]` for the `size` values of an image or strip.

    `index` is int64, `before` and `after` are uint8 of 0 and 255 only, `choice` is uint16; all have `size` values, are
    read-only, and None stands for 0 … size-1 and for zeros. `tables` is (K, 256) uint8, its first row the
    identity; K is 1 exactly when `choice` is None, and then `before` is None too. As secret as the key.
    """

    size: int
    index: Places | None
    before: Bytes | None
    after: Bytes | None
    tables: Bytes
    choice: NDArray[np.uint16] | None

    def inverse(self) -> "Pass":
        """Return the pass that undoes this one."""
        back: Places | None = None
        if self.index is not None:
            back = np.empty_like(self.index)
            back[self.index] = np.arange(self.size, dtype=np.int64)
        before, after, choice = _taken(self.before, back), _taken(self.after, back), _taken(self.choice, back)
        if choice is None:  # nothing between the two inversions, and `before` is None by our own rule
            return Pass(self.size, back, None, after, self.tables, None).frozen()
        return Pass(self.size, back, after, before, inverted(self.tables), choice).frozen()

    def frozen(self) -> "Pass":
        """Return itself, its arrays read-only."""
        for array in (self.index, self.before, self.after, self.tables, self.choice):
            if array is not None:
                array.flags.writeable = False
        return self


def fold(spec: TransformSpec, key: InputKey, channels: int, height: int, width: int) -> tuple[Pass, ...]:
    """Return the passes whose result, one after the other, is the stack's; the shape fits the spec already."""
    size = channels * height * width
    done: list[Pass] = []
    folding = _Folding(size)
    for number, step in enumerate(spec.steps):
        blocks = block_positions(channels, height, width, step.block)
        if step.kind == "shf":
            folding.move(_everywhere(blocks, blocks[:, permutation(key, number, "shf", step.block, channels)]))
        elif step.kind == "np":
            folding.invert(_everywhere(blocks, mask(key, number, "np", step.block, channels)))
        else:
            tables, chosen = step_tables(key, number, step, channels)
            choice = _everywhere(blocks, chosen)
            if not folding.look_up(tables, choice):
                done.append(folding.done())
                folding = _Folding(size)
                folding.look_up(tables, choice)
    return (*done, folding.done())


def step_tables(key: InputKey, number: int, step: Step, channels: int) -> tuple[Bytes, NDArray[np.uint16]]:
    """Return the tables of an `ffx` step, (K, 256) with the identity first, and which one each of L values takes.

    Values outside the mask take the identity; without `positions` K is 2 (rules T-15 to T-18).
    """
    replaced = np.flatnonzero(mask(key, number, "ffx", step.block, channels))
    tweaks = [int(place).to_bytes(4, "big") for place in replaced] if step.positions else [b""]
    identity = np.arange(256, dtype=np.uint8)[np.newaxis]
    tables = np.concatenate([identity, byte_tables(ff1_key(key, number, step.block, channels), tweaks)])
    chosen = np.zeros(step.block * step.block * channels, dtype=np.uint16)
    chosen[replaced] = np.arange(1, len(replaced) + 1) if step.positions else 1
    return tables, chosen


def block_positions(channels: int, height: int, width: int, block: int) -> Places:
    """Return (number of blocks, L): the flat (C, H, W) positions of each block's values in block order (rule T-10).

    Blocks go left to right, then down; inside a block row, then column, then channel, channel fastest.
    """
    grid = np.arange(channels * height * width, dtype=np.int64).reshape(
        channels, height // block, block, width // block, block
    )
    return grid.transpose(1, 3, 2, 4, 0).reshape(-1, block * block * channels)


class _Folding:
    """One pass while steps are folded into it; every array is as long as the image."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.index = np.arange(size, dtype=np.int64)
        self.before = np.zeros(size, dtype=np.uint8)
        self.after = np.zeros(size, dtype=np.uint8)
        self.choice = np.zeros(size, dtype=np.uint16)
        self.tables = np.arange(256, dtype=np.uint8)[np.newaxis]

    def move(self, gather: Places) -> None:
        """Fold in y[p] = x[gather[p]]."""
        self.index, self.choice = self.index[gather], self.choice[gather]
        self.before, self.after = self.before[gather], self.after[gather]

    def invert(self, inverting: Bytes) -> None:
        """Fold in y[p] = x[p] ^ inverting[p]."""
        self.after = self.after ^ inverting

    def look_up(self, tables: Bytes, choice: NDArray[np.uint16]) -> bool:
        """Fold in y[p] = tables[choice[p], x[p]], or change nothing and return False when there are too many tables."""
        at = np.flatnonzero(choice)
        untouched = self.choice[at] == 0
        flips = np.where(untouched, 0, self.after[at]) != 0  # an inversion before the first table goes to `before`
        codes = (self.choice[at].astype(np.int64) * 2 + flips) * len(tables) + choice[at]
        distinct, numbers = _ranked(codes, len(self.tables) * 2 * len(tables))
        if len(self.tables) > 1 and len(self.tables) + len(distinct) > MAX_TABLES:
            return False
        earlier, new = np.divmod(distinct, len(tables))
        inner = self.tables[earlier // 2] ^ np.where(earlier % 2, 255, 0).astype(np.uint8)[:, np.newaxis]
        composed = np.take_along_axis(tables[new], inner.astype(np.int64), axis=1)
        self.before[at] ^= np.where(untouched, self.after[at], 0).astype(np.uint8)
        self.after[at] = 0
        self.choice[at] = numbers + len(self.tables)
        self.tables = np.concatenate([self.tables, composed])
        self._forget_unused()
        return True

    def _forget_unused(self) -> None:
        used = np.zeros(len(self.tables), dtype=bool)
        used[self.choice] = True
        used[0] = True
        self.choice = (np.cumsum(used) - 1).astype(np.uint16)[self.choice]
        self.tables = self.tables[used]

    def done(self) -> Pass:
        """Return the pass, with None where nothing happens."""
        plain = self.choice == 0
        self.after = self.after ^ np.where(plain, self.before, 0).astype(np.uint8)
        self.before[plain] = 0
        moved = bool((self.index != np.arange(self.size)).any())
        return Pass(
            self.size,
            self.index if moved else None,
            self.before if self.before.any() else None,
            self.after if self.after.any() else None,
            self.tables,
            self.choice if len(self.tables) > 1 else None,
        ).frozen()


def _everywhere(blocks: Places, values: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """Return the image-sized array that has `values`, of one block or of each, at the blocks' positions."""
    found = np.empty(blocks.size, dtype=values.dtype)
    found[blocks] = values
    return found


def _taken(part: NDArray[_Scalar] | None, at: Places | None) -> NDArray[_Scalar] | None:
    return part if part is None or at is None else part[at]


def _ranked(codes: Places, bound: int) -> tuple[Places, Places]:
    """Return the different codes, rising, and each code's place among them; without a sort where `bound` is small."""
    if bound > _FEW_CODES:
        distinct, numbers = np.unique(codes, return_inverse=True)
        return distinct, numbers
    present = np.zeros(bound, dtype=bool)
    present[codes] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[codes]
