"""From a sealed package to something that runs: plaintext weights exist in the tensors that use them and nowhere else.

The package's program is a `torch.export` archive without weights. Tensors are allocated first, decrypted chunk by chunk
straight into their memory, and given to the program (rule W-54). Loading writes no file.

Arithmetic is `exact`, the vendor's own sequence of operations, or `fast`, a sequence of the same function that the CPU
runs quicker (rule W-58); which, the operator chooses.
"""

import io
import os
import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch.export.passes import move_to_device_pass
from torch.fx import GraphModule

from tessera.keystore.errors import Malformed, TesseraError
from tessera.keystore.package import Manifest, TensorSpec, UnlockedPackage
from tessera.server.engine.datatypes import DATATYPES, STORED
from tessera.server.engine.fusing import agrees, can_fuse, fuse
from tessera.server.engine.memory import fresh, raw
from tessera.server.engine.sharing import SharedTensors, overwrite

_log = structlog.get_logger("tessera.program")

Array = npt.NDArray[Any]
Arithmetic = Literal["fast", "exact"]

WORKERS: Final = min(os.cpu_count() or 1, 4)
"""Threads that decrypt one package; what is served meanwhile keeps the rest of a larger machine."""

_ONE_AT_A_TIME = threading.Lock()
"""torch.export.load keeps its deserialiser in a global and fails when two threads load at once (torch 2.13)."""


