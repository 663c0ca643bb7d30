"""Scores: gates as the paper defines them, learning that repeats and finds what matters, and that changes no model."""

import math

import pytest
import torch
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.protect.selective import (
    SCORES,
    HardConcrete,
    Layer,
    Objective,
    Schedule,
    baseline_scores,
    call_gated,
    cross_entropy,
    fast_scores,
    gated,
    labelled,
    layers_of,
    learn_scores,
    noisy_patches,
    rank_agreement,
    score_by,
)
from tessera.protect.selective.gates import frozen_state


class Picky(nn.Module):
    """Float (N, 4, 3, 3) to two logits that depend on input channel 1 alone: the other slices do nothing useful."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 3, bias=False)
        with torch.no_grad():
            self.conv.weight.fill_(0.01)
            self.conv.weight[0, 1], self.conv.weight[1, 1] = 1.0, -1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 2)."""
        return torch.flatten(self.conv(x), 1)


@pytest.fixture
def picky() -> Objective:
    """A model whose important units are 1 and 5, with data that it answers right."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(64, 4, 3, 3, generator=draws)
    labels = (images[:, 1].sum((1, 2)) < 0).long()
    return Objective(Picky(), labelled(images, labels, 16), cross_entropy)


def test_the_gate_is_the_papers() -> None:
    """Deterministic gate, start value, price and limits are those of the paper's code."""
    gate = HardConcrete()
    assert float(gate.deterministic(torch.tensor(1.0))) == pytest.approx(0.777, abs=5e-4)
    assert gate.deterministic(torch.tensor([-100.0, 100.0])).tolist() == [0, 1]
    q = torch.tensor([0.3, -2.0], dtype=torch.float64)
    assert float(gate.expected_open(q)) == pytest.approx(float(torch.sigmoid(q + 1.5986).sum()), abs=1e-4)


def test_sampled_gates_open_as_often_as_expected() -> None:
    """The share of draws above zero is the expected one; the same generator gives the same draws."""
    gate = HardConcrete()
    q = torch.full((20_000,), -1.0)
    draws = gate.sampled(q, torch.Generator().manual_seed(1))
    assert float((draws > 0).double().mean()) == pytest.approx(float(gate.expected_open(q)) / len(q), abs=0.015)
    assert torch.equal(draws, gate.sampled(q, torch.Generator().manual_seed(1)))
    assert float(draws.min()) == 0
    assert float(draws.max()) == 1


def test_a_gate_multiplies_its_slice() -> None:
    """Gate n scales unit n alone; open gates leave the output as it is."""
    layer = Layer("conv.weight", "conv", (2, 4, 3, 3))
    weight, gates = torch.randn(2, 4, 3, 3), torch.ones(8)
    gates[6] = 0.5
    changed = gated(layer, weight, gates)
    assert torch.equal(changed[1, 2], weight[1, 2] * 0.5)
    changed[1, 2] = weight[1, 2]
    assert torch.equal(changed, weight)
    model, inputs = Picky(), torch.randn(2, 4, 3, 3)
    state = frozen_state(model)
    assert torch.equal(call_gated(model, state, {layers_of(model)[0]: torch.ones(8)}, inputs), model(inputs))


@pytest.mark.parametrize("kind", ["pss", "fisher", "gradient", "descend"])
def test_scores_find_the_units_that_matter(picky: Objective, kind: str) -> None:
    """The two slices that carry the answer come first."""
    found = score_by(kind, picky, layers_of(picky.model), schedule=Schedule(steps=40), batches=8)  # type: ignore[arg-type]
    assert set(found["conv.weight"].argsort(descending=True)[:2].tolist()) == {1, 5}


@pytest.mark.parametrize("kind", SCORES)
def test_every_score_repeats_and_leaves_the_model_alone(kind: str) -> None:
    """Same seed, same bits; weights, buffers, gradients and training flags are as before."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 2))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = torch.randn(20, 1, 4, 4), torch.randint(2, (20,))
    goal = Objective(model, labelled(images, labels, 5), cross_entropy)

    def score(seed: int) -> dict[str, Tensor]:
        schedule = Schedule(steps=3)
        return dict(score_by(kind, goal, layers_of(model), schedule=schedule, batches=2, seed=seed))  # type: ignore[arg-type]

    first, torch_state = score(4), torch.get_rng_state()
    again = score(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert [len(value) for value in first.values()] == [3, 2]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(value.grad is None for value in model.parameters())


def test_learning_together_and_sampled(picky: Objective) -> None:
    """Sampled gates and all layers at once give scores in the paper's range; progress counts every step."""
    steps: list[tuple[int, int]] = []
    found = learn_scores(
        picky,
        layers_of(picky.model),
        Schedule(steps=5, learning_rate=1e4),
        sampled=True,
        together=True,
        progress=lambda done, total: steps.append((done, total)),
    )["conv.weight"]
    assert steps == [(step, 5) for step in range(1, 6)]
    assert float(found.abs().max()) <= math.log(100) + 1e-6


