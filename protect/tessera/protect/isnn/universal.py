"""An adversary that trains beside the model: fixed perturbations that try to unlock it, and are answered as illegal.

Whoever steals a model will optimise one perturbation for all images. For the form by content no such perturbation is
legal, so training may show the model the best ones that exist at the time (universal adversarial training: Shafahi et
al., AAAI 2020, arXiv 1811.11304). A few are kept. After each step of the model they move, as a thief's would: towards
the *right* answers of the model as it will be handed out, in evaluation mode. Moving merely towards confident answers
can end at perturbations that shout one class at every image, which open nothing.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

COUNT: Final = 4
"""The first half repeats a block, the second half spans the image."""
STEP: Final = 0.1
"""Of epsilon, for each update."""
MOMENTUM: Final = 0.9
"""Few images a step make a noisy gradient: its sign alone would wander."""
REACHES: Final = (1.0, 2.0, 2.0, 2.0)
"""Largest absolute value of each perturbation, in epsilons: a thief need not keep to the true strength."""
STARTS: Final = (1.0, 0.05, 1.0, 0.05)
"""Largest absolute value of each perturbation when it begins, in epsilons: thieves often begin near nothing."""
LIFE: Final = 400
"""Updates after which a perturbation begins again from chance."""

Loss = Callable[[Tensor, Tensor], Tensor]


class UniversalAdversary:
    """`COUNT` perturbations of (C, H, W), float32; half of them repeat a block of `block` pixels."""

    def __init__(self, shape: tuple[int, int, int], block: int, epsilon: int, draws: torch.Generator) -> None:
        self._block, self._epsilon = block, float(epsilon)
        self._shape = shape
        tile = (shape[0], block, block)
        self._parts = [torch.zeros(tile if number < COUNT // 2 else shape) for number in range(COUNT)]
        self._drifts = [torch.zeros_like(part) for part in self._parts]
        self._age = torch.randint(0, LIFE, (COUNT,), generator=draws)
        for number in range(COUNT):
            self._begin(number, draws)

    def state(self) -> dict[str, Any]:
        """Return a copy of what changes as it learns, for `restore`."""
        return {
            "parts": [part.clone() for part in self._parts],
            "drifts": [drift.clone() for drift in self._drifts],
            "age": self._age.clone(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what `state` gave. Raises `KeyError`, `RuntimeError`, `TypeError` or `ValueError` for another."""
        for mine, theirs in ((self._parts, saved["parts"]), (self._drifts, saved["drifts"])):
            for one, other in zip(mine, theirs, strict=True):
                one.copy_(other)
        self._age.copy_(saved["age"])

    def added(self, x: Tensor, draws: torch.Generator) -> Tensor:
        """Return uint8 `x` (N, C, H, W) plus perturbations, rounded and clipped: each image gets one by chance."""
        whole = torch.stack([self._whole(part) for part in self._parts]).to(x.device)
        return (x.to(torch.float32) + whole[self._choice(x, draws)]).round().clamp(0, 255).to(torch.uint8)

    def learn(self, model: nn.Module, loss: Loss, x: Tensor, labels: Tensor, draws: torch.Generator) -> None:
        """Move towards where `model` answers uint8 `x` (N, C, H, W) with `labels`, by `loss`; no weight changes."""
        moved = [part.to(x.device).clone().requires_grad_() for part in self._parts]
        whole = torch.stack([self._whole(part) for part in moved])
        training = model.training
        model.eval()
        try:
            logits = model((x.to(torch.float32) + whole[self._choice(x, draws)]).clamp(0, 255))
            gradients = torch.autograd.grad(loss(logits, labels), moved)
        finally:
            model.train(training)
        for number, gradient in enumerate(gradients):
            self._move(number, gradient.cpu(), draws)

    def _move(self, number: int, gradient: Tensor, draws: torch.Generator) -> None:
        part, drift = self._parts[number], self._drifts[number]
        drift.mul_(MOMENTUM).add_(gradient / gradient.abs().mean().clamp_min(1e-12))
        reach = REACHES[number] * self._epsilon
        part.sub_(STEP * self._epsilon * drift.sign()).clamp_(-reach, reach)
        self._age[number] += 1
        if self._age[number] >= LIFE:
            self._begin(number, draws)
            self._age[number] = 0

    def _begin(self, number: int, draws: torch.Generator) -> None:
        part = self._parts[number]
        part.copy_((torch.rand(part.shape, generator=draws) * 2 - 1) * STARTS[number] * self._epsilon)
        self._drifts[number].zero_()

    def _whole(self, part: Tensor) -> Tensor:
        _, height, width = self._shape
        return part.repeat(1, height // part.shape[1], width // part.shape[2])

    @staticmethod
    def _choice(x: Tensor, draws: torch.Generator) -> Tensor:
        return torch.randint(0, COUNT, (len(x),), generator=draws).to(x.device)