class Program(Protocol):
    """What a batcher runs. Executors of other kinds (compiled, foreign runtimes) implement exactly this."""

    @property
    def manifest(self) -> Manifest:
        """The contract that inputs were checked against."""

    @property
    def max_batch(self) -> int:
        """Largest number of samples in one call."""

    @property
    def device_bytes(self) -> int:
        """Bytes of weights and buffers on the device."""

    def run(self, parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """Join `parts` along the batch axis, run once, and return every output, batch axis first, row-major."""

    def erase(self) -> None:
        """Overwrite the weights and free their memory; the program does not run again."""


class LoadedProgram:
    """A program with its weights on a device; in eager mode, `exact` ones give the vendor's module's own bits.

    `identities` are what its tensors are held under in `shared`; the program gives them back when it is erased. `fast`
    takes effect in `warm_up`, which runs where the program will run.
    """

    def __init__(
        self,
        manifest: Manifest,
        module: torch.nn.Module,
        device: torch.device,
        shared: SharedTensors,
        identities: Mapping[str, Hashable],
        arithmetic: Arithmetic = "exact",
    ) -> None:
        self._manifest = manifest
        self._module = module
        self._device = device
        self._shared = shared
        self._identities = dict(identities)
        self._wanted = arithmetic
        self.arithmetic: Arithmetic = "exact"
        self._inputs = tuple((spec.name, DATATYPES[spec.datatype]) for spec in manifest.inputs)
        self._outputs = tuple((spec.name, DATATYPES[spec.datatype]) for spec in manifest.outputs)

    @property
    def manifest(self) -> Manifest:
        """The package's manifest."""
        return self._manifest

    @property
    def max_batch(self) -> int:
        """Largest number of samples in one call, from the manifest."""
        return self._manifest.max_batch

    @property
    def device_bytes(self) -> int:
        """Bytes of weights and buffers on the device."""
        return sum(tensor.nbytes for tensor in self._module.state_dict().values())

    def run(self, parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """Join `parts` along axis 0, run the module under the caller's inference mode, and return numpy outputs.

        BF16 travels as uint16. Only the thread of an `Executor` calls this.
        """
        tensors = [self._gather(name, kind.torch_dtype, parts) for name, kind in self._inputs]
        results = _flatten(self._module(*tensors))
        return {
            name: _to_numpy(result, kind.numpy_dtype)
            for (name, kind), result in zip(self._outputs, results, strict=True)
        }

    def erase(self) -> None:
        """Overwrite the weights with zeros and free their memory at once, whoever still refers to the module.

        Tensors that another program shares stay until that one is erased.
        """
        self._give_back(self._identities)
        self._identities = {}
        for tensor in (*self._module.parameters(), *self._module.buffers()):
            if self._device.type != "cpu":
                overwrite(tensor)
            with torch.no_grad():
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)

    def warm_up(self) -> None:
        """Choose the arithmetic, run zeros at batch sizes 1 and `max_batch` and hold every output to the contract.

        Raises `Malformed` when the program does not give what its manifest promises.
        """
        if self._wanted == "fast" and self.arithmetic == "exact":
            self._fuse()
        for samples in dict.fromkeys((1, self.max_batch)):
            part = {
                spec.name: np.zeros((samples, *spec.shape[1:]), DATATYPES[spec.datatype].numpy_dtype)
                for spec in self._manifest.inputs
            }
            _check_outputs(self._manifest.outputs, self._try(self._module, part, samples), samples)

    def _fuse(self) -> None:
        """Go over to the fused graph if there is one and its answers agree with the exact ones."""
        if not isinstance(self._module, GraphModule) or not can_fuse(self._module, self._device):
            return
        samples = min(2, self.max_batch)
        part = _trial(self._manifest.inputs, samples)
        exact = self._try(self._module, part, samples)
        fused, identities = fuse(self._module, shared=self._shared, identity=self._identities)
        try:
            agreed = agrees(exact, self._try(fused, part, samples))
        except Malformed:
            agreed = False
        if agreed:
            self._give_back(self._identities)
            self._module, self._identities, self.arithmetic = fused, identities, "fast"
        else:
            self._give_back(identities)
        _log.info("arithmetic chosen", model=self._manifest.model, arithmetic=self.arithmetic)

    def _give_back(self, identities: Mapping[str, Hashable]) -> None:
        for identity in identities.values():
            self._shared.release(identity)

    def _try(self, module: torch.nn.Module, part: Mapping[str, Array], samples: int) -> list[torch.Tensor]:
        try:
            tensors = [self._gather(name, kind.torch_dtype, [part]) for name, kind in self._inputs]
            return _flatten(module(*tensors))
        except Exception as error:
            raise Malformed(f"the program does not run at batch size {samples}") from error

    def _gather(self, name: str, dtype: torch.dtype, parts: Sequence[Mapping[str, Array]]) -> torch.Tensor:
        """Return one fresh tensor on the device; always a copy, for what arrived is read-only and may be unaligned."""
        joined = np.concatenate([part[name] for part in parts])
        tensor = torch.from_numpy(joined)
        if dtype is torch.bfloat16:
            tensor = tensor.view(torch.bfloat16)
        return tensor if self._device.type == "cpu" else tensor.to(self._device)


def load_sealed(
    package: UnlockedPackage, device: torch.device | str = "cpu", *, arithmetic: Arithmetic = "exact"
) -> LoadedProgram:
    """Return the package's program with its weights decrypted into memory on `device`.

    Raises `Tampered` ("package-tampered") for a package that fails its authentication and `Malformed` for an authentic
    one whose program, tensors and manifest do not belong together.
    """
    for spec in (*package.manifest.inputs, *package.manifest.outputs):
        _check_spec(spec)
    return build(package, read_state(package), device, arithmetic=arithmetic)


def read_state(package: UnlockedPackage) -> dict[str, torch.Tensor]:
    """Return every weight of the package by name, decrypted straight into fresh CPU memory. Errors as `load_sealed`."""
    state = fresh_state(package)
    package.read_tensors_into({name: raw(tensor) for name, tensor in state.items()}, workers=WORKERS)
    return state


def fresh_state(package: UnlockedPackage) -> dict[str, torch.Tensor]:
    """Return room for every weight of the package, by name. Raises `Malformed` for a type that has no tensors here."""
    unknown = next((part.dtype for part in package.tensors if part.dtype not in STORED), None)
    if unknown is not None:
        raise Malformed(f"this server knows no tensors of type {unknown}")
    return {part.name: fresh(part.shape, STORED[part.dtype]) for part in package.tensors}


def build(
    package: UnlockedPackage,
    state: dict[str, torch.Tensor],
    device: torch.device | str = "cpu",
    *,
    arithmetic: Arithmetic = "exact",
    shared: SharedTensors | None = None,
    identity: Mapping[str, Hashable] | None = None,
) -> LoadedProgram:
    """Return the package's program with the weights of `state`, which belong to it from now on.

    `identity` gives, by name, a hashable that is equal exactly when a tensor's content is equal; programs built with
    one `shared` then share those tensors, and the copy in `state` is overwritten. Errors as `load_sealed`.
    """
    where = torch.device(device)
    for spec in (*package.manifest.inputs, *package.manifest.outputs):
        _check_spec(spec)
    try:
        archive = io.BytesIO(package.read_program())
        with _ONE_AT_A_TIME:
            program = torch.export.load(archive)
    except TesseraError:
        raise
    except Exception as error:
        raise Malformed("the program of the package cannot be loaded by this version of torch") from error
    pool = shared if shared is not None else SharedTensors()
    identities: dict[str, Hashable] = {name: identity[name] if identity is not None else object() for name in state}
    held = _hold(state, pool, identities)
    try:
        module = _join(program, held, where)
    except TesseraError:
        for name in held:
            pool.release(identities[name])
        raise
    # Torch's own check of the inputs runs in Python at every call; the contract was held against each request before.
    module._forward_pre_hooks.clear()
    module._forward_pre_hooks_with_kwargs.clear()
    loaded = LoadedProgram(package.manifest, module, where, pool, identities, arithmetic)
    if where.type != "cpu":  # what runs are the copies on the device
        loaded._give_back(identities)
        loaded._identities = {}
    return loaded


def _hold(
    state: dict[str, torch.Tensor], shared: SharedTensors, identities: Mapping[str, Hashable]
) -> dict[str, torch.Tensor]:
    """Return the shared tensor of each name; one that was shared before makes the fresh copy needless."""
    held = {}
    for name, tensor in state.items():
        kept = shared.take(identities[name], lambda tensor=tensor: tensor)  # type: ignore[misc]
        if kept is not tensor:
            overwrite(tensor)
        held[name] = kept.detach()  # a view of its own, which `erase` may empty without emptying the others'
    return held


def _join(
    program: torch.export.ExportedProgram, state: dict[str, torch.Tensor], device: torch.device
) -> torch.nn.Module:
    """Give the program its weights; the names and shapes must be exactly those it asks for."""
    wanted = program.state_dict
    if set(wanted) != set(state) or any(wanted[name].shape != state[name].shape for name in state):
        raise Malformed("the tensors of the package are not those that its program asks for")
    try:
        if device.type == "cpu":
            module: torch.nn.Module = program.module(check_guards=False)
            module.load_state_dict(state, strict=True, assign=True)
            return module
        wanted.update(state)  # the pass moves real tensors, and devices that the graph names
        return move_to_device_pass(program, str(device)).module(check_guards=False)
    except Exception as error:
        raise Malformed("the program of the package does not take its tensors") from error


def _trial(specs: Sequence[TensorSpec], samples: int) -> dict[str, Array]:
    """Return inputs on which two ways to compute one function can be compared; the same at every start."""
    draws = np.random.default_rng(0)
    part: dict[str, Array] = {}
    for spec in specs:
        dtype, shape = DATATYPES[spec.datatype].numpy_dtype, (samples, *spec.shape[1:])
        if spec.datatype == "UINT8":
            part[spec.name] = draws.integers(0, 256, shape, dtype)
        elif dtype.kind == "f":
            part[spec.name] = draws.standard_normal(shape).astype(dtype)
        else:  # indices and the like: nothing but zero is sure to be in range
            part[spec.name] = np.zeros(shape, dtype)
    return part


def _check_spec(spec: TensorSpec) -> None:
    if spec.datatype not in DATATYPES:
        raise Malformed(f"this server cannot serve tensors of type {spec.datatype}")
    if not spec.shape or spec.shape[0] != -1 or any(dimension < 1 for dimension in spec.shape[1:]):
        raise Malformed("the contract has a shape that is not a batch axis and fixed dimensions")


def _check_outputs(specs: Sequence[TensorSpec], results: Sequence[torch.Tensor], samples: int) -> None:
    if len(results) != len(specs):
        raise Malformed(f"the program gives {len(results)} outputs and its contract names {len(specs)}")
    for spec, result in zip(specs, results, strict=True):
        expected = (samples, *spec.shape[1:])
        if tuple(result.shape) != expected or result.dtype is not DATATYPES[spec.datatype].torch_dtype:
            raise Malformed(f"output {spec.name} of the program is not what its contract says")


def _flatten(result: object) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(result)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _to_numpy(tensor: torch.Tensor, dtype: "np.dtype[Any]") -> Array:
    flat = tensor.detach().to("cpu").contiguous()
    if flat.dtype is torch.bfloat16:
        return flat.view(torch.uint16).numpy()
    array: Array = flat.numpy()
    if array.dtype != dtype:
        raise TesseraError("internal error")  # warm-up has seen the right type
    return array
