"""Chen & Wu 2018 (WIFS), the construction that an input-sensitive network is measured beside.

A small network G changes the image, and both are trained together: CE(f(G(x)), y), plus the mean probability that f
gives to the true class of the unchanged image, plus 0.01 times the norm of the change. Constants after the
re-implementation by Kiya's group. Nothing in it is derived from a key: the weights of G are the secret.
"""

from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from tessera.protect.loop import Run
from tessera.protect.models import PixelModel

NORM_WEIGHT: Final = 0.01


class Transformation(nn.Module):
    """G: float pixels of (N, C, H, W) in -1 … 1 to the same, by two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 64, 5, padding=2), nn.ReLU(), nn.Conv2d(64, channels, 1), nn.Tanh()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the changed pixels."""
        changed: Tensor = self.layers(x)
        return changed


def bytes_of(transformation: nn.Module, x: Tensor) -> Tensor:
    """Return uint8 `x` as G changes it, rounded to bytes: what a client would send."""
    with torch.no_grad():
        changed: Tensor = transformation(x.float() / 127.5 - 1.0)
        return ((changed + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


class ChenWuRun(Run):
    """Fine-tunes a model together with a G, which begins at the identity as far as it can."""

    def begin(self, start: dict[str, Tensor]) -> None:
        """Take the weights of the unprotected model, and bring G near the identity first."""
        assert isinstance(self.model, PixelModel)
        self.model.load_state_dict(start)
        torch.manual_seed(self.seed)
        self.transformation = Transformation(self.task.shape[0])
        settle = torch.optim.Adam(self.transformation.parameters(), lr=3e-3)
        draws = torch.Generator().manual_seed(self.seed)
        for _ in range(200):
            x = self.images[torch.randint(len(self.images), (32,), generator=draws)].float() / 127.5 - 1.0
            settle.zero_grad()
            torch.autograd.backward(F.mse_loss(self.transformation(x), x))
            settle.step()
        self._learner = torch.optim.Adam(self.transformation.parameters(), lr=1e-3)

    def _learn(self, chosen: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = self._augmented(chosen, draws)
        half = len(images) // 2
        plain = images[:half].float() / 127.5 - 1.0
        changed = self.transformation(plain)
        logits = self._logits(torch.cat([(changed + 1.0) * 127.5, images[half:].float()]))
        truth = F.softmax(logits[half:], dim=1) * F.one_hot(labels[half:].long(), logits.shape[1])
        loss = self.objective.loss(logits[:half], labels[:half]) + truth.mean()
        loss = loss + NORM_WEIGHT * torch.linalg.vector_norm(changed - plain)
        self._learner.zero_grad()
        self.stepper.step(loss)
        self._learner.step()
        return loss.detach(), self.objective.share_right(logits[:half], labels[:half])
