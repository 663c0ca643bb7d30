"""The plan: which units are encrypted, and which of them each tier gets back.

    S   units are selected, the most important first: floor(ratio * n) + 1 of n, at most n (the paper's rule)
    f   fractions rise to 1; tier t gets the floor(f_t * S) most important back, so E_0 ⊂ E_1 ⊂ … ⊂ E_M = all of them

With a budget `per layer`, as in the paper, that rule holds in each chosen layer; with a `global` one, over all of them
in one ranking. A plan names secret positions: it is as secret as the weights it points to.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.tiers import MAX_TIERS
from tessera.protect.selective.pss import Scores
from tessera.protect.selective.units import Layer, Shares, shares

Scope = Literal["layer", "global"]
Units = npt.NDArray[np.int64]

PAPER_FRACTIONS: Final = (0.0, 0.68, 0.76, 0.84, 0.92, 1.0)
"""Nothing, then 0.6 + 0.4 m / 5: the five permissions of the paper."""


@dataclass(frozen=True)
class Group:
    """Units ranked against each other, the most important first; `layer` indexes the plan's chosen layers."""

    layer: Units
    unit: Units

    def first(self, count: int) -> "Group":
        """Return the `count` most important."""
        return Group(self.layer[:count], self.unit[:count])


@dataclass(frozen=True)
class Plan:
    """Selected units in nested tiers, numbered from 0. Made by `make_plan`."""

    network: tuple[Layer, ...] = field(repr=False)
    """All layers of the network: the denominator."""
    layers: tuple[Layer, ...] = field(repr=False)
    """The chosen ones, in the network's order."""
    scope: Scope
    budget: float
    fractions: tuple[float, ...]
    groups: tuple[Group, ...] = field(repr=False)

    @property
    def tiers(self) -> int:
        """How many tiers there are."""
        return len(self.fractions)

    def units(self, tier: int) -> dict[str, Units]:
        """Return E_tier: weight name to the sorted units that this tier decrypts; layers without any are left out.

        Raises `ApiMisuse` when the plan has no such tier.
        """
        if not 0 <= tier < self.tiers:
            raise ApiMisuse(f"the plan has the tiers 0 to {self.tiers - 1}, not {tier}")
        return self._units(self.fractions[tier])

    def increment(self, tier: int) -> dict[str, Units]:
        """Return E_tier without E_(tier-1), in the form of `units`; for tier 0 that is E_0."""
        here = self.units(tier)
        below = self.units(tier - 1) if tier else {}
        left = {name: np.setdiff1d(units, below.get(name, units[:0])) for name, units in here.items()}
        return {name: units for name, units in left.items() if len(units)}

    def selected(self) -> dict[str, Units]:
        """Return every encrypted unit, in the form of `units`."""
        return self._units(1.0)

    def shares(self, tier: int | None = None) -> Shares:
        """Return how much is encrypted for a holder of nothing, or still encrypted for a holder of `tier`."""
        counts = {name: len(units) for name, units in self.selected().items()}
        for name, units in (self.units(tier) if tier is not None else {}).items():
            counts[name] -= len(units)
        return shares(self.network, self.layers, counts)

    def _units(self, fraction: float) -> dict[str, Units]:
        taken = [group.first(_part(fraction, len(group.unit))) for group in self.groups]
        layer = np.concatenate([group.layer for group in taken])
        unit = np.concatenate([group.unit for group in taken])
        found = {chosen.weight: np.sort(unit[layer == number]) for number, chosen in enumerate(self.layers)}
        return {name: units for name, units in found.items() if len(units)}


def make_plan(
    network: Sequence[Layer],
    layers: Sequence[Layer],
    scores: Scores,
    *,
    budget: float,
    fractions: Sequence[float] = PAPER_FRACTIONS,
    scope: Scope = "layer",
) -> Plan:
    """Return the plan that encrypts the best-scored units of `layers`.

    `budget` is the share of the units of each chosen layer, or of all of them together. `fractions` are rising shares
    0 … 1 of the selected units, one per tier, the last being 1. Ties go to the lower unit. Raises `ApiMisuse` for a
    budget outside (0, 1], fractions that do not rise to 1, scores that miss a unit or are NaN, and a budget so small
    that two tiers would be the same.
    """
    check_budget(budget, fractions, scope)
    _check(layers, scores)
    ranked = [_ranked([(number, layer)], scores, budget) for number, layer in enumerate(layers)]
    groups = tuple(ranked) if scope == "layer" else (_ranked(list(enumerate(layers)), scores, budget),)
    plan = Plan(tuple(network), tuple(layers), scope, budget, tuple(fractions), groups)
    for tier in range(1, plan.tiers):
        if not plan.increment(tier):
            raise ApiMisuse(
                f"tiers {tier - 1} and {tier} would be the same: {plan.shares().units} units are too few",
                remedy="Raise the budget, or use fewer tiers.",
            )
    return plan


def parse_fractions(text: str) -> tuple[float, ...]:
    """Return the fractions of `0,0.68,0.76,0.84,0.92,1.0`. Raises `ApiMisuse` when they do not rise from >= 0 to 1."""
    try:
        fractions = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ApiMisuse(f"{text!r} is not a list of fractions like 0,0.5,1", remedy=_FRACTIONS) from None
    _check_fractions(fractions)
    return fractions


_FRACTIONS: Final = "Write shares that rise to 1, one per tier, like 0,0.68,0.76,0.84,0.92,1.0."


def _check_fractions(fractions: Sequence[float]) -> None:
    rising = all(low < high for low, high in itertools.pairwise(fractions))
    if not 1 <= len(fractions) <= MAX_TIERS or not rising or not fractions[0] >= 0 or fractions[-1] != 1:
        shown = ", ".join(f"{fraction:g}" for fraction in fractions)
        raise ApiMisuse(f"the tiers' fractions {shown or '(none)'} do not rise from 0 or more to 1", remedy=_FRACTIONS)


def check_budget(budget: float, fractions: Sequence[float], scope: str) -> None:
    """Raise `ApiMisuse` for what no plan can follow, before anything long is done for it."""
    if not 0 < budget <= 1:
        raise ApiMisuse(f"a budget of {budget} is not in (0, 1]", remedy="Give a share of the units, like 0.08.")
    if scope not in ("layer", "global"):
        raise ApiMisuse(f"a budget is per layer or global, not {scope!r}")
    _check_fractions(fractions)


def _check(layers: Sequence[Layer], scores: Mapping[str, object]) -> None:
    if not layers:
        raise ApiMisuse("a plan needs at least one layer")
    for layer in layers:
        found = np.asarray(scores.get(layer.weight, ()))
        if found.shape != (layer.count,) or not bool(np.isfinite(found).all()):
            raise ApiMisuse(f"{layer.weight} does not have one finite score for each of its {layer.count} units")


def _part(fraction: float, size: int) -> int:
    # A fraction like 0.84 is a little below its decimal in binary; floor(0.84 * 25) has to be 21 all the same.
    return min(size, math.floor(fraction * size + 1e-9))


def _ranked(layers: Sequence[tuple[int, Layer]], scores: Scores, budget: float) -> Group:
    number = np.concatenate([np.full(layer.count, index, np.int64) for index, layer in layers])
    unit = np.concatenate([np.arange(layer.count, dtype=np.int64) for _, layer in layers])
    score = np.concatenate([scores[layer.weight].numpy() for _, layer in layers])
    size = min(_part(budget, len(unit)) + 1, len(unit))
    best = np.argsort(-score, kind="stable")[:size]
    return Group(number[best], unit[best])
