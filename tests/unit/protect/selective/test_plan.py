"""Plans: the paper's counts, nested tiers that grow to everything, and refusals."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tessera.keystore.errors import ApiMisuse
from tessera.protect.selective import PAPER_FRACTIONS, Layer, Plan, make_plan, parse_fractions

BIG = Layer("big", "conv", (8, 8, 3, 3))
SMALL = Layer("small", "conv", (2, 8, 3, 3))
NETWORK = (BIG, SMALL, Layer("head", "linear", (10, 32)))


def scores_of(*layers: Layer, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random scores."""
    draws = torch.Generator().manual_seed(seed)
    return {layer.weight: torch.randn(layer.count, generator=draws, dtype=torch.float64) for layer in layers}


def test_the_papers_counts() -> None:
    """2 % of three layers of 4,096 slices are 246 kernels, and permissions decrypt floor(f S) in each layer."""
    layers = tuple(Layer(f"conv{n}", "conv", (64, 64, 3, 3)) for n in range(3))
    plan = make_plan(layers, layers, scores_of(*layers), budget=0.02)
    assert plan.shares().units == 246
    assert plan.shares().weights == 2214
    assert [sum(map(len, plan.units(tier).values())) for tier in range(6)] == [0, 165, 186, 204, 225, 246]


@given(
    budget=st.floats(0.05, 1.0),
    cuts=st.lists(st.integers(0, 99), min_size=0, max_size=5, unique=True),
    scope=st.sampled_from(["layer", "global"]),
)
def test_tiers_are_nested_and_end_with_everything(budget: float, cuts: list[int], scope: str) -> None:
    """E_0 ⊂ E_1 ⊂ … ⊂ E_M; increments are disjoint, add up to the selection and take the best units first."""
    fractions = (*(cut / 100 for cut in sorted(cuts)), 1.0)
    scores = scores_of(BIG, SMALL)
    assume(budget * 64 * min(b - a for a, b in itertools.pairwise((0.0, *fractions)) if b > a) > 1)
    plan = make_plan(NETWORK, (BIG, SMALL), scores, budget=budget, fractions=fractions, scope=scope)  # type: ignore[arg-type]
    seen: set[tuple[str, int]] = set()
    for tier in range(plan.tiers):
        added = {(name, int(unit)) for name, units in plan.increment(tier).items() for unit in units}
        assert not added & seen
        assert added or tier == 0
        seen |= added
        assert seen == {(name, int(unit)) for name, units in plan.units(tier).items() for unit in units}
    assert seen == {(name, int(unit)) for name, units in plan.selected().items() for unit in units}
    check_best_first(plan, scores)


def check_best_first(plan: Plan, scores: dict[str, torch.Tensor]) -> None:
    """Assert that no unit left out of a layer's selection scores better than one taken."""
    for name, units in plan.selected().items():
        taken = np.zeros(len(scores[name]), dtype=bool)
        taken[units] = True
        values = scores[name].numpy()
        assert taken.all() or values[taken].min() >= values[~taken].max()
        assert units.tolist() == sorted(units.tolist())


def test_a_global_budget_ranks_across_layers() -> None:
    """The best units of the network are taken wherever they are; a layer may go without."""
    scores = {"big": torch.zeros(64, dtype=torch.float64), "small": torch.ones(16, dtype=torch.float64)}
    plan = make_plan(NETWORK, (BIG, SMALL), scores, budget=0.15, fractions=(0, 1), scope="global")
    assert {name: len(units) for name, units in plan.selected().items()} == {"small": 13}
    assert plan.shares().of_chosen == 13 / 80


def test_what_remains_encrypted() -> None:
    """Shares of a tier count what its holder still lacks, over both denominators."""
    plan = make_plan(NETWORK, (BIG, SMALL), scores_of(BIG, SMALL), budget=0.5, fractions=(0, 0.5, 1))
    assert plan.shares(0) == plan.shares()
    assert plan.shares(2).weights == 0
    assert plan.shares().of_network == pytest.approx(plan.shares().weights / (720 + 320))
    assert plan.shares().to_json()["share_of_chosen_layers"] == round(plan.shares().weights / 720, 6)
    with pytest.raises(ApiMisuse, match="tiers 0 to 2"):
        plan.units(3)


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_budgets_outside_zero_to_one_are_refused(budget: float) -> None:
    """A budget is above 0 and at most 1."""
    with pytest.raises(ApiMisuse, match="budget"):
        make_plan(NETWORK, (BIG,), scores_of(BIG), budget=budget)


@pytest.mark.parametrize(
    "fractions", [(), (0.0,), (0, 0.5), (0.5, 0.5, 1), (0, 0.9, 0.8, 1), (-0.1, 1), (0, 1.2), (0, float("nan"), 1)]
)
def test_fractions_that_do_not_rise_to_one_are_refused(fractions: tuple[float, ...]) -> None:
    """Each tier decrypts more than the one before, and the last everything."""
    with pytest.raises(ApiMisuse, match="fractions"):
        make_plan(NETWORK, (BIG,), scores_of(BIG), budget=0.5, fractions=fractions)


def test_tiers_that_would_be_the_same_are_refused() -> None:
    """Too few units for so many tiers is an error, not two names for one quality."""
    with pytest.raises(ApiMisuse, match="would be the same"):
        make_plan(NETWORK, (SMALL,), scores_of(SMALL), budget=0.1)


def test_scores_that_do_not_fit_are_refused() -> None:
    """A missing layer, another number of units and NaN scores never make a plan."""
    for scores in ({}, {"big": torch.zeros(3)}, {"big": torch.full((64,), torch.nan)}):
        with pytest.raises(ApiMisuse, match="big"):
            make_plan(NETWORK, (BIG,), scores, budget=0.5)
    with pytest.raises(ApiMisuse):
        make_plan(NETWORK, (), {}, budget=0.5)
    with pytest.raises(ApiMisuse):
        make_plan(NETWORK, (BIG,), scores_of(BIG), budget=0.5, scope="row")  # type: ignore[arg-type]


def test_fractions_as_text() -> None:
    """What `--tiers` takes."""
    assert parse_fractions("0,0.68,0.76,0.84,0.92,1.0") == PAPER_FRACTIONS
    for text in ("", "0,half,1", "0,,1", "0,1,1", "nan,1"):
        with pytest.raises(ApiMisuse):
            parse_fractions(text)
