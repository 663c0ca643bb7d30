"""From a network to a program without weights, and the weights (docs/spec.md, rules B-1 to B-7).

The eval-mode network is exported as it is, then every state tensor in the exported program is replaced by one on the
meta device before the program is saved. Exporting *on* the meta device would bake that device into the graph. Whoever
loads the program gives the weights back with `module().load_state_dict(tensors, strict=True, assign=True)`.
"""

import copy
import io
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tessera.keystore.errors import ApiMisuse, Malformed

MAX_CONSTANT_VALUES: Final = 16
"""Most values of a tensor constant that may stay in the program (rule B-4)."""

SAME: Final = 1e-3
"""How far, beside its largest value, an answer may move when another sample of its batch changes: rounding only."""

_NO_REMEDY = "Register it as a parameter or a buffer of the module, so that it is sealed with the weights."


def export_program(module: nn.Module, example: Tensor, *, max_batch: int) -> tuple[bytes, dict[str, Tensor]]:
    """Return the weight-less program and the weights by name, as contiguous CPU tensors that share no memory.

    `module` takes one tensor with the batch first and gives one tensor with the batch first; it is put in eval mode and
    exported on the CPU, from a copy. `example` is one input of any batch size; only its shape and dtype are used.
    The program runs at every batch size from 1 to `max_batch`. Raises `ApiMisuse` when the module does not export,
    fixes its batch size, mixes the samples of a batch, has another form, or keeps weights outside its parameters and
    buffers.
    """
    found = export_with_contract(module, example, max_batch=max_batch)
    return found.program, found.tensors


class Exported(NamedTuple):
    """What `export_with_contract` gives; `output_shape` is without the batch."""

    program: bytes
    tensors: dict[str, Tensor]
    output_dtype: torch.dtype
    output_shape: tuple[int, ...]


def export_with_contract(module: nn.Module, example: Tensor, *, max_batch: int) -> Exported:
    """Return what `export_program` returns and what the program's output looks like; same errors."""
    if max_batch < 1 or example.ndim < 1:
        raise ApiMisuse("a program needs max_batch of at least 1 and an example with a batch dimension")
    program = _exported(module, example, max_batch)
    _check_constants(program)
    dtype, shape = _output(program)
    tensors = {name: value.detach().to("cpu").contiguous().clone() for name, value in program.state_dict.items()}
    _strip(program)
    archive = io.BytesIO()
    torch.export.save(program, archive)
    return Exported(archive.getvalue(), tensors, dtype, shape)


def check_no_nan(tensors: dict[str, Tensor]) -> None:
    """Raise `Malformed` naming the first tensor that holds a NaN: a broken model is not sealed (rule B-6)."""
    for name, value in tensors.items():
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            raise Malformed(
                f"tensor {name} holds NaN", remedy="The training diverged: lower the learning rate and train again."
            )


def _prepared(module: nn.Module) -> nn.Module:
    """Return a CPU copy in eval mode whose buffers all belong to its state, so that none stays in the program."""
    prepared = copy.deepcopy(module).to("cpu").eval().requires_grad_(False)
    for part in prepared.modules():
        part._non_persistent_buffers_set.clear()
    return prepared


def _exported(module: nn.Module, example: Tensor, max_batch: int) -> ExportedProgram:
    # An example batch of 1 would be taken for a constant of the graph, so it is 2 wherever the batch may vary.
    fixed = max_batch == 1
    sample = torch.zeros((1 if fixed else 2, *example.shape[1:]), dtype=example.dtype)
    shapes = None if fixed else ({0: Dim("batch", min=1, max=max_batch)},)
    try:
        with torch.no_grad():
            prepared = _prepared(module)
            pure = _runs_pure(prepared, sample)
            mixes = _mixes_samples(prepared, sample)
            program = torch.export.export(prepared, (sample,), dynamic_shapes=shapes)
    except Exception as error:  # torch raises many unrelated types here, all meaning this
        raise ApiMisuse(
            f"the model cannot be exported for batches of 1 to {max_batch} ({type(error).__name__}: {_told(error)})",
            remedy="Try torch.export.export on it: forward must be traceable and must not depend on the batch size. "
            "Write x.shape[0] for the size of a batch: len(x) fixes it.",
        ) from error
    if not pure:
        raise ApiMisuse(
            "the model changes its state or its input when it runs",
            remedy="Make forward in eval mode leave both as they are: one request must not see another's traces.",
        )
    if mixes:
        raise ApiMisuse(
            "the model's answer to a sample depends on the other samples of its batch",
            remedy="Requests of different buyers share batches. Let batch norms keep running statistics and no "
            "operation run over the batch, or set max_batch to 1.",
        )
    return program


