"""A faster sequence of operations that computes the same function: what `arithmetic = "fast"` does on a CPU.

    convolution, batch norm    ->  convolution        the norm is an affine map per channel, folded into weight and bias
    convolution weights        ->  channels last      the layout in which the CPU's kernels need no reordering
    relu, add of fresh values  ->  in place           no second pass over memory

The results differ from the vendor's own sequence in the last bits. Whoever fuses a graph compares both on real runs
(`agrees`) before serving it. After "torch.fx: Practical Program Capture" (Reed et al. 2022), section 6.2.
"""

import operator
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from tessera.server.engine.sharing import SharedTensors

_ATEN = torch.ops.aten
_FRESH: Final = frozenset({_ATEN.conv2d.default, _ATEN.linear.default, _ATEN.batch_norm.default})
"""Operations whose result is new memory that nothing else can see."""
_LAYOUT_BOUND: Final = frozenset({_ATEN.as_strided.default, _ATEN.view_as_real.default, _ATEN.view_as_complex.default})
"""Operations whose result depends on the layout of their input; a graph with one of them is left alone."""
TOLERANCE: Final = 1e-4
"""Largest difference from the exact result, as a share of the largest output; folding costs about 1e-6."""


class _Fold:
    """One convolution and what its norm makes of its weights."""

    def __init__(self, convolution: Node, norm: Node | None) -> None:
        self.convolution, self.norm = convolution, norm

    @property
    def sources(self) -> tuple[str | None, ...]:
        """The names of the tensors that it is computed from, in a fixed order."""
        names: list[str | None] = [_name(self.convolution.args[1]), _name(_argument(self.convolution, 2))]
        if self.norm is not None:
            names += [_name(argument) for argument in self.norm.args[1:5]]
        return tuple(names)

    def tensors(self, state: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight, channels last, and bias; folded in double precision."""
        values = [None if name is None else state[name].detach() for name in self.sources]
        weight, bias = values[0], values[1]
        assert weight is not None
        if self.norm is not None:
            gamma, beta, mean, variance = (None if value is None else value.double() for value in values[2:])
            assert mean is not None
            assert variance is not None
            eps: Any = self.norm.args[7]
            scale = (variance + float(eps)).rsqrt()
            scale = scale if gamma is None else scale * gamma
            shift = -mean if bias is None else bias.double() - mean
            bias = (shift * scale if beta is None else shift * scale + beta).to(weight.dtype)
            weight = (weight.double() * scale.reshape(-1, 1, 1, 1)).to(weight.dtype)
        folded = torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight)
        return folded, None if bias is None else bias.clone()


def can_fuse(module: torch.nn.Module, device: torch.device) -> bool:
    """Return whether `fuse` knows this graph: on a CPU, float32, with a convolution, nothing bound to a layout."""
    if device.type != "cpu" or not isinstance(module, GraphModule):
        return False
    calls = [node for node in module.graph.nodes if node.op == "call_function"]
    if any(node.target in _LAYOUT_BOUND for node in calls):
        return False
    folds = _folds(module)
    state = _state(module)
    return bool(folds) and all(_foldable(fold, state) for fold in folds)


def fuse(
    module: GraphModule, *, shared: SharedTensors, identity: Mapping[str, Hashable]
) -> tuple[GraphModule, dict[str, Hashable]]:
    """Return a fused copy of a graph that `can_fuse`, and the identity of each of its tensors.

    Tensors that stay as they are are taken from `shared` again under their own identity. `module` is left alone.
    """
    state = _state(module)
    fused = GraphModule(module, _copy(module.graph))
    taken: dict[str, Hashable] = {}
    for number, fold in enumerate(_folds(fused)):
        _replace(fused, fold, number, state, shared, identity, taken)
    _work_in_place(fused)
    _ease(fused)
    fused.graph.eliminate_dead_code(lambda node: node.op in {"placeholder", "output"} or _writes(node))
    fused.delete_all_unused_submodules()
    _drop_unused(fused)
    for name, tensor in _state(fused).items():
        if name not in taken:
            taken[name] = identity.get(name) or object()
            shared.take(taken[name], lambda tensor=tensor: tensor)  # type: ignore[misc]
    fused.recompile()
    return fused, taken


def agrees(exact: list[torch.Tensor], fused: list[torch.Tensor]) -> bool:
    """Return whether the fused outputs are within `TOLERANCE` of the exact ones."""
    for one, other in zip(exact, fused, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if not one.is_floating_point():
            if not torch.equal(one, other):
                return False
            continue
        bound = TOLERANCE * float(one.abs().max()) if one.numel() else 0.0
        if not bool(((one - other).abs() <= bound).all()):  # NaN on either side is a disagreement
            return False
    return True


def _folds(module: GraphModule) -> list[_Fold]:
    folds = []
    for node in module.graph.nodes:
        if node.target is _ATEN.conv2d.default:
            users = list(node.users)
            norm = users[0] if len(users) == 1 and _is_norm_of(users[0], node) else None
            folds.append(_Fold(node, norm))
    return folds


def _is_norm_of(norm: Node, convolution: Node) -> bool:
    return norm.target is _ATEN.batch_norm.default and norm.args[0] is convolution and norm.args[5] is False


def _foldable(fold: _Fold, state: Mapping[str, torch.Tensor]) -> bool:
    weight = _name(fold.convolution.args[1])
    named = all(
        argument is None or _name(argument) in state
        for argument in (_argument(fold.convolution, 2), *(fold.norm.args[1:5] if fold.norm is not None else ()))
    )
    return named and weight is not None and weight in state and state[weight].dtype is torch.float32


def _replace(
    module: GraphModule,
    fold: _Fold,
    number: int,
    state: Mapping[str, torch.Tensor],
    shared: SharedTensors,
    identity: Mapping[str, Hashable],
    taken: dict[str, Hashable],
) -> None:
    """Let the convolution use folded tensors and drop the norm behind it."""
    sources = tuple(None if name is None else identity[name] for name in fold.sources)
    eps = None if fold.norm is None else fold.norm.args[7]
    made: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def tensors() -> tuple[torch.Tensor, torch.Tensor | None]:
        if not made:
            made.append(fold.tensors(state))
        return made[0]

    def node_of(kind: str, make: Callable[[], torch.Tensor]) -> Node:
        name, key = f"fused_{number}_{kind}", ("fused", kind, sources, eps)
        taken[name] = key
        module.register_buffer(name, shared.take(key, make).detach())
        with module.graph.inserting_before(fold.convolution):
            return module.graph.get_attr(name)

    weight = node_of("weight", lambda: tensors()[0])
    has_bias = fold.norm is not None or fold.sources[1] is not None
    bias = node_of("bias", lambda: operator.itemgetter(1)(tensors())) if has_bias else None
    rest = fold.convolution.args[3:]
    fold.convolution.args = (fold.convolution.args[0], weight, bias, *rest)
    if fold.norm is not None:
        fold.convolution.meta["val"] = fold.norm.meta.get("val")
        fold.norm.replace_all_uses_with(fold.convolution)
        module.graph.erase_node(fold.norm)


def _work_in_place(module: GraphModule) -> None:
    """Write the results of relu and add over an operand that nobody else reads."""
    fresh = {node for node in module.graph.nodes if node.op == "call_function" and node.target in _FRESH}
    for node in module.graph.nodes:
        if node.target is _ATEN.relu.default and _is_only_use(node.args[0], node, fresh):
            node.target = _ATEN.relu_.default
        elif node.target is _ATEN.add.Tensor and not node.kwargs and len(node.args) == 2:
            first, second = node.args
            if _is_only_use(second, node, fresh) and not _is_only_use(first, node, fresh):
                first, second = second, first
            if _is_only_use(first, node, fresh) and first is not second and _alike(first, node):
                node.target, node.args = _ATEN.add_.Tensor, (first, second)
            else:
                fresh.add(node)
                continue
        else:
            continue
        fresh.add(node)


def _is_only_use(value: Any, by: Node, fresh: set[Node]) -> bool:
    return isinstance(value, Node) and value in fresh and list(value.users) == [by]


def _alike(one: Any, other: Node) -> bool:
    """Return whether two nodes have one shape and dtype, the batch's symbol included."""
    first, second = one.meta.get("val"), other.meta.get("val")
    return (
        isinstance(first, torch.Tensor)
        and isinstance(second, torch.Tensor)
        and first.dtype == second.dtype
        and [str(size) for size in first.shape] == [str(size) for size in second.shape]
    )


def _ease(module: GraphModule) -> None:
    """Let no operation insist on row-major memory, and drop checks of what the contract has been held against."""
    for node in list(module.graph.nodes):
        if node.target is _ATEN.view.default:
            node.target = _ATEN.reshape.default
        elif node.target is _ATEN._assert_tensor_metadata.default:
            module.graph.erase_node(node)


def _writes(node: Node) -> bool:
    return node.target in {_ATEN.relu_.default, _ATEN.add_.Tensor} or node.is_impure()


def _drop_unused(module: GraphModule) -> None:
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in list(_state(module)):
        if name not in used:
            parent, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(parent), leaf)


def _copy(graph: torch.fx.Graph) -> torch.fx.Graph:
    copied = torch.fx.Graph()
    copied.set_codegen(graph._codegen)
    found: Any = copied.graph_copy(graph, {}, return_output_node=True)  # the value and the node, when asked for both
    assert found is not None
    value, original = found
    copied.output(value).meta.update(original.meta)
    return copied


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _name(value: Any) -> str | None:
    return str(value.target) if isinstance(value, Node) and value.op == "get_attr" else None


def _argument(node: Node, index: int) -> Any:
    return node.args[index] if len(node.args) > index else None
