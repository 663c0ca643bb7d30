"""Putting a key into a trained network's first layer, in the place of none or of another (rules B-14 to B-16)."""

import dataclasses
import math
import time
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from tessera.keystore.errors import ApiMisuse, Refused
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey
from tessera.protect.audit.programs import ProgramModel
from tessera.protect.bundle import Bundle
from tessera.protect.locking.block_maps import BlockMap, block_map
from tessera.protect.locking.entry import Entry, Patches, find_entry
from tessera.transforms import Transform, TransformSpec

EXACT: Final = 1e-4
"""Most that an answer may move, of the largest answer: rounding of float32 in a network of some depth."""
_PROBES: Final = 16
_NO_SHIFT: Final = 1e-9
"""Shifts of a feature below this share of its weights are none: mean and deviation of one half cancel."""


class NotLockable(Refused):
    """The network's first layer cannot take the transform in."""

    default_reason = "not-lockable"


@dataclasses.dataclass(frozen=True)
class Locked:
    """A network under its new key; `moved` is the largest change of an answer on random images, of the largest answer,
    `seconds` what changing the first layer took, without that check.
    """

    bundle: Bundle
    moved: float
    seconds: float


class Lockable:
    """A bundle opened once, to be locked for many buyers.

    Raises what `lock` raises before it sees the new key.
    """

    def __init__(self, bundle: Bundle, *, present: InputKey | None = None) -> None:
        self._present = _checked(bundle, present)
        self._bundle, self._shape = bundle, _shape_of(bundle)
        self._model = ProgramModel(bundle.program, bundle.tensors)
        self._entry = find_entry(self._model, self._shape)
        self._probes = np.random.default_rng(0).integers(0, 256, (_PROBES, *self._shape), dtype=np.uint8)
        self._before = self._answers(bundle.tensors, bundle.transform, self._present)

    def lock(self, spec: TransformSpec, key: InputKey) -> Locked:
        """Return the bundle under `spec` and `key`; errors as those of the function `lock`."""
        present, channels = self._bundle.transform, self._shape[0]
        Transform(spec, key, *self._shape)  # a spec that does not fit the images is told first
        begin = time.perf_counter()
        side = _side(self._entry, spec, present)
        whole = block_map(spec, key, channels, side)
        if self._present is not None and present is not None:
            whole = block_map(present, self._present, channels, side).undone().then(whole)
        tensors = self._bundle.tensors | _changed(self._bundle.tensors, self._entry, whole, side, channels)
        made = dataclasses.replace(
            self._bundle, tensors=tensors, transform=spec, input_key_id=input_key_id(key), quality=_kept(self._bundle),
            report=None,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        after = self._answers(tensors, spec, key)
        moved = float((after - self._before).abs().max() / self._before.abs().max().clamp_min(1e-12))
        if not moved <= EXACT:
            raise NotLockable(
                f"after the change answers differ by {moved:.1e} of the largest",
                remedy="The image must reach the rest of the network through its first layer alone.",
            )
        return Locked(made, moved, seconds)

    def _answers(self, tensors: dict[str, Tensor], spec: TransformSpec | None, key: InputKey | None) -> Tensor:
        seen = self._probes if spec is None or key is None else Transform(spec, key, *self._shape)(self._probes)
        with torch.no_grad():
            found: Tensor = functional_call(self._model.graph, tensors, (torch.from_numpy(seen),))
        return found.double()


def lock(bundle: Bundle, spec: TransformSpec, key: InputKey, *, present: InputKey | None = None) -> Locked:
    """Return `bundle` with its first layer changed so that it answers images under `spec` and `key`, and no others.

    Its answers to them are those that it gave before, to plain images or to images under the `present` key of its own
    transform, up to rounding (`EXACT`, held on random images). Program, shapes and all other weights stay as they are.
    `shf` and `np` go into a first convolution that takes whole blocks, `ffx` into tables of values (`keyed` makes
    both). What is measured of the right key stays in `quality`, the rest is left out.

    Raises `NotLockable` with what is missing, `TransformError` for a spec that does not fit the images, and `ApiMisuse`
    for a present key that is missing, needless or wrong, for tiers, and for networks made for buyers' records.
    """
    return Lockable(bundle, present=present).lock(spec, key)


def _checked(bundle: Bundle, present: InputKey | None) -> InputKey | None:
    """Return the key to take out, held to be the bundle's own."""
    if bundle.tiers:
        raise ApiMisuse("a bundle in tiers cannot be locked", remedy="Lock the whole model, then encrypt it in tiers.")
    if bundle.input_key_ids:
        raise ApiMisuse(
            "a network made for buyers' records has their keys trained into all of its layers",
            remedy="Lock the network from before it was fine-tuned for them, or train it anew for other records.",
        )
    if (bundle.transform is None) != (present is None):
        needless = bundle.transform is None
        raise ApiMisuse(
            "the model has no key yet" if needless else "the model has a key already",
            remedy="Leave the old key out." if needless else "Give the old key too: it is taken out first.",
        )
    if present is not None and input_key_id(present) != bundle.input_key_id:
        raise ApiMisuse(
            f"the old key is not the model's, whose id is {bundle.input_key_id}",
            remedy="Give the key that the model was trained or last locked with.",
        )
    return present


def _shape_of(bundle: Bundle) -> tuple[int, int, int]:
    found = tuple(bundle.inputs[0].shape[1:])
    if bundle.inputs[0].datatype != "UINT8" or len(found) != 3:
        raise NotLockable(
            "the model takes no uint8 images (N, C, H, W)", remedy="Wrap it in a `PixelModel` before it is bundled."
        )
    return found[0], found[1], found[2]


def _side(entry: Entry, spec: TransformSpec, present: TransformSpec | None) -> int:
    """Return the side of the smallest block that all steps and the first layer's parts divide. Raises `NotLockable`."""
    blocks = [step.block for one in (spec, present) if one is not None for step in one.steps]
    sides = [entry.block] if entry.tables is not None else []
    sides += [entry.patches.block] if entry.patches is not None else []
    if not sides:
        raise NotLockable(
            "the first layer neither takes whole blocks nor looks values up in tables",
            remedy="Use a network that embeds patches, or `tessera.protect.keyed` before it is trained.",
        )
    for side in sides:
        for block in blocks:
            if side % block:
                raise NotLockable(
                    f"the first layer takes blocks of {side}, which steps of {block} do not divide",
                    remedy=f"Choose blocks that divide {side}.",
                )
    return math.lcm(*sides)


def _changed(tensors: dict[str, Tensor], entry: Entry, whole: BlockMap, side: int, channels: int) -> dict[str, Tensor]:
    """Return the tensors of the first layer under the map `whole` of blocks of `side`."""
    changed: dict[str, Tensor] = {}
    patches = entry.patches
    if whole.moves and patches is None:
        raise NotLockable(
            "the first convolution does not take whole blocks, so it cannot undo shf",
            remedy="Lock with np and ffx alone, or use a network that embeds patches.",
        )
    if entry.tables is not None:
        part = _within(whole, side, entry.block, channels)
        table = tensors[entry.tables].numpy()
        made = np.empty_like(table)
        np.put_along_axis(made, part.values.astype(np.int64), table[part.source], axis=1)
        changed[entry.tables] = torch.from_numpy(made)
        if patches is not None and whole.moves:
            part = _within(whole, side, patches.block, channels)
            weight = tensors[patches.weight]
            moved = weight.reshape(len(weight), -1)[:, torch.from_numpy(part.source)]
            changed[patches.weight] = moved.reshape(weight.shape).contiguous()
        return changed
    assert patches is not None  # `_side` found one of the two
    return _folded(tensors, patches, _within(whole, side, patches.block, channels))


def _folded(tensors: dict[str, Tensor], patches: Patches, part: BlockMap) -> dict[str, Tensor]:
    """Return the convolution that makes of keyed blocks what the present one makes of plain ones.

    Place q holds a = v or a = 255 - v of the value v at source[q], and on their way values become s v + t. The plain
    layer sums w[p] (s[p] v[p] + t[p]); with w'[q] = ± w[source] s[source] / s[q] the keyed one sums the same up to a
    shift of each feature, which goes into what is added to the features, or into the mean that is taken from them.
    """
    inverted = part.inverted
    if inverted is None:
        raise NotLockable(
            "the first layer has no tables of values, so it cannot undo ffx",
            remedy="Lock with shf and np, or train with a `ValueStem` (`tessera.protect.keyed` with an ffx step).",
        )
    assert patches.line is not None  # without tables there is a line
    present = tensors[patches.weight]
    plain = present.reshape(len(present), -1).double().numpy()
    scale, shift = (np.repeat(values, patches.block**2) for values in patches.line)
    reached = plain[:, part.source] * scale[part.source]  # what a value of the plain picture brings, by place q
    made = np.where(inverted, -1.0, 1.0) * reached / scale
    missing = plain @ shift - made @ shift + 255.0 * reached[:, inverted].sum(axis=1)
    changed = {patches.weight: torch.from_numpy(np.ascontiguousarray(made)).to(present.dtype).reshape(present.shape)}
    if np.abs(missing).max() <= _NO_SHIFT * np.abs(reached).sum(axis=1).max():
        return changed
    place, sign = (patches.bias, 1.0) if patches.bias is not None else (patches.mean, -1.0)
    if place is None:
        raise NotLockable(
            "np shifts the features of the first layer, which neither adds a bias nor is followed by a batch norm",
            remedy="Give the first convolution a bias before the model is trained.",
        )
    added = tensors[place]
    changed[place] = (added.double() + sign * torch.from_numpy(missing)).to(added.dtype)
    return changed


def _within(whole: BlockMap, side: int, smaller: int, channels: int) -> BlockMap:
    """Return the map of the blocks of `smaller` that a block of `side` is made of; all are alike."""
    places = np.arange(channels * side * side).reshape(channels, side, side)
    corner = places[:, :smaller, :smaller].reshape(-1)
    numbers = np.full(len(whole.source), -1, dtype=np.int64)
    numbers[corner] = np.arange(len(corner))
    return BlockMap(numbers[whole.source[corner]], whole.values[corner])


def _kept(bundle: Bundle) -> dict[str, float]:
    """Return the measures that hold under the new key as well."""
    return {name: value for name, value in bundle.quality.items() if not name.endswith(_OF_THE_KEY)}


_OF_THE_KEY: Final = ("_plain", "_wrong_key", "_wrong_key_max", "_wrong_keys")