def _runs_pure(module: nn.Module, sample: Tensor) -> bool:
    """Run `module` once and say whether it left its state and its input alone; torch counts changes in `_version`."""

    def marks() -> list[tuple[int, int]]:
        return [(id(value), value._version) for value in (*module.parameters(), *module.buffers(), sample)]

    before = marks()
    module(sample)
    return marks() == before


def _mixes_samples(module: nn.Module, sample: Tensor) -> bool:
    """Say whether the answer to one sample of a batch moves when only another one changes.

    A node puts requests of different buyers into one batch, so this would carry traces from one to the other, and the
    same image would be answered differently from call to call. Batch norms without running statistics do it.
    """
    if len(sample) < 2 or not (sample.dtype == torch.uint8 or sample.is_floating_point()):
        return False
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, *sample.shape[1:]), generator=draws)
    levels = (pixels if sample.dtype == torch.uint8 else pixels / 127.5 - 1).to(sample.dtype)
    answers = []
    with torch.random.fork_rng(devices=[]):
        for pair in ([0, 1], [0, 2], [0, 3]):
            torch.manual_seed(0)  # what it draws by chance is no trace of a sample
            answers.append(module(levels[pair]))
    if any(not isinstance(answer, Tensor) or not answer.ndim or len(answer) != 2 for answer in answers):
        return False  # refused for its form
    first, *others = (answer[0].detach().double() for answer in answers)
    if not first.numel() or not bool(torch.isfinite(first).all()):
        return False
    return any(bool((first - other).abs().max() > SAME * first.abs().max()) for other in others)


def _told(error: Exception) -> str:
    """Return the first line of what torch says."""
    return next(iter(str(error).strip().splitlines()), "no reason given")[:200]


def _output(program: ExportedProgram) -> tuple[torch.dtype, tuple[int, ...]]:
    """Return dtype and shape without the batch of the one output. Raises `ApiMisuse` when it has another form."""
    (returned,) = program.graph.output_node().args
    values = [node.meta.get("val") for node in returned] if isinstance(returned, tuple | list) else []
    inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
    batch = inputs[-1].meta["val"].shape[0]
    match values:
        case [Tensor() as value] if value.ndim and bool(value.shape[0] == batch):
            shape = tuple(value.shape[1:])
            if all(isinstance(size, int) for size in shape):
                return value.dtype, shape
    raise ApiMisuse(
        "a model gives exactly one tensor, batch first and otherwise of fixed shape",
        remedy="Wrap it in a module that does.",
    )


def _check_constants(program: ExportedProgram) -> None:
    for name, value in program.constants.items():
        if not isinstance(value, Tensor) or value.numel() > MAX_CONSTANT_VALUES:
            raise ApiMisuse(f"constant {name} would stay readable in the program", remedy=_NO_REMEDY)


def _strip(program: ExportedProgram) -> None:
    """Take out of the program what is not the graph: weights, the example, the vendor's source paths and device."""
    state: dict[str, Any] = program.state_dict
    for name, value in state.items():
        empty = value.detach().to("meta")
        state[name] = nn.Parameter(empty, requires_grad=False) if isinstance(value, nn.Parameter) else empty
    program._example_inputs = None
    for graph_module in program.graph_module.modules():
        if isinstance(graph_module, torch.fx.GraphModule):
            _strip_nodes(graph_module)


def _strip_nodes(graph_module: torch.fx.GraphModule) -> None:
    for node in list(graph_module.graph.nodes):
        node.meta.pop("stack_trace", None)
        # These assertions name the CPU of the export and would refuse to run on any other device.
        if node.target is torch.ops.aten._assert_tensor_metadata.default and not node.users:
            graph_module.graph.erase_node(node)
    graph_module.recompile()
