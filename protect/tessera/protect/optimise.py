"""How weights are moved: the optimiser, its learning rate over the run, precision, and the moving average."""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse, Unavailable
from tessera.protect.muon import Muon
from tessera.protect.task import Precision, TrainingTask

_SHARE = "rate_share"
"""Key of a group's learning rate as a share of the task's."""

_FIRST = 0.1
"""The learning rate at the first step, as a share of the highest."""


def make_optimiser(task: TrainingTask, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of `task` for the weights of `model` that learn.

    Muon moves the kernels of convolutions; SGD moves the rest: tables, linear layers, vectors, and convolutions whose
    stride is their size, as they take an image apart in patches.
    """
    groups = _groups(task, model)
    if task.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=task.learning_rate)
    if task.optimiser == "muon":
        return Muon(groups, lr=task.learning_rate, momentum=task.momentum)
    return torch.optim.SGD(groups, lr=task.learning_rate, momentum=task.momentum, nesterov=task.momentum > 0)


def _groups(task: TrainingTask, model: nn.Module) -> list[dict[str, Any]]:
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    groups: list[dict[str, Any]] = []
    if task.optimiser == "muon":
        inner = _inner_kernels(model)
        chosen = [weights.pop(name) for name in list(weights) if name in inner]
        groups.append({"params": chosen, "orthogonal": True, _SHARE: task.muon_rate / task.learning_rate})
    plain = [weight for weight in weights.values() if weight.ndim > 1 or task.decay_vectors]
    vectors = [weight for weight in weights.values() if weight.ndim <= 1 and not task.decay_vectors]
    groups.append({"params": plain, "weight_decay": task.weight_decay})
    groups.append({"params": vectors, "weight_decay": 0.0})
    return [{_SHARE: 1.0} | group for group in groups if group["params"]]


def _inner_kernels(model: nn.Module) -> set[str]:
    """Return the names of the kernels of all convolutions but those that take an image apart in patches."""
    return {
        f"{name}.weight"
        for name, part in model.named_modules()
        if isinstance(part, nn.Conv2d) and not 1 < part.kernel_size[0] <= part.stride[0]
    }


def rate(task: TrainingTask, done: float) -> float:
    """Return the learning rate when the share `done` of the run, 0 … 1, is over."""
    if done < task.warm_up:
        return task.learning_rate * (_FIRST + (1.0 - _FIRST) * done / task.warm_up)
    left = (1.0 - done) / (1.0 - task.warm_up)
    return task.learning_rate * (left if task.schedule == "triangle" else 0.5 * (1.0 - math.cos(math.pi * left)))


class Stepper:
    """Forward in the chosen precision, backward, one optimiser step; `scaler` belongs to a run's state.

    Raises `ApiMisuse` for fp16-amp without CUDA.
    """

    def __init__(self, task: TrainingTask, model: nn.Module, device: torch.device) -> None:
        check_precision(task.precision, device)
        self.optimiser = make_optimiser(task, model)
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._task, self._device = task, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=task.precision == "fp16-amp")

    def set_rate(self, done: float) -> None:
        """Set the learning rate for the share `done` of the run."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self._task, done) * group[_SHARE]

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context in which the forward pass runs."""
        kind = {"fp32": None, "bf16": torch.bfloat16, "fp16-amp": torch.float16}[self._task.precision]
        return nullcontext() if kind is None else torch.autocast(self._device.type, dtype=kind)

    def step(self, loss: Tensor) -> None:
        """Move the weights down the gradient of `loss`."""
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        if self._task.clip_norm is not None:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self._weights, self._task.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise `ApiMisuse` for fp16-amp on a device that has no use for it."""
    if precision == "fp16-amp" and device.type != "cuda":
        raise ApiMisuse(
            f"precision fp16-amp is for CUDA and the device is {device}", remedy="Use --precision fp32 or bf16."
        )


def usable_device(name: torch.device | str) -> torch.device:
    """Return the torch device called `name`. Raises `ApiMisuse` for no device's name, `Unavailable` for an absent one.

    An index is only taken for a CUDA device: `cuda:1` is the second GPU.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError) as error:
        raise ApiMisuse(f"{str(name)[:40]!r} is no device", remedy="Use cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise Unavailable(
            f"device {device} is asked for and torch sees {torch.cuda.device_count()} CUDA devices",
            remedy="Use --device cpu, or install a torch built for CUDA and check that the driver sees the GPU.",
        )
    return device


class MovingAverage:
    """The exponential moving average of a model's weights and buffers; slower at first, while there is little to keep.

    After t steps the old average counts `min(decay, (1 + t) / (10 + t))`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay

    def update(self, model: nn.Module, step: int) -> None:
        """Take in `model` after step number `step`, counted from 1."""
        keep = min(self._decay, (1 + step) / (10 + step))
        mine, theirs = _distinct(self.model), _distinct(model)
        floats = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[name] for name in floats], [theirs[name] for name in floats], 1.0 - keep)
        for name in mine.keys() - set(floats):
            mine[name].copy_(theirs[name])


def _distinct(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of `model` with each tensor once: a tied weight has several names, and moves one step only."""
    state = model.state_dict(keep_vars=True)
    first = {id(value): name for name, value in reversed(state.items())}
    return {name: value.detach() for name, value in state.items() if first[id(value)] == name}
