"""Finding the encrypted units of a model without a key: every test of `suspicion`, layer by layer and for all."""

from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor

from tessera.protect.selective.plan import Plan, Units
from tessera.protect.selective.suspicion import TESTS, auc
from tessera.protect.selective.units import Layer


def localise(public: Mapping[str, Tensor], plan: Plan) -> dict[str, dict[str, float]]:
    """Return weight name to test to AUC, for every chosen layer that has encrypted and plain units.

    The attacker is given the layers that are locked, the tests' signs, and no key. Tests that do not apply are left
    out.
    """
    return localise_units(public, plan.layers, plan.selected())


def localise_units(
    weights: Mapping[str, Tensor],
    layers: Iterable[Layer],
    encrypted: Mapping[str, Units],
    known: Mapping[str, Units] | None = None,
) -> dict[str, dict[str, float]]:
    """Return the same for encrypted units by weight name; `known` ones are true to the attacker's knowledge, and are
    not compared, though the tests see them.
    """
    found: dict[str, dict[str, float]] = {}
    for layer in layers:
        hidden, compared = np.zeros(layer.count, dtype=bool), np.ones(layer.count, dtype=bool)
        hidden[encrypted.get(layer.weight, [])] = True
        compared[(known or {}).get(layer.weight, [])] = False
        if not hidden.any() or hidden[compared].all():
            continue
        rows = layer.rows(weights[layer.weight].detach().cpu().double()).numpy()
        scores = {name: test(layer, rows) for name, test in TESTS.items()}
        found[layer.weight] = {
            name: auc(score[compared], hidden[compared]) for name, score in scores.items() if score is not None
        }
    return found


def mean_auc(found: Mapping[str, Mapping[str, float]], plan: Plan) -> dict[str, float]:
    """Return each test's AUC over the layers of `localise` it applies to, weighted by how many units each locks."""
    return weighted_auc(found, {name: len(units) for name, units in plan.selected().items()})


def weighted_auc(found: Mapping[str, Mapping[str, float]], locked: Mapping[str, int]) -> dict[str, float]:
    """Return the same where each layer of `found` locks `locked` units."""
    means: dict[str, float] = {}
    for test in TESTS:
        layers = [name for name in found if test in found[name]]
        if layers:
            total = sum(found[name][test] * locked[name] for name in layers)
            means[test] = total / sum(locked[name] for name in layers)
    return means
