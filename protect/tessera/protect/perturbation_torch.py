"""The torch twin of `tessera.transforms.Perturbation`: the same bits for whole batches on any device (rule T-12)."""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from tessera.transforms import Perturbation


class TorchPerturbation:
    """Applies `source` to uint8 tensors (N, C, H, W) on `device`; equal to the NumPy form bit for bit.

    `signs` is its pattern, float32 (C, M, M) of 1 and -1; `weights` its coarse measure, None in the fixed form.
    """

    def __init__(self, source: Perturbation, device: torch.device | str = "cpu") -> None:
        self.step = source.step
        self.signs = torch.tensor(source.signs, dtype=torch.float32, device=device)
        self.weights = None
        if source.weights is not None:
            self.weights = torch.tensor(source.weights, dtype=torch.float32, device=device)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the perturbed copy of `x`."""
        return perturbed(x, self.signs, self.step.epsilon, self.bits(x))

    def bits(self, x: Tensor) -> Tensor | None:
        """Return which blocks get the pattern itself, bool (N, 1, H / M, W / M); None in the fixed form: all."""
        return None if self.weights is None else block_bits(x, self.weights)


def block_bits(x: Tensor, weights: Tensor) -> Tensor:
    """Return the bits of rule T-23 of uint8 `x` (N, C, H, W) under `weights` (C, M, M): bool (N, 1, H / M, W / M).

    Sums are of whole numbers below 2**24, which float32 adds without rounding in any order.
    """
    return F.conv2d(x.to(torch.float32), weights[None], stride=weights.shape[-1]) >= 0


def perturbed(x: Tensor, signs: Tensor, epsilon: int, bits: Tensor | None = None) -> Tensor:
    """Return uint8 `x` (N, C, H, W) with the pattern added, clipped to a byte (rule T-24).

    `signs` is (C, M, M), or (N, C, M, M) for a pattern of its own for each image; `bits`, bool (N, 1, H / M, W / M),
    says where it is added as it is, and where its opposite.
    """
    block, (height, width) = signs.shape[-1], x.shape[2:]
    tiled = signs.repeat(*[1] * (signs.ndim - 2), height // block, width // block) * float(epsilon)
    if bits is not None:
        turned = torch.where(bits, 1.0, -1.0)
        tiled = tiled * turned.repeat_interleave(block, 2).repeat_interleave(block, 3)
    return (x.to(torch.float32) + tiled).clamp_(0, 255).to(torch.uint8)
