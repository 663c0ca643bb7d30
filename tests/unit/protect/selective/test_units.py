"""Units of selection: what they are, how they are named and counted, for modules and for exported programs."""

import io

import pytest
import torch
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.protect.export import export_program
from tessera.protect.selective import (
    Layer,
    apply,
    baseline_scores,
    choose,
    layers_of,
    localise,
    make_plan,
    same_bits,
    split,
)
from tessera.protect.selective.gates import call_gated
from tessera.protect.selective.units import check_weights, shares


class Small(nn.Module):
    """Float (N, 2, 6, 6) to three logits: a grouped, a 1x1 and a plain convolution, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.depth = nn.Conv2d(4, 8, 3, groups=2, bias=False)
        self.point = nn.Conv2d(8, 5, 1)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 3)."""
        y = torch.relu(self.norm(self.point(self.depth(self.stem(x)))))
        logits: Tensor = self.head(torch.flatten(y, 1))
        return logits


def test_units_of_every_kind_of_layer() -> None:
    """Slices of convolutions, grouped ones too, single weights of a 1x1, blocks of sixteen of a linear layer."""
    found = {layer.weight: (layer.kind, layer.count, layer.elements, layer.columns) for layer in layers_of(Small())}
    assert found == {
        "stem.weight": ("conv", 8, 9, 2),
        "depth.weight": ("conv", 16, 9, 2),
        "point.weight": ("conv", 40, 1, 8),
        "head.weight": ("linear", 15, 16, 5),
    }
    assert layers_of(Small())[1].unit_name(5) == "depth.weight[2,1]"


class Unusual(nn.Module):
    """Float (N, 2, 4, 4) to (N, 3): convolutions of one and three dimensions and transposed ones, grouped and not."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(2, 4, 5, padding="same")
        self.up1 = nn.ConvTranspose1d(4, 4, 2, stride=2, groups=2)
        self.up2 = nn.ConvTranspose2d(4, 6, 2, stride=2)
        self.space = nn.Conv3d(1, 2, (3, 3, 2))
        self.up3 = nn.ConvTranspose3d(2, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        y = self.up1(self.line(x.flatten(2)))
        y = self.up2(y.unflatten(2, (4, 8)))
        logits: Tensor = self.up3(self.space(y.unsqueeze(1))).mean((2, 3, 4))
        return logits


def test_convolutions_of_other_dimensions_and_transposed_ones() -> None:
    """All are cut into the slices of their kernels, in a module and in its program, and come back to the bit."""
    model = Unusual()
    found = {layer.weight: (layer.kind, layer.count, layer.elements) for layer in layers_of(model)}
    assert found == {
        "line.weight": ("conv", 8, 5),
        "up1.weight": ("conv", 8, 2),
        "up2.weight": ("conv", 24, 4),
        "space.weight": ("conv", 2, 18),
        "up3.weight": ("conv", 6, 8),
    }
    program, weights = export_program(model, torch.zeros(2, 2, 4, 4), max_batch=4)
    module = torch.export.load(io.BytesIO(program)).module()
    module.load_state_dict(weights, strict=True, assign=True)
    layers = layers_of(module)
    assert layers == layers_of(model)
    plan = make_plan(layers, layers, baseline_scores(weights, layers, "descend"), budget=0.4, fractions=(0, 1))
    parts = split(weights, plan)
    assert same_bits(apply(parts.public, parts.increments, 1), weights)
    assert not same_bits(parts.public, weights)
    assert localise(parts.public, plan).keys() == found.keys()
    with torch.no_grad():
        x = torch.randn(2, 2, 4, 4)
        gated = call_gated(module, weights, {layer: torch.zeros(layer.count) for layer in layers[:1]}, x)
        assert not torch.equal(gated, module(x))


@pytest.mark.parametrize(("length", "block"), [(17, 1), (16, 16), (32, 16), (10, 10), (26, 13), (1, 1)])
def test_linear_blocks_divide_their_row(length: int, block: int) -> None:
    """A block is the largest divisor of the row up to sixteen, so no block is ragged."""
    assert Layer("w", "linear", (3, length)).elements == block


def test_units_are_consecutive_weights() -> None:
    """Row n of `rows` is the n-th run of the flat weight, and for a convolution the slice of one output and input."""
    model = Small()
    layer = layers_of(model)[0]
    rows = layer.rows(model.stem.weight)
    assert torch.equal(rows.reshape(-1), model.stem.weight.reshape(-1))
    assert torch.equal(rows[5].reshape(3, 3), model.stem.weight[2, 1])


@pytest.mark.slow
def test_an_exported_program_has_the_same_layers() -> None:
    """Names, kinds and shapes are found in the graph alone, so a bundle can be encrypted without its Python code."""
    program, weights = export_program(Small(), torch.zeros(2, 2, 6, 6), max_batch=4)
    module = torch.export.load(io.BytesIO(program)).module()
    module.load_state_dict(weights, strict=True, assign=True)
    assert layers_of(module) == layers_of(Small())


def test_shared_weights_are_left_alone() -> None:
    """A weight that two layers use is no unit: a decoy in one would break the other."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    assert [layer.weight for layer in layers_of(model)] == ["3.weight"]


def test_a_model_without_layers_is_refused() -> None:
    """Nothing to encrypt is an error, not an empty plan."""
    with pytest.raises(ApiMisuse, match="no convolution or linear layer"):
        layers_of(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)))


def test_choosing_layers() -> None:
    """By name with or without `.weight`, in the network's order; by itself the convolutions larger than 1x1."""
    found = layers_of(Small())
    assert [layer.weight for layer in choose(found, ["head", "stem.weight"])] == ["stem.weight", "head.weight"]
    assert [layer.weight for layer in choose(found)] == ["stem.weight", "depth.weight"]
    assert [layer.weight for layer in choose(found[2:])] == ["point.weight"]
    assert [layer.weight for layer in choose(found[3:])] == ["head.weight"]
    for wrong in (["norm"], [], ["stem", "stem.weight"]):
        with pytest.raises(ApiMisuse):
            choose(found, wrong)


def test_both_denominators() -> None:
    """Shares count weights, of the chosen layers and of all convolutions and linear layers."""
    found = layers_of(Small())
    counted = shares(found, found[:2], {"stem.weight": 4, "depth.weight": 2})
    assert (counted.units, counted.weights) == (6, 54)
    assert counted.of_chosen == 54 / (72 + 144)
    assert counted.of_network == 54 / (72 + 144 + 40 + 240)


def test_weights_that_cannot_be_encrypted() -> None:
    """NaN, infinity, integers, a missing tensor and another shape are named."""
    model = Small()
    layers = layers_of(model)
    for value in (torch.full((4, 2, 3, 3), torch.nan), torch.zeros(4, 2, 3, 3, dtype=torch.int8), torch.zeros(3)):
        with pytest.raises(Malformed, match=r"stem\.weight"):
            check_weights({**model.state_dict(), "stem.weight": value}, layers)
    with pytest.raises(Malformed, match=r"head\.weight"):
        check_weights({"stem.weight": model.stem.weight}, [layers[0], layers[3]])