def test_the_schedule_is_the_papers() -> None:
    """130 epochs with a fifth of the rate from epoch 60 and 120."""
    schedule = Schedule(steps=130)
    assert [schedule.rate(step) for step in (0, 59, 60, 119, 120)] == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004])
    with pytest.raises(ApiMisuse):
        Schedule(steps=0)


def test_nan_stops_scoring(picky: Objective) -> None:
    """A model with NaN, or data that make the loss NaN, is refused instead of ranked."""
    broken = Picky()
    with torch.no_grad():
        broken.conv.weight[0, 0, 0, 0] = torch.nan
    for score in (learn_scores, fast_scores):
        with pytest.raises(Malformed, match=r"conv\.weight holds NaN"):
            score(Objective(broken, picky.batch, picky.loss), layers_of(broken))
    poisoned = labelled(torch.full((4, 4, 3, 3), torch.nan), torch.zeros(4, dtype=torch.int64), 4)
    for score in (learn_scores, fast_scores):
        with pytest.raises(Malformed, match="not finite"):
            score(Objective(picky.model, poisoned, picky.loss), layers_of(picky.model))


def test_the_baselines_are_the_papers() -> None:
    """Descending and ascending |mean|, and nearness to the average |mean|; random depends on its seed alone."""
    layer = Layer("w", "conv", (1, 4, 1, 2))
    state = {"w": torch.tensor([[1.0, 1], [-8, -8], [2, -2], [3, 3]]).reshape(1, 4, 1, 2)}

    def order(kind: str) -> list[int]:
        found: list[int] = baseline_scores(state, [layer], kind)["w"].argsort(descending=True).tolist()  # type: ignore[arg-type]
        return found

    assert order("descend") == [1, 3, 0, 2]
    assert order("ascend") == [2, 0, 3, 1]
    assert order("mean")[0] == 3
    assert order("random") == order("random")
    with pytest.raises(ApiMisuse, match="no baseline"):
        baseline_scores(state, [layer], "loudest")  # type: ignore[arg-type]


def test_rank_agreement() -> None:
    """Equal orders agree fully, reversed ones not at all, ties share their rank; overlaps count the top."""
    up = {"w": torch.arange(100.0, dtype=torch.float64)}
    down = {"w": -up["w"]}
    same = rank_agreement(up, {"w": up["w"] ** 3})
    assert same.spearman == pytest.approx(1)
    assert set(same.overlap.values()) == {1.0}
    assert rank_agreement(up, down).spearman == pytest.approx(-1)
    assert rank_agreement(up, down).overlap == {0.02: 0, 0.08: 0, 0.2: 0}
    halves = {"w": (up["w"] >= 50).double()}
    assert rank_agreement(up, halves).spearman == pytest.approx(math.sqrt(3) / 2, abs=1e-3)
    with pytest.raises(ApiMisuse):
        rank_agreement(up, {"w": torch.zeros(3)})


def test_losses_and_batches() -> None:
    """Labels that are no class are ignored; patches come with noise of the asked strength; misfits are refused."""
    logits = torch.randn(2, 3, 4, 4)
    labels = torch.randint(3, (2, 4, 4), dtype=torch.uint8)
    marked = labels.clone()
    marked[0] = 255
    assert float(cross_entropy(logits, marked)) == pytest.approx(float(cross_entropy(logits[1:], labels[1:])))
    noisy, clean = noisy_patches([torch.rand(1, 20, 30)], 25, 16, 64)(torch.Generator().manual_seed(0))
    assert noisy.shape == clean.shape == (64, 1, 16, 16)
    assert float((noisy - clean).std()) == pytest.approx(25 / 255, rel=0.02)
    with pytest.raises(ApiMisuse):
        noisy_patches([torch.rand(1, 20, 30)], 25, 32, 4)
    with pytest.raises(ApiMisuse):
        labelled(torch.zeros(3, 1), torch.zeros(2), 1)
