"""Retraining attacks: they recover what they can, freeze what they must, and leave the vendor's model alone."""

import pytest
import torch
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse
from tessera.protect.selective import Attack, cross_entropy, labelled, retrain, same_bits


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    """Eighty points in two classes that a linear model separates."""
    draws = torch.Generator().manual_seed(0)
    points = torch.randn(80, 6, generator=draws)
    return points, (points[:, :3].sum(1) > 0).long()


def model_of() -> nn.Sequential:
    """Return a network with a batch norm between two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def share(points: Tensor, labels: Tensor) -> "object":
    """Return the measure: the share of right answers."""
    return lambda victim: float((victim(points).argmax(1) == labels).double().mean())


@pytest.mark.parametrize("target", ["all", "locked", "scratch"])
def test_retraining_recovers_and_reports_its_curve(data: tuple[Tensor, Tensor], target: str) -> None:
    """Quality rises with steps, measured where asked; the model that was given keeps its bits and flags."""
    model = model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = labelled(*data, 16)
    attack = Attack(target=target, steps=24, every=10, learning_rate=0.05)  # type: ignore[arg-type]
    curve = retrain(model, before, batch, cross_entropy, share(*data), attack, locked=["0.weight"])  # type: ignore[arg-type]
    assert [step for step, _ in curve] == [0, 10, 20, 24]
    assert curve[-1][1] >= 0.8 > curve[0][1] + 0.1
    assert same_bits(before, model.state_dict())
    assert model.training
    again = retrain(model, before, batch, cross_entropy, share(*data), attack, locked=["0.weight"])  # type: ignore[arg-type]
    assert again == curve


@pytest.mark.parametrize(("target", "changed"), [("locked", {"3.weight"}), ("all", {"3.weight", "0.weight", "3.bias"})])
def test_an_attack_trains_what_it_says(data: tuple[Tensor, Tensor], target: str, changed: set[str]) -> None:
    """Locked layers alone, or everything; batch norm statistics stay either way."""
    model = model_of()
    seen: list[dict[str, Tensor]] = []

    def measure(victim: nn.Module) -> float:
        seen.append({name: value.clone() for name, value in victim.state_dict().items()})
        return 0.0

    attack = Attack(target=target, steps=2, every=2)  # type: ignore[arg-type]
    retrain(model, model.state_dict(), labelled(*data, 8), cross_entropy, measure, attack, locked=["3.weight"])
    found = {name for name in seen[0] if not torch.equal(seen[0][name], seen[-1][name])}
    assert changed <= found
    assert found == changed if target == "locked" else "1.running_mean" not in found


def test_attacks_that_make_no_sense_are_refused(data: tuple[Tensor, Tensor]) -> None:
    """No name for the locked layers, a name that is not there, or a layer that cannot start afresh."""
    model, batch = model_of(), labelled(*data, 8)
    for names in ([], ["9.weight"]):
        with pytest.raises(ApiMisuse, match="locked"):
            retrain(
                model, model.state_dict(), batch, cross_entropy, lambda _: 0.0, Attack(target="locked"), locked=names
            )

    class Bare(nn.Module):
        """Holds a parameter and cannot be reset."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6, 2))

        def forward(self, x: Tensor) -> Tensor:
            """Return logits."""
            return x @ self.weight

    bare = Bare()
    with pytest.raises(ApiMisuse, match="reset_parameters"):
        retrain(bare, bare.state_dict(), batch, cross_entropy, lambda _: 0.0, Attack(target="scratch"))
    for wrong in ({"target": "some"}, {"target": "all", "steps": 0}, {"target": "all", "learning_rate": 0}):
        with pytest.raises(ApiMisuse):
            Attack(**wrong)
