"""The inputs that an input-sensitive network answers: images perturbed under one of several buyers' keys."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.protect.perturbation_torch import perturbed
from tessera.transforms import Perturbation, TransformError, TransformSpec


class LegalInputs:
    """The perturbations of `keys`, one for each buyer, on a device.

    `keys` are bound keys: buyer's key and copyright record together (rule C-4). `signs` is float32 (B, C, M, M),
    `weights` the same for the form by content, else None. Raises `ApiMisuse` for no keys or one twice, `TransformError`
    for a spec that is no isnn or does not fit `shape`.
    """

    def __init__(
        self,
        spec: TransformSpec,
        keys: Sequence[InputKey],
        shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        step = spec.perturbation
        if step is None:
            raise TransformError(f"{spec} is no isnn transform", remedy="Write it like isnn:8:12:content.")
        if not keys or len({key.reveal() for key in keys}) != len(keys):
            raise ApiMisuse("legal inputs need at least one key, and each once")
        made = [Perturbation.of(spec, key, *shape) for key in keys]
        self.step, self.shape, self.device = step, shape, torch.device(device)
        self.signs = torch.stack([torch.from_numpy(one.signs) for one in made]).to(self.device, torch.float32)
        self.weights: Tensor | None = None
        if step.content:
            weights = [torch.from_numpy(one.weights) for one in made if one.weights is not None]
            self.weights = torch.stack(weights).to(self.device, torch.float32)

    def __len__(self) -> int:
        """Return the number of buyers."""
        return len(self.signs)

    def __call__(self, x: Tensor, buyers: Tensor) -> Tensor:
        """Return uint8 `x` (N, C, H, W), each image perturbed for the buyer that int64 `buyers` (N) names."""
        return perturbed(x, self.signs[buyers], self.step.epsilon, self.bits(x, buyers))

    def bits(self, x: Tensor, buyers: Tensor) -> Tensor | None:
        """Return the turns (T-23) for each image and its buyer, bool (N, 1, H / M, W / M); None in the fixed form."""
        if self.weights is None:
            return None
        totals = F.conv2d(x.to(torch.float32), self.weights, stride=self.step.block)
        return totals.gather(1, buyers.reshape(-1, 1, 1, 1).expand(-1, 1, *totals.shape[2:])) >= 0
