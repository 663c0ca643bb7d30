"""Taking a model apart: public weights with decoys, and what each tier gets back; putting it together again.

    split(state, plan)               -> public state, increments (one per tier: the true bytes of E_t without E_(t-1))
    apply(public, increments, tier)  -> the state that a holder of `tier` has; the top one equals `state` to the bit

Values travel as bytes, so every floating dtype comes back exactly. `SplitModel.patches` are the increments in the form
that packages carry; they are plaintext until sealed, each under its tier's key.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.keystore.package.patches import PatchEntry, encode_patch
from tessera.protect.seal import SAFETENSORS_DTYPES
from tessera.protect.selective.decoys import DecoyKind, DecoySeed, fresh_seed, make_decoys
from tessera.protect.selective.plan import Plan, Units
from tessera.protect.selective.units import Layer, check_weights

Increment = tuple[PatchEntry, ...]
"""What one tier adds to the tier below it; empty for a tier 0 that gets nothing back."""


@dataclass(frozen=True)
class SplitModel:
    """A model taken apart."""

    public: dict[str, Tensor] = field(repr=False)
    """The whole state with decoys in place of every selected unit; unchanged tensors are those of the model."""
    increments: tuple[Increment, ...] = field(repr=False)
    """One per tier, from tier 0."""

    @property
    def patches(self) -> tuple[bytes, ...]:
        """The increments as bytes (docs/spec.md, rule P-31); secret."""
        return tuple(encode_patch(increment) for increment in self.increments)


def split(
    state: Mapping[str, Tensor], plan: Plan, decoys: DecoyKind = "kernel", *, seed: DecoySeed | None = None
) -> SplitModel:
    """Return `state` taken apart by `plan`; without a seed the decoys are fresh ones.

    Raises `Malformed` for weights that are missing, of another shape or not finite, as `check_weights` does.
    """
    full = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    check_weights(full, plan.layers)
    layers = {layer.weight: layer for layer in plan.layers}
    source = fresh_seed() if seed is None else seed
    public = dict(full)
    for name, units in plan.selected().items():
        public[name] = _with_decoys(layers[name], full[name], units, decoys, source)
    increments = tuple(
        tuple(_entry(layers[name], full[name], units) for name, units in sorted(plan.increment(tier).items()))
        for tier in range(plan.tiers)
    )
    return SplitModel(public, increments)


def apply(public: Mapping[str, Tensor], increments: Sequence[Increment], tier: int) -> dict[str, Tensor]:
    """Return the state of tier 0 … len(increments) - 1, on the CPU; what no increment touches is that of `public`.

    Raises `ApiMisuse` for a tier that is not there, and `Malformed` for an increment of another model.
    """
    if not 0 <= tier < len(increments):
        raise ApiMisuse(f"there are the tiers 0 to {len(increments) - 1}, not {tier}")
    state = dict(public)
    fresh: set[str] = set()
    for entry in (entry for increment in increments[: tier + 1] for entry in increment):
        _check(state, entry)
        if entry.tensor not in fresh:
            state[entry.tensor] = state[entry.tensor].detach().cpu().contiguous().clone()
            fresh.add(entry.tensor)
        entry.write_into(_bytes(state[entry.tensor]).numpy().data)
    return state


def same_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Say whether two states have the same names, dtypes, shapes and bytes; -0.0 is not 0.0 here."""
    return first.keys() == second.keys() and all(_same(value, second[name]) for name, value in first.items())


def _same(first: Tensor, second: Tensor) -> bool:
    alike = (first.dtype, first.shape) == (second.dtype, second.shape)
    return alike and torch.equal(*(_bytes(value.detach().cpu().contiguous()) for value in (first, second)))


def _bytes(value: Tensor) -> Tensor:
    """Return the bytes of a contiguous CPU tensor, in its own memory."""
    return value.reshape(-1).view(torch.uint8)


def _with_decoys(layer: Layer, weight: Tensor, units: Units, kind: DecoyKind, seed: DecoySeed) -> Tensor:
    selected = np.zeros(layer.count, dtype=bool)
    selected[units] = True
    made = make_decoys(kind, layer, layer.rows(weight.double()).numpy(), selected, seed)
    public = layer.rows(weight).clone()
    public[torch.from_numpy(units)] = torch.from_numpy(made).to(weight.dtype)
    return public.reshape(layer.shape)


def _entry(layer: Layer, weight: Tensor, units: Units) -> PatchEntry:
    values = layer.rows(weight)[torch.from_numpy(units)]
    dtype = SAFETENSORS_DTYPES.get(weight.dtype)
    if dtype is None:
        raise Malformed(f"{layer.weight} is {weight.dtype}, which no package can hold", remedy="Cast it first.")
    return PatchEntry(layer.weight, dtype, layer.elements, units.astype(np.uint32), _bytes(values.contiguous()).numpy())


def _check(state: Mapping[str, Tensor], entry: PatchEntry) -> None:
    target = state.get(entry.tensor)
    if target is None or SAFETENSORS_DTYPES.get(target.dtype) != entry.dtype:
        raise Malformed(f"the increment for {entry.tensor} belongs to another model")
