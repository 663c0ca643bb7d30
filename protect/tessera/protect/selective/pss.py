"""Probabilistic selection (PSS): learn for every unit how much the model needs it.

Tian, Zhou, Duan, CVPR 2021 (arXiv 2105.12344) with the constants of the released code. For one layer at a time every
gate starts at q = 1 (z = 0.777) while all others are open; SGD on `loss + price * expected open gates` lets the gates
of needed units open and the price close the others; the learned q is the unit's score.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.protect.selective.gates import HIGHEST, LOWEST, HardConcrete, call_gated, eval_mode, frozen_state
from tessera.protect.selective.objective import Objective
from tessera.protect.selective.units import Layer, check_weights

Scores = Mapping[str, Tensor]
"""Weight name to float64 (count,): the larger, the earlier a unit is selected."""

Progress = Callable[[int, int], None]
"""(steps done, steps in all)."""

START: Final = 1.0
START_SPREAD: Final = 1e-5


@dataclass(frozen=True)
class Schedule:
    """How long and how fast scores are learned; `milestones` are shares of `steps` at which the rate falls to a fifth.

    The batch size belongs to the objective (the paper: 150 images).
    """

    steps: int
    learning_rate: float = 0.1
    momentum: float = 0.9
    price: float = 1e-4
    milestones: tuple[float, ...] = (60 / 130, 120 / 130)
    decay: float = 0.2

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0 or not 0 <= self.momentum < 1 or self.price < 0:
            raise ApiMisuse("a schedule has at least one step, a rate above 0, momentum below 1 and no negative price")

    def rate(self, step: int) -> float:
        """Return the learning rate of step 0 … steps - 1."""
        passed = sum(step >= share * self.steps for share in self.milestones)
        return float(self.learning_rate * self.decay**passed)


PAPER: Final = Schedule(steps=130 * 200)
"""130 epochs of 30,000 images in batches of 150, per layer."""
SHORT: Final = Schedule(steps=300)
"""What our measurements use; `rank_agreement` says how near its order comes to a longer one's."""


def learn_scores(
    objective: Objective,
    layers: Sequence[Layer],
    schedule: Schedule = SHORT,
    *,
    seed: int = 0,
    sampled: bool = False,
    together: bool = False,
    progress: Progress | None = None,
) -> Scores:
    """Return the learned q of every unit of `layers`, the same for the same seed, machine and thread count.

    `sampled` trains on draws of the gates instead of their mode; `together` learns all layers in one run instead of one
    run each, which is what a ranking across layers needs. The model runs in eval mode and is left as it was. Raises
    `Malformed` for weights that are not finite and when the loss stops being so.
    """
    state = frozen_state(objective.model)
    check_weights(state, layers)
    rounds = [tuple(layers)] if together else [(layer,) for layer in layers]
    learned: dict[str, Tensor] = {}
    with eval_mode(objective.model):
        for number, group in enumerate(rounds):

            def report(step: int, before: int = number * schedule.steps) -> None:
                if progress is not None:
                    progress(before + step, len(rounds) * schedule.steps)

            learned |= _learn(objective, state, group, schedule, seed, sampled, report)
    return learned


def _learn(
    objective: Objective,
    state: Mapping[str, Tensor],
    layers: Sequence[Layer],
    schedule: Schedule,
    seed: int,
    sampled: bool,
    report: Callable[[int], None],
) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    gate = HardConcrete()
    scores = {layer: _start(layer, state[layer.weight].device, draws) for layer in layers}
    descent = torch.optim.SGD(
        list(scores.values()), lr=schedule.learning_rate, momentum=schedule.momentum, nesterov=schedule.momentum > 0
    )
    for step in range(schedule.steps):
        descent.param_groups[0]["lr"] = schedule.rate(step)
        inputs, targets = objective.batch(draws)
        gates = {layer: gate.sampled(q, draws) if sampled else gate.deterministic(q) for layer, q in scores.items()}
        price = sum((gate.expected_open(q) for q in scores.values()), torch.zeros(()))
        loss = objective.loss(call_gated(objective.model, state, gates, inputs), targets) + schedule.price * price
        if not bool(torch.isfinite(loss)):
            raise Malformed("the loss is not finite while scores are learned", remedy="Lower the learning rate.")
        descent.zero_grad()
        torch.autograd.backward(loss)
        descent.step()
        with torch.no_grad():
            for q in scores.values():
                q.clamp_(LOWEST, HIGHEST)
        report(step + 1)
    return {layer.weight: q.detach().double().cpu() for layer, q in scores.items()}


def _start(layer: Layer, device: torch.device, draws: torch.Generator) -> Tensor:
    spread = torch.randn(layer.count, generator=draws) * START_SPREAD
    return (START + spread).to(device).requires_grad_()


@dataclass(frozen=True)
class Agreement:
    """How alike two orders of the same units are."""

    spearman: float
    """Rank correlation, -1 … 1; ties share their mean rank."""
    overlap: Mapping[float, float]
    """Share of units to take, to the share of them that both orders take."""

    def to_json(self) -> dict[str, float]:
        """Return the object kept in reports."""
        tops = {f"top_{100 * share:g}_percent_overlap": round(value, 4) for share, value in self.overlap.items()}
        return {"spearman": round(self.spearman, 4), **tops}


def rank_agreement(first: Scores, second: Scores, tops: Sequence[float] = (0.02, 0.08, 0.2)) -> Agreement:
    """Return how well two scores agree, as means over layers. Raises `ApiMisuse` when they score different units."""
    if {name: len(value) for name, value in first.items()} != {name: len(value) for name, value in second.items()}:
        raise ApiMisuse("the two scores are not of the same units")
    pairs = [(first[name].numpy(), second[name].numpy()) for name in first]
    overlap = {share: float(np.mean([_overlap(a, b, share) for a, b in pairs])) for share in tops}
    return Agreement(float(np.mean([_spearman(a, b) for a, b in pairs])), overlap)


def _overlap(first: np.ndarray, second: np.ndarray, share: float) -> float:
    size = max(1, int(share * len(first)))
    tops = [set(np.argsort(-scores, kind="stable")[:size].tolist()) for scores in (first, second)]
    return len(tops[0] & tops[1]) / size


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    a, b = _ranks(first), _ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of every value; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place], dtype=np.float64)
