"""Units of selection: the kernel slices of convolutions and the row blocks of linear layers (PSS, section "unit").

Every unit is a run of consecutive weights, so unit n of a layer covers the flat elements n*e … n*e + e - 1:

    Conv2d, weight (O, I / groups, kh, kw)    one kh x kw slice; unit n joins output n // I' and the input n % I'
    Linear, weight (O, I)                     a block of e inputs of one row, e = the largest divisor of I up to 16

Convolutions of one and three dimensions are cut alike, and transposed ones, whose weights begin with the input.

A row whose length is a prime above 16 is cut into single weights. 1x1 convolutions have units of one weight too.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from tessera.keystore.errors import ApiMisuse, Malformed

MAX_LINEAR_BLOCK: Final = 16
"""Most consecutive inputs in one unit of a linear layer."""

Kind = Literal["conv", "linear"]
Floats = npt.NDArray[np.float64]
"""Weights as units: (units, elements)."""
Mask = npt.NDArray[np.bool_]
"""Which units are meant: (units,)."""

_CONVOLUTIONS: Final = frozenset(
    {"aten.convolution.default", "aten.conv_transpose1d.default"}
    | {f"aten.conv{sides}d.{form}" for sides in (1, 2, 3) for form in ("default", "padding")}
    | {f"aten.conv_transpose{sides}d.input" for sides in (2, 3)}
)
_MODULES: Final = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear
)  # fmt: skip
_LINEAR: Final = frozenset({"aten.linear.default"})


@dataclass(frozen=True)
class Layer:
    """One weight that units are taken from. Construction raises `ApiMisuse` for a shape without units."""

    weight: str
    """The weight's name in the model's `state_dict`."""
    kind: Kind
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.kind != kind_of(self.shape) or min(self.shape) < 1:
            raise ApiMisuse(f"{self.weight} of shape {self.shape} is no {self.kind} weight with units")

    @property
    def elements(self) -> int:
        """Consecutive weights in one unit."""
        if self.kind == "conv":
            return math.prod(self.shape[2:])
        return max(size for size in range(1, MAX_LINEAR_BLOCK + 1) if self.shape[1] % size == 0)

    @property
    def weights(self) -> int:
        """Weights of the layer."""
        return math.prod(self.shape)

    @property
    def count(self) -> int:
        """Units of the layer."""
        return self.weights // self.elements

    @property
    def columns(self) -> int:
        """Units that feed one output."""
        return self.count // self.shape[0]

    def unit_name(self, unit: int) -> str:
        """Return how reports name a unit, like `layer1.0.conv1.weight[3,7]`: its output, its input or block."""
        return f"{self.weight}[{unit // self.columns},{unit % self.columns}]"

    def rows(self, weight: Tensor) -> Tensor:
        """Return a weight of this layer as (count, elements): one unit per row, a view where the memory allows."""
        return weight.reshape(self.count, self.elements)


def kind_of(shape: tuple[int, ...]) -> Kind | None:
    """Return which kind of layer has a weight of this shape; None for neither."""
    return "linear" if len(shape) == 2 else "conv" if 3 <= len(shape) <= 5 else None


@dataclass(frozen=True)
class Shares:
    """How much of a network a selection touches; both denominators, since papers use either."""

    units: int
    weights: int
    """Single weights in the selected units."""
    of_chosen: float
    """Share of the weights of the chosen layers, 0 … 1."""
    of_network: float
    """Share of all weights of the network's convolutions and linear layers (biases and norms not counted), 0 … 1."""

    def to_json(self) -> dict[str, float | int]:
        """Return the object kept in reports."""
        return {
            "units": self.units,
            "weights": self.weights,
            "share_of_chosen_layers": round(self.of_chosen, 6),
            "share_of_network": round(self.of_network, 6),
        }


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    """Return every convolution and linear layer of `model`, in the order of its modules or of its exported graph.

    `model` is any module, or what `ExportedProgram.module()` gives. A weight that two layers share is left out, since a
    decoy in one would break the other. Raises `ApiMisuse` when there is no such layer.
    """
    found = tuple(_of_graph(model) if isinstance(model, fx.GraphModule) else _of_modules(model))
    names = [layer.weight for layer in found]
    shared = _shared(model) | {name for name in names if names.count(name) > 1}
    kept = tuple(layer for layer in found if layer.weight not in shared)
    if not kept:
        raise ApiMisuse(
            "the model has no convolution or linear layer of its own to encrypt",
            remedy="Selective encryption needs convolutions or linear layers; seal the whole package instead.",
        )
    return kept


