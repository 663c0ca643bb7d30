"""One-shot scores: what a vendor can run in seconds instead of learning gates for epochs.

All come from gradients of the loss with respect to the gates, over a few small batches, for all layers in one backward
pass per batch (for a gate at 1, the gradient is the sum over its unit of weight times weight gradient):

    gradient    mean |g| with open gates: first-order effect of closing a unit
    fisher      mean g^2 with open gates: diagonal empirical Fisher information of the gate
    opening     mean -g with all gates of *one layer at a time* where PSS starts (z = 0.777): how much the loss falls
                when the gate opens, which is the direction of PSS's first step
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.protect.selective.gates import HardConcrete, call_gated, eval_mode, frozen_state
from tessera.protect.selective.objective import Objective
from tessera.protect.selective.pss import START, Progress, Scores
from tessera.protect.selective.units import Layer, check_weights

FastKind = Literal["gradient", "fisher", "opening"]

_TERMS: Final[Mapping[FastKind, Callable[[Tensor], Tensor]]] = {
    "gradient": torch.abs,
    "fisher": torch.square,
    "opening": torch.neg,
}


def fast_scores(
    objective: Objective,
    layers: Sequence[Layer],
    kind: FastKind = "fisher",
    *,
    batches: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """Return the one-shot score `kind` of every unit; the model runs in eval mode and is left as it was.

    Small batches (16 to 32 samples) keep the squares and absolute values near those of single samples. Raises
    `Malformed` for weights or gradients that are not finite.
    """
    if kind not in _TERMS or batches < 1:
        raise ApiMisuse(f"one-shot scores are {', '.join(_TERMS)}, over at least one batch")
    state = frozen_state(objective.model)
    check_weights(state, layers)
    groups = [(layer,) for layer in layers] if kind == "opening" else [tuple(layers)]
    z = float(HardConcrete().deterministic(torch.tensor(START))) if kind == "opening" else 1.0
    found: dict[str, Tensor] = {}
    with eval_mode(objective.model):
        for number, group in enumerate(groups):
            draws = torch.Generator().manual_seed(seed)
            total = {layer: torch.zeros(layer.count, dtype=torch.float64) for layer in group}
            for batch in range(batches):
                for layer, gradient in _gradients(objective, state, group, z, draws).items():
                    total[layer] += _TERMS[kind](gradient) / batches
                if progress is not None:
                    progress(number * batches + batch + 1, len(groups) * batches)
            found |= {layer.weight: score for layer, score in total.items()}
    if not all(bool(torch.isfinite(score).all()) for score in found.values()):
        raise Malformed("the gradients are not finite", remedy="Check the model and its data for NaN.")
    return found


def _gradients(
    objective: Objective, state: Mapping[str, Tensor], layers: Sequence[Layer], z: float, draws: torch.Generator
) -> dict[Layer, Tensor]:
    inputs, targets = objective.batch(draws)
    gates = {
        layer: torch.full((layer.count,), z, device=state[layer.weight].device, requires_grad=True) for layer in layers
    }
    loss = objective.loss(call_gated(objective.model, state, gates, inputs), targets)
    gradients = torch.autograd.grad(loss, list(gates.values()))
    return {layer: value.double().cpu() for layer, value in zip(layers, gradients, strict=True)}
