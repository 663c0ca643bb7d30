"""What a state is worth: quality with some weights exchanged, without changing the model."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from tessera.protect.selective.gates import eval_mode

Apply = Callable[[Tensor], Tensor]
"""From inputs to the outputs of a model with a certain state."""


def with_state(model: nn.Module, state: Mapping[str, Tensor], *, most: int | None = None) -> Apply:
    """Return the function that runs `model` in eval mode, without gradients, on the weights of `state`.

    `most` is the largest batch that the model takes; larger ones are cut, as exported programs want it.
    """
    weights = dict(state)

    def run(inputs: Tensor) -> Tensor:
        with torch.no_grad(), eval_mode(model):
            parts = [inputs] if most is None else torch.split(inputs, most)
            return torch.cat([torch.func.functional_call(model, weights, (part,), strict=False) for part in parts])

    return run


def share_right(run: Apply, images: Tensor, labels: Tensor, *, batch: int = 500) -> float:
    """Return the share of `labels` (N,) that the largest output of `run` names, 0 … 1."""
    right = 0
    for start in range(0, len(images), batch):
        answers = run(images[start : start + batch]).argmax(dim=1)
        right += int((answers == labels[start : start + batch]).sum())
    return right / len(images)


def psnr_db(restored: Tensor, clean: Tensor) -> float:
    """Return the peak signal-to-noise ratio of one image with pixels 0 … 1, without clipping, in decibels."""
    return -10 * float(torch.log10(((restored - clean) ** 2).double().mean()))


def as_module(run: Apply) -> nn.Module:
    """Return `run` in the clothes of a module, for what wants to put it in eval mode."""
    return _Runner(run)


class _Runner(nn.Module):
    def __init__(self, run: Apply) -> None:
        super().__init__()
        self._run = run

    def forward(self, inputs: Tensor) -> Tensor:
        return self._run(inputs)