def choose(layers: Sequence[Layer], names: Iterable[str] | None = None) -> tuple[Layer, ...]:
    """Return the layers called `names`, in the network's order; a name may leave out the final `.weight`.

    Without names: all convolutions larger than 1x1, else all convolutions, else all linear layers. Raises `ApiMisuse`
    for a name that no layer has, a name given twice, and an empty list.
    """
    if names is None:
        convolutions = [layer for layer in layers if layer.kind == "conv"]
        return tuple([layer for layer in convolutions if layer.elements > 1] or convolutions or layers)
    known = {layer.weight: layer for layer in layers}
    wanted = [name if name in known else f"{name}.weight" for name in names]
    if not wanted or len(set(wanted)) != len(wanted):
        raise ApiMisuse("the layers to encrypt are at least one, each named once")
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ApiMisuse(
            f"the model has no convolution or linear layer {unknown[0].removesuffix('.weight')}",
            remedy=f"It has: {', '.join(name.removesuffix('.weight') for name in known)}.",
        )
    return tuple(layer for layer in layers if layer.weight in wanted)


def shares(layers: Sequence[Layer], chosen: Sequence[Layer], units: dict[str, int]) -> Shares:
    """Return what selecting `units[name]` units of each chosen layer amounts to; `layers` is the whole network."""
    weights = sum(layer.elements * units.get(layer.weight, 0) for layer in chosen)
    return Shares(
        units=sum(units.values()),
        weights=weights,
        of_chosen=weights / sum(layer.weights for layer in chosen),
        of_network=weights / sum(layer.weights for layer in layers),
    )


def check_weights(state: dict[str, Tensor], layers: Iterable[Layer]) -> None:
    """Raise `Malformed` naming the first weight that is missing, has another shape or dtype, or is not finite."""
    for layer in layers:
        value = state.get(layer.weight)
        if value is None or tuple(value.shape) != layer.shape:
            raise Malformed(f"the weights have no {layer.weight} of shape {layer.shape}")
        if not value.is_floating_point():
            raise Malformed(f"{layer.weight} is {value.dtype}; only floating-point weights are selected from")
        if not bool(torch.isfinite(value).all()):
            raise Malformed(
                f"tensor {layer.weight} holds NaN or infinity",
                remedy="The training diverged: lower the learning rate and train again.",
            )


def _of_modules(model: nn.Module) -> Iterator[Layer]:
    names = set(model.state_dict().keys())
    for prefix, module in model.named_modules():
        name = f"{prefix}.weight" if prefix else "weight"
        if isinstance(module, _MODULES) and name in names:
            yield Layer(name, "linear" if isinstance(module, nn.Linear) else "conv", tuple(module.weight.shape))


def _of_graph(program: fx.GraphModule) -> Iterator[Layer]:
    for node in program.graph.nodes:
        operation = str(node.target) if node.op == "call_function" else ""
        if operation not in _CONVOLUTIONS | _LINEAR:
            continue
        weight = node.args[1]
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            continue  # a computed weight has no name in the state
        shape = tuple(program.state_dict()[str(weight.target)].shape)
        yield Layer(str(weight.target), "linear" if operation in _LINEAR else "conv", shape)


def _shared(model: nn.Module) -> set[str]:
    """Return the names of parameters that more than one module registers."""
    owners: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(value), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}
