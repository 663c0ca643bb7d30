"""Where an image enters a program: tables that look its values up, and the convolution that takes its blocks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from tessera.protect.audit.programs import ProgramModel

_CONVOLUTION: Final = torch.ops.aten.conv2d.default
_LOOK_UP: Final = torch.ops.aten.index_select.default
_NORM: Final = torch.ops.aten.batch_norm.default
_LEVELS: Final = 256
_TOLERANCE: Final = 1e-4
"""How far the way to the first convolution may be from a line, of what is reached: float32 and two operations."""


@dataclass(frozen=True)
class Patches:
    """The first convolution: it takes each block of `block` x `block` pixels whole and once."""

    weight: str
    """Its tensor, (features, C, block, block)."""
    block: int
    bias: str | None
    """What is added to its features, or None if nothing is."""
    mean: str | None
    """The running mean of the batch norm that follows at once, or None: a shift can go there as well."""
    line: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    """Without tables, what a pixel value is multiplied by on the way there and what is added then, by channel (C,)."""


@dataclass(frozen=True)
class Entry:
    """How a program takes its image. Either part may be missing."""

    tables: str | None
    """The tensor of tables, (C * block ** 2, 256), places of a (C, block, block) block in that order."""
    block: int
    """That of the tables; 0 without any."""
    patches: Patches | None


def find_entry(model: ProgramModel, shape: tuple[int, int, int]) -> Entry:
    """Return how `model` takes images of `shape` (C, H, W); parts that do not fit are reported as missing."""
    graph = model.graph
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    convolution = next((node for node in nodes if node.target is _CONVOLUTION), None)
    before = nodes[: nodes.index(convolution)] if convolution is not None else nodes
    looked_up = next((node for node in before if node.target is _LOOK_UP), None)
    tables, block = (None, 0) if looked_up is None else _tables(graph, looked_up, shape)
    patches = None if convolution is None else _patches(graph, convolution, shape, tables, block)
    return Entry(tables, block, patches)


def _tables(graph: fx.GraphModule, node: fx.Node, shape: tuple[int, int, int]) -> tuple[str | None, int]:
    """Return the tensor that values are looked up in, and its block; (None, 0) unless every place has a table."""
    name = _tensor_of(node.args[0])
    if name is None:
        return None, 0
    table = graph.get_parameter(name) if name in dict(graph.named_parameters()) else None
    if table is None or table.ndim != 2 or table.shape[1] != _LEVELS or table.shape[0] % shape[0]:
        return None, 0
    side = round((table.shape[0] // shape[0]) ** 0.5)
    fits = side * side * shape[0] == table.shape[0] and shape[1] % side == 0 and shape[2] % side == 0
    return (name, side) if fits else (None, 0)


def _patches(
    graph: fx.GraphModule, node: fx.Node, shape: tuple[int, int, int], tables: str | None, block: int
) -> Patches | None:
    weight_name = _tensor_of(node.args[1]) if len(node.args) > 1 else None
    if weight_name is None:
        return None
    weight, arguments = _state(graph)[weight_name], _arguments(node)
    side = weight.shape[-1]
    whole = (
        tuple(weight.shape[1:]) == (shape[0], side, side)
        and list(arguments["stride"]) == [side, side]
        and not any(arguments["padding"])
        and all(step == 1 for step in arguments["dilation"])
        and arguments["groups"] == 1
        and shape[1] % side == 0
        and shape[2] % side == 0
    )
    arriving = _arriving(graph, node)
    line = None
    if tables is None:
        line = _line(arriving, shape)
        whole = whole and line is not None
    elif not _looked_up(arriving, _state(graph)[tables], block, shape):
        return None
    if not whole:
        return None
    norm = next(iter(node.users)) if len(node.users) == 1 else None
    follows = norm is not None and norm.target is _NORM and norm.args[0] is node
    mean = _tensor_of(norm.args[3]) if follows and norm is not None else None
    return Patches(weight_name, side, _tensor_of(arguments["bias"]), mean, line)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return the convolution's arguments by name, with the defaults of the operation."""
    names = [argument.name for argument in _CONVOLUTION._schema.arguments]
    found: dict[str, Any] = {argument.name: argument.default_value for argument in _CONVOLUTION._schema.arguments}
    found |= dict(zip(names, node.args, strict=False)) | node.kwargs
    for name in ("stride", "padding", "dilation"):
        value = found[name]
        found[name] = [value, value] if isinstance(value, int) else [*value] * (2 // len(value))
    return found


def _tensor_of(node: Any) -> str | None:
    """Return the name of the tensor that a node is, or is a reshaped view of."""
    while isinstance(node, fx.Node) and node.op == "call_function" and node.target in _VIEWS:
        node = node.args[0]
    return str(node.target) if isinstance(node, fx.Node) and node.op == "get_attr" else None


_VIEWS: Final = {torch.ops.aten.reshape.default, torch.ops.aten.view.default}


def _state(graph: fx.GraphModule) -> dict[str, Tensor]:
    return dict(graph.state_dict())


class _Reached(Exception):
    """The node is reached; holds what arrives there."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class _Until(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, stop: fx.Node) -> None:
        super().__init__(graph)
        self._stop = stop

    def run_node(self, n: fx.Node) -> Any:
        if n is self._stop:
            arguments, _ = self.fetch_args_kwargs_from_env(n)
            raise _Reached(arguments[0])
        return super().run_node(n)


def _arriving(graph: fx.GraphModule, node: fx.Node) -> Callable[[Tensor], Tensor]:
    """Return the function from images to what arrives at `node`."""

    def run(images: Tensor) -> Tensor:
        try:
            with torch.no_grad():
                _Until(graph, node).run(images)
        except _Reached as reached:
            return reached.value
        raise AssertionError("the node is not in the graph")

    return run


def _line(
    arriving: Callable[[Tensor], Tensor], shape: tuple[int, int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return what pixels are multiplied by on the way and what is added, by channel; None unless that is all."""
    probe = torch.randint(0, _LEVELS, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    probe[0] = 0
    found = [arriving(image[None]) for image in (probe[0], torch.full(shape, 255, dtype=torch.uint8), probe[1])]
    if any(not value.is_floating_point() or tuple(value.shape) != (1, *shape) for value in found):
        return None
    black, white, mixed = (value[0].double() for value in found)
    scale, shift = ((white - black) / 255).mean((1, 2)), black.mean((1, 2))
    drawn = shift[:, None, None] + scale[:, None, None] * probe[1]
    if float((drawn - mixed).abs().max()) > _TOLERANCE * max(float(mixed.abs().max()), 1e-6):
        return None
    return (scale.numpy(), shift.numpy()) if bool((scale != 0).all()) else None


def _looked_up(arriving: Callable[[Tensor], Tensor], table: Tensor, block: int, shape: tuple[int, int, int]) -> bool:
    """Whether what arrives is each value looked up in the table of its place."""
    probe = torch.randint(0, _LEVELS, (1, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    places = torch.arange(len(table)).reshape(shape[0], block, block)
    rows = places.repeat(1, shape[1] // block, shape[2] // block)
    found = arriving(probe)
    return found.shape == probe.shape and torch.equal(found[0], table.detach()[rows, probe[0].long()])
