"""One plain image beside its keyed twin: the transform can be read off.

The transform is the same for every block of every image, so a pair of images shows it at work in every block. Each
place of a keyed block is matched with the place of the plain block that explains it: equal values, inverted ones, or a
fixed table. Nothing is searched and the model is not needed. This is why the transform has to run inside the buyer's
process, where nobody else sees both sides.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.measure import reached
from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject, some
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform, TransformSpec, block_positions

NAME = "known-pairs"
PAIRS: Final = (1, 2, 5)

Bytes = NDArray[np.uint8]


def run(
    subject: Subject,
    sample: Sample,
    budget: Budget,  # noqa: ARG001 - six pairs of images cost nothing
    meter: Meter,
    *,
    seed: int,
    device: torch.device,
) -> AttackResult:
    """Read the transform off 1, 2 and 5 pairs and judge what was read on held-out images."""
    meter.expect(len(PAIRS))
    model = subject.victim().to(device)
    lock = TorchTransform(Transform(subject.spec, subject.key, *subject.shape))
    rows = []
    for count in PAIRS:
        own = some(sample.attacker, count, seed).images
        found = recover(subject.spec, own.numpy(), lock(own).numpy())
        score = reached(model, sample.held_out, device, found)
        same = float((found(sample.held_out.images[:256]) == lock(sample.held_out.images[:256])).double().mean())
        rows.append(
            Row(
                label=f"{count} pair{'s' if count > 1 else ''}",
                score=score,
                at=count,
                images=0,
                work=len(own),
                unit="pairs of images, without labels",
                note=f"{same:.1%} of the bytes of other images come out right",
            )
        )
        meter.did()
    return AttackResult(name=NAME, rows=tuple(rows))


@dataclass(frozen=True, eq=False)
class Recovered:
    """A transform as it was read off: `y[p] = tables[p, x[source[p]]]` in every block of `block` x `block` pixels."""

    block: int
    source: NDArray[np.int64]
    tables: Bytes
    """(L, 256)."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return the transformed copy of uint8 (N, C, H, W), where `x` is."""
        channels, height, width = x.shape[1:]
        blocks = torch.from_numpy(block_positions(channels, height, width, self.block))
        flat = x.reshape(len(x), -1).cpu()
        moved = flat[:, blocks[:, torch.from_numpy(self.source)]].long()
        places = torch.arange(len(self.source)) * 256
        y = torch.empty_like(flat)
        y[:, blocks] = torch.from_numpy(self.tables).reshape(-1)[moved + places]
        return y.reshape(x.shape).to(x.device)


def recover(spec: TransformSpec, plain: Bytes, keyed: Bytes) -> Recovered:
    """Return the transform of `spec` that explains `keyed`, uint8 (N, C, H, W), as the image of `plain`.

    Places that these images cannot tell apart are matched as they come; table entries that they do not show stay the
    identity's.
    """
    block = math.lcm(*(step.block for step in spec.steps))
    before, after = _columns(plain, block), _columns(keyed, block)
    kinds: set[str] = {step.kind for step in spec.steps}
    if "shf" not in kinds:
        source = np.arange(len(before), dtype=np.int64)
    elif "ffx" not in kinds:
        source = _matched_values(before, after, inverted="np" in kinds)
    else:
        source = _matched_tables(before, after)
    tables = np.stack([_table(before[source[place]], after[place], kinds) for place in range(len(after))])
    if kinds == {"ffx"} and len(spec.steps) == 1 and not spec.steps[0].positions:
        _pool(tables, before[source], after)
    return Recovered(block, source, tables)


def _columns(images: Bytes, block: int) -> Bytes:
    """Return (L, blocks of all images): the values of each place of a block, wherever it occurs."""
    channels, height, width = images.shape[1:]
    places = block_positions(channels, height, width, block)
    flat = images.reshape(len(images), -1)
    return np.ascontiguousarray(flat[:, places].reshape(-1, places.shape[1]).T)


def _matched_values(before: Bytes, after: Bytes, *, inverted: bool) -> NDArray[np.int64]:
    """Match places whose values are equal, or inverted; each plain place once, ties as they come."""
    waiting: dict[bytes, list[int]] = {}
    for place in range(len(before) - 1, -1, -1):
        # An inverted column is looked for under the same name as the column itself.
        waiting.setdefault(_name(before[place], inverted), []).append(place)
    source = np.full(len(after), -1, dtype=np.int64)
    for place in range(len(after)):
        candidates = waiting.get(_name(after[place], inverted))
        if candidates:
            source[place] = candidates.pop()
    left = sorted(set(range(len(before))) - set(source.tolist()))
    source[source < 0] = left
    return source


def _name(column: Bytes, inverted: bool) -> bytes:
    raw = column.tobytes()
    return min(raw, (column ^ 255).tobytes()) if inverted else raw


def _matched_tables(before: Bytes, after: Bytes) -> NDArray[np.int64]:
    """Match places that a table can explain: values are equal in one where they are in the other. Ties as they come."""
    partitions: dict[bytes, list[int]] = {}
    for place in range(len(before) - 1, -1, -1):
        partitions.setdefault(_pattern(before[place]), []).append(place)
    source = np.full(len(after), -1, dtype=np.int64)
    for place in range(len(after)):
        candidates = partitions.get(_pattern(after[place]))
        if candidates:
            exact = [at for at in candidates if (before[at] == after[place]).all()]
            source[place] = exact[-1] if exact else candidates[-1]
            candidates.remove(int(source[place]))
    left = sorted(set(range(len(before))) - set(source.tolist()))
    source[source < 0] = left
    return source


def _pattern(column: Bytes) -> bytes:
    """Return which values of a column are equal to which, whatever they are: a table changes nothing about it."""
    _, first, numbers = np.unique(column, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first)).astype(np.uint8)
    return bytes(order[numbers])


def _table(before: Bytes, after: Bytes, kinds: set[str]) -> Bytes:
    """Return what a place does to values: nothing, an inversion where that explains all, or what was seen."""
    identity: Bytes = np.arange(256, dtype=np.uint8)
    inverted: Bytes = identity ^ np.uint8(255)
    if (before == after).all():
        return identity
    if "np" in kinds and (before ^ 255 == after).all():
        return inverted
    seen = identity.copy()
    seen[before] = after
    return seen


def _pool(tables: Bytes, before: Bytes, after: Bytes) -> None:
    """Let all places that are replaced share what any of them showed: one table serves them all."""
    replaced = (before != after).any(axis=1)
    shared = np.arange(256, dtype=np.uint8)
    shared[before[replaced].reshape(-1)] = after[replaced].reshape(-1)
    tables[replaced] = shared
