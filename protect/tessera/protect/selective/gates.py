"""Hard-concrete gates on units (Louizos et al., arXiv 1712.01312, with the constants of PSS).

A gate z in 0 … 1 multiplies all weights of its unit. Its parameter q is a log-odds: `closed` at q = ln 0.01, `open` at
q = ln 100. Gates are laid over a model for one call (`torch.func.functional_call`); the model itself never changes.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, fx, nn

from tessera.protect.selective.units import Layer

LOWEST: Final = math.log(0.01)
HIGHEST: Final = math.log(100)
"""PSS keeps every q between these two."""


@dataclass(frozen=True)
class HardConcrete:
    """The distribution of a gate: temperature `beta`, stretched to `gamma` … `zeta`, clipped to 0 … 1."""

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1
    epsilon: float = 1e-6

    def deterministic(self, q: Tensor) -> Tensor:
        """Return clip(sigmoid(q) (zeta - gamma) + gamma, 0, 1): the gate that PSS's released code trains with."""
        return self._stretched(torch.sigmoid(q))

    def sampled(self, q: Tensor, draws: torch.Generator) -> Tensor:
        """Return one draw of every gate; differentiable in `q`. `draws` is a CPU generator."""
        u = torch.rand(q.shape, generator=draws, dtype=torch.float64).clamp(self.epsilon, 1 - self.epsilon)
        noise = torch.logit(u).to(q)
        return self._stretched(torch.sigmoid((noise + q) / self.beta))

    def expected_open(self, q: Tensor) -> Tensor:
        """Return the sum over gates of P(z > 0), the price of open gates: sigmoid(q - beta ln(-gamma / zeta))."""
        shut = torch.sigmoid(self.beta * math.log(-self.gamma / self.zeta) - q)
        return (1 - shut.clamp(self.epsilon, 1 - self.epsilon)).sum()

    def _stretched(self, s: Tensor) -> Tensor:
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)


def gated(layer: Layer, weight: Tensor, gates: Tensor) -> Tensor:
    """Return `weight` with unit n multiplied by `gates[n]`, same shape and dtype."""
    return (layer.rows(weight) * gates.to(weight.dtype)[:, None]).reshape(layer.shape)


def frozen_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's parameters and buffers by name, detached: gradients then flow to gates alone."""
    return {name: value.detach() for name, value in model.state_dict(keep_vars=True).items()}


def call_gated(model: nn.Module, state: Mapping[str, Tensor], layers: Mapping[Layer, Tensor], inputs: Tensor) -> Tensor:
    """Return `model(inputs)` with the weights of `state`, those of each layer multiplied by its gates."""
    weights = {layer.weight: gated(layer, state[layer.weight], gates) for layer, gates in layers.items()}
    result: Tensor = torch.func.functional_call(model, {**state, **weights}, (inputs,), strict=False)
    return result


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode for the block and back as it was; exported programs are in it already."""
    if isinstance(model, fx.GraphModule):
        yield
        return
    before = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in before.items():
            module.training = training
