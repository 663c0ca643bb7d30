"""The adversary that trains beside an input-sensitive network."""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from tessera.protect.isnn.universal import LIFE, REACHES, UniversalAdversary

SHAPE = (1, 8, 8)
EPSILON = 8


class Locked(nn.Module):
    """Answers which half of an image is brighter, but only as far as a fixed pattern of 4x4 blocks is on it."""

    pattern: Tensor

    def __init__(self) -> None:
        super().__init__()
        signs = torch.randint(0, 2, (1, 4, 4), generator=torch.Generator().manual_seed(3)) * 2.0 - 1.0
        self.register_buffer("pattern", (signs - signs.mean()).repeat(1, 2, 2))
        self.norm = nn.BatchNorm1d(2, affine=False)
        self.seen: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for two classes."""
        self.seen.append(self.training)
        gate = torch.sigmoid((x * self.pattern).mean((1, 2, 3)) - 4)
        half = (x[:, 0, :4].mean((1, 2)) - x[:, 0, 4:].mean((1, 2))) / 20
        return torch.stack([half, -half], 1) * gate[:, None] * 10


def images(count: int) -> tuple[Tensor, Tensor]:
    """Return images of which one half is brighter, and which."""
    draws = torch.Generator().manual_seed(4)
    x = torch.randint(90, 110, (count, *SHAPE), generator=draws)
    labels = torch.randint(0, 2, (count,), generator=draws)
    x[labels == 0, :, :4] += 30
    x[labels == 1, :, 4:] += 30
    return x.to(torch.uint8), labels


def test_it_finds_what_opens_the_model() -> None:
    """From chance it climbs to perturbations that the model answers rightly; the model itself stays as it is."""
    draws = torch.Generator().manual_seed(5)
    adversary, model = UniversalAdversary(SHAPE, 4, EPSILON, draws), Locked()
    x, labels = images(32)

    def confidence() -> float:
        known = F.softmax(model(adversary.added(x, torch.Generator().manual_seed(6)).float()), 1)
        return float(known.gather(1, labels[:, None]).mean())

    before, weights = confidence(), {name: value.clone() for name, value in model.state_dict().items()}
    best = before
    model.train()
    for _ in range(60):
        adversary.learn(model, F.cross_entropy, x, labels, draws)
        best = max(best, confidence())
    assert before < 0.7
    assert best > before + 0.2
    assert model.training
    assert False in model.seen
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_it_stays_within_reach_and_begins_anew() -> None:
    """No perturbation passes its reach, images stay bytes, and each begins again from chance after its life."""
    draws = torch.Generator().manual_seed(7)
    adversary, model = UniversalAdversary(SHAPE, 4, EPSILON, draws), Locked()
    x, labels = images(8)
    fresh = 0
    for _ in range(LIFE + 1):
        adversary.learn(model, F.cross_entropy, x, labels, draws)
        changed = adversary.added(x, draws).float() - x.float()
        assert changed.abs().max() <= max(REACHES) * EPSILON
        fresh += sum(int(age == 0) for age in adversary._age)
    assert fresh == len(REACHES)
    for part, reach in zip(adversary._parts, REACHES, strict=True):
        assert part.abs().max() <= reach * EPSILON
    assert adversary.added(torch.full((2, *SHAPE), 255, dtype=torch.uint8), draws).dtype == torch.uint8
