"""What thieves do to a stolen copy before they pass it on: rounding, cutting, noise, averaging, moving channels."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from tessera.protect.selective.measure import with_state

State = dict[str, Tensor]
Thief = Callable[[State], State]

BATCH: Final = 64
SPREAD: Final = 1.0
"""Channels are scaled by up to e to this power, up or down."""


def each(change: Callable[[Tensor], Tensor]) -> Thief:
    """Change every kernel and matrix, and nothing else."""
    return lambda state: {
        name: change(one) if one.is_floating_point() and one.ndim > 1 and one.numel() >= 256 else one
        for name, one in state.items()
    }


def rounded(dtype: torch.dtype) -> Thief:
    """Store in a shorter type, and read back."""
    return each(lambda one: one.to(dtype).to(one.dtype))


def int8(*, by_row: bool) -> Thief:
    """Round to 127 steps up and down of one size for the tensor, or for each output channel."""
    return steps(127, by_row=by_row)


def steps(count: int, *, by_row: bool) -> Thief:
    """Round to so many steps up and down."""

    def change(one: Tensor) -> Tensor:
        rows = one.flatten(1)
        step = (rows.abs().amax(1, keepdim=True) if by_row else rows.abs().max()) / count
        return ((rows / step).round() * step).reshape(one.shape)

    return each(change)


def pruned(share: float) -> Thief:
    """Cut the smallest weights of every tensor."""

    def change(one: Tensor) -> Tensor:
        limit = one.abs().flatten().kthvalue(max(1, int(share * one.numel()))).values
        return torch.where(one.abs() > limit, one, torch.zeros(()))

    return each(change)


def noise(share: float, seed: int) -> Thief:
    """Add Gaussian noise of a share of each tensor's root mean square."""
    draws = torch.Generator().manual_seed(seed)
    return each(lambda one: one + share * one.square().mean().sqrt() * torch.randn(one.shape, generator=draws))


def averaged(copies: Sequence[State]) -> State:
    """Return the mean of several buyers' copies."""
    return {
        name: torch.stack([copy[name] for copy in copies]).mean(0) if one.is_floating_point() else one
        for name, one in copies[0].items()
    }


def tuned(model: nn.Module, images: Tensor, labels: Tensor, *, rate: float, seed: int) -> Thief:
    """Train on for one epoch of SGD with momentum 0.9 and weight decay 5e-4; `model` keeps its own weights."""

    def run(state: State) -> State:
        before = {name: one.clone() for name, one in model.state_dict().items()}
        model.load_state_dict(state)
        model.train()
        optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        for some in torch.split(order, BATCH):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(images[some]), labels[some])
            torch.autograd.backward(loss)
            optimiser.step()
        found = {name: one.detach().clone() for name, one in model.state_dict().items()}
        model.load_state_dict(before)
        model.eval()
        return found

    return run


def moved_resnet(state: State, seed: int) -> State:
    """Move and rescale the inner channels of every residual block, through both its batch norm and its ReLU."""
    draws, found = torch.Generator().manual_seed(seed), {name: one.clone() for name, one in state.items()}
    for name in [name for name in state if name.endswith("conv1.weight") and "layer" in name]:
        block = name.removesuffix("conv1.weight")
        count = len(found[name])
        order, before, after = _order(count, draws), _factors(count, draws), _factors(count, draws)
        found[name] = (found[name] * before[:, None, None, None])[order]
        found[f"{block}bn1.running_mean"] = (found[f"{block}bn1.running_mean"] * before)[order]
        found[f"{block}bn1.running_var"] = (found[f"{block}bn1.running_var"] * before**2)[order]
        for part in ("weight", "bias"):
            found[f"{block}bn1.{part}"] = (found[f"{block}bn1.{part}"] * after)[order]
        found[f"{block}conv2.weight"] = (found[f"{block}conv2.weight"] / after[:, None, None])[:, order]
    return found


def moved_chain(state: State, seed: int) -> State:
    """Move and rescale the hidden channels of a chain of convolutions with ReLU between."""
    draws, found = torch.Generator().manual_seed(seed), {name: one.clone() for name, one in state.items()}
    layers = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
    for this, following in itertools.pairwise(layers):
        count = len(found[f"{this}.weight"])
        order, factors = _order(count, draws), _factors(count, draws)
        found[f"{this}.weight"] = (found[f"{this}.weight"] * factors[:, None, None, None])[order]
        found[f"{this}.bias"] = (found[f"{this}.bias"] * factors)[order]
        found[f"{following}.weight"] = (found[f"{following}.weight"] / factors[:, None, None])[:, order]
    return found


def renamed(state: State) -> State:
    """Give every tensor a name that says nothing, in another order."""
    return {f"w{number}": one for number, one in enumerate(reversed(list(state.values())))}


def computes_alike(model: nn.Module, one: Mapping[str, Tensor], other: Mapping[str, Tensor], inputs: Tensor) -> float:
    """Return the largest difference of outputs, in the largest output: 0 for what only moved channels."""
    first, second = (with_state(model, state)(inputs) for state in (one, other))
    return float((first - second).abs().max() / first.abs().max())


def _order(count: int, draws: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=draws)


def _factors(count: int, draws: torch.Generator) -> Tensor:
    return torch.exp((2 * torch.rand(count, generator=draws) - 1) * SPREAD)
