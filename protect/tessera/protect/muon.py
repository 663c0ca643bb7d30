"""SGD for most weights, orthogonalised momentum for the inner convolutions: few epochs go twice as far.

Muon is Keller Jordan's (kellerjordan.github.io/posts/muon, 2024): the momentum of a weight matrix is replaced by the
nearest matrix with equal singular values, found by a few steps of a Newton–Schulz iteration; the weights keep a fixed
norm, since normalisation follows them anyway. The code is our own.
"""

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor

from tessera.keystore.errors import ApiMisuse

ITERATIONS: Final = 3
_A, _B, _C = 3.4445, -4.7750, 2.0315
"""The odd polynomial a x + b x³ + c x⁵ that Muon iterates on singular values; it drives them all towards 1."""


class Muon(torch.optim.Optimizer):
    """Takes groups like SGD's with Nesterov momentum; in those with `orthogonal` set, weights are matrices of rows.

    Row i of such a weight is everything that makes output i. Its Frobenius norm is kept at the square root of the
    number of rows, and `weight_decay` is not used.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the weights by their gradients. Raises `ApiMisuse` for a closure, which it has no use for."""
        if closure is not None:
            raise ApiMisuse("Muon takes no closure")
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group)

    def _move(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if not group["orthogonal"]:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum"].mul_(group["momentum"]).add_(gradient)
        ahead = gradient.add(momentum, alpha=group["momentum"])
        if group["orthogonal"]:
            weight.mul_(len(weight) ** 0.5 / weight.norm())
            ahead = orthogonalised(ahead.reshape(len(ahead), -1)).reshape(ahead.shape)
        weight.add_(ahead, alpha=-group["lr"])


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return a matrix of the same row and column space as `matrix` (R, C) with singular values of about 1."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x: Tensor = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = _A * x + (_B * square + _C * square @ square) @ x
    return x if wide else x.T
