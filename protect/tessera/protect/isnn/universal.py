"""An adversary that trains beside the model: fixed perturbations that try to unlock it, and are answered as illegal.

Whoever steals a model will optimise one perturbation for all images. For the form by content no such perturbation is
legal, so training may show the model the best ones that exist at the time: a few are kept, and each time the model
moves away from answering them they move, by the sign of their gradient, to where it answers again.
"""

from typing import Final

import torch
from torch import Tensor

COUNT: Final = 4
STEP: Final = 0.15
"""Of epsilon, for each update."""
WIDEST: Final = 2.0
"""Largest absolute value of the widest perturbation, in epsilons; the narrowest has one."""
LIFE: Final = 150
"""Updates after which a perturbation begins again from chance."""


class UniversalAdversary:
    """`COUNT` perturbations of (C, H, W), float32; half of them repeat a block of `block` pixels."""

    def __init__(self, shape: tuple[int, int, int], block: int, epsilon: int, draws: torch.Generator) -> None:
        self._block, self._epsilon = block, float(epsilon)
        channels = shape[0]
        self._tiles = torch.zeros(COUNT // 2, channels, block, block)
        self._wholes = torch.zeros(COUNT - COUNT // 2, *shape)
        self._reach = torch.linspace(1.0, WIDEST, COUNT) * self._epsilon
        self._age = torch.randint(0, LIFE, (COUNT,), generator=draws)
        self._shape = shape
        for number in range(COUNT):
            self._begin(number, draws)

    def added(self, x: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return float32 `x` + perturbations, clipped to 0 … 255, and the perturbations, which need gradients.

        `x` is uint8 (N, C, H, W); each image gets one by chance.
        """
        _, height, width = self._shape
        tiled = self._tiles.repeat(1, 1, height // self._block, width // self._block)
        kept = torch.cat([tiled, self._wholes]).to(x.device).requires_grad_()
        chosen = torch.randint(0, COUNT, (len(x),), generator=draws).to(x.device)
        return (x.to(torch.float32) + kept[chosen]).clamp(0, 255), kept

    def learn(self, kept: Tensor, draws: torch.Generator) -> None:
        """Move up the gradient of the model's loss on what `added` gave: to where it answers after all."""
        if kept.grad is None:
            return
        gradient = kept.grad.cpu()
        channels, height, width = self._shape
        block = self._block
        tiles = gradient[: len(self._tiles)].reshape(-1, channels, height // block, block, width // block, block)
        self._tiles += STEP * self._epsilon * tiles.sum((2, 4)).sign()
        self._wholes += STEP * self._epsilon * gradient[len(self._tiles) :].sign()
        for number in range(COUNT):
            part = self._part(number)
            part.clamp_(-float(self._reach[number]), float(self._reach[number]))
            self._age[number] += 1
            if self._age[number] >= LIFE:
                self._begin(number, draws)
                self._age[number] = 0

    def _part(self, number: int) -> Tensor:
        tiles = len(self._tiles)
        return self._tiles[number] if number < tiles else self._wholes[number - tiles]

    def _begin(self, number: int, draws: torch.Generator) -> None:
        part = self._part(number)
        part.copy_((torch.rand(part.shape, generator=draws) * 2 - 1) * self._epsilon)
