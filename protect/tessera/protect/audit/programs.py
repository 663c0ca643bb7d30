"""An exported program as a model that an attacker can train.

`torch.export` freezes a program in eval mode: batch norms use their running statistics and dropout does nothing. But
the graph still names both operations, so training mode is a matter of one argument each. `ProgramModel` sets it, and a
thief's fine-tuning is as strong as it would be on the vendor's own module.
"""

import io
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from tessera.keystore.errors import Malformed
from tessera.protect.models import ByteModel

_OPS = torch.ops.aten
_TRAINING: Final[dict[Any, int]] = {
    _OPS.batch_norm.default: 5,
    _OPS.dropout.default: 2,
    _OPS.feature_dropout.default: 2,
}
"""Operation to the position of its argument that says whether it trains."""

_NORMS: Final = ("batch_norm", "layer_norm", "group_norm", "instance_norm")

TRAINING: Final = (
    "an exported program; its batch norms and dropout were switched to training mode in the graph while it was trained"
)


class ProgramModel(nn.Module):
    """A program with its weights; takes uint8 (N, C, H, W) or the same values as floats, through which gradients flow.

    Raises `Malformed` when the program and the weights do not belong together.
    """

    def __init__(self, program: bytes, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        try:
            # Without its guards it takes any batch size, and floats in place of bytes.
            graph = torch.export.load(io.BytesIO(program)).module(check_guards=False)
            assert isinstance(graph, fx.GraphModule)
            own = {name: value.detach().clone() for name, value in tensors.items()}
            graph.load_state_dict(own, strict=True, assign=True)
        except Exception as error:  # torch raises many unrelated types here, all meaning this
            raise Malformed(
                "the program cannot be loaded with its weights", remedy="Bundle or build the model again."
            ) from error
        graph._forward_pre_hooks.clear()
        graph._forward_pre_hooks_with_kwargs.clear()
        for weight in graph.parameters():
            weight.requires_grad_(weight.is_floating_point())
        self.graph = graph
        self._switches = [node for node in graph.graph.nodes if node.target in _TRAINING]
        self.train(False)

    def forward(self, image: Tensor) -> Tensor:
        """Return what the program gives."""
        result: Tensor = self.graph(image)
        return result

    def train(self, mode: bool = True) -> "ProgramModel":
        """Switch batch norms and dropout; the graph itself has no modes of its own to set."""
        if mode != self.training or not mode:
            for node in self._switches:
                at = _TRAINING[node.target]
                node.args = (*node.args[:at], mode, *node.args[at + 1 :])
            self.graph.recompile()
        self.training = mode
        return self

    def first_weights(self) -> list[nn.Parameter]:
        """Return the weights of the first operation that uses any."""
        weights = dict(self.graph.named_parameters())
        for node in self.graph.graph.nodes:
            used = [part.target for part in node.all_input_nodes if part.op == "get_attr"]
            found = [weights[name] for name in used if name in weights]
            if node.op == "call_function" and found:
                return found
        return []

    def reset(self, seed: int) -> None:
        """Give every weight a fresh value, as torch's own layers would: the role of each is read from the graph."""
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for node in self.graph.graph.nodes:
                if node.op == "call_function":
                    self._reset_operation(node, draws)

    def _reset_operation(self, node: fx.Node, draws: torch.Generator) -> None:
        state = self.graph.state_dict(keep_vars=True)
        used = [state[part.target] for part in node.all_input_nodes if part.op == "get_attr" and part.target in state]
        floating = [value for value in used if value.is_floating_point()]
        if any(norm in str(node.target) for norm in _NORMS):
            _reset_norm(floating)
            return
        weights = [value for value in floating if isinstance(value, nn.Parameter)]
        matrix = next((value for value in weights if value.ndim > 1), None)
        bound = 1.0 if matrix is None else 1.0 / math.sqrt(matrix[0].numel())
        for value in weights:
            value.uniform_(-bound, bound, generator=draws)


def first_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of the first operation that uses any: a program's, a `ByteModel`'s stem, else one weight."""
    if isinstance(model, ProgramModel):
        return model.first_weights()
    if isinstance(model, ByteModel):
        return list(model.stem.parameters())
    first: Iterable[nn.Parameter] = (weight for part in model.modules() for weight in part.parameters(recurse=False))
    return list(first)[:1]


def _reset_norm(values: list[Tensor]) -> None:
    """Scale 1 and shift 0; running mean 0 and variance 1. Torch's operations take them in this order."""
    for place, value in enumerate(values):
        scale = place == 0 or place == 3
        value.fill_(1.0 if scale else 0.0)
