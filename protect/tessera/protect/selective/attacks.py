"""Retraining attacks: what the public file is worth to somebody with a few samples and no key.

    all       every weight of the public model is trained
    locked    the weights of the locked layers alone, for an attacker who knows which they are
    scratch   the same network from fresh weights: what the samples are worth without our file

The lock's worth is the gap between the first two and the third.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn

from tessera.keystore.errors import ApiMisuse
from tessera.protect.selective.objective import Batch, Loss

Target = Literal["all", "locked", "scratch"]
Measure = Callable[[nn.Module], float]
"""From the attacked model, in eval mode, to its quality."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """How the attacker trains: Adam for `steps` batches, measured before the first and every `every` steps.

    Batch norms keep their statistics unless training starts from scratch.
    """

    target: Target
    steps: int = 300
    learning_rate: float = 1e-3
    every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.target not in ("all", "locked", "scratch"):
            raise ApiMisuse(f"an attack trains all, locked or scratch, not {self.target!r}")
        if min(self.steps, self.every) < 1 or self.learning_rate <= 0:
            raise ApiMisuse("an attack has at least one step and a learning rate above zero")


def retrain(
    model: nn.Module,
    public: Mapping[str, Tensor],
    batch: Batch,
    loss: Loss,
    measure: Measure,
    attack: Attack,
    *,
    locked: Iterable[str] = (),
) -> list[tuple[int, float]]:
    """Return (steps done, quality) along the attack; `model` itself is not changed.

    `public` holds what the file gives away, `batch` draws from the attacker's own samples, `locked` names the weights
    of the locked layers. Raises `ApiMisuse` for `locked` without names, and for `scratch` with an exported program or
    a layer that cannot be reset.
    """
    victim = copy.deepcopy(model)
    victim.load_state_dict(dict(public), strict=True)
    trained = _trained(victim, attack, set(locked))
    learner = torch.optim.Adam(trained, lr=attack.learning_rate)
    draws = torch.Generator().manual_seed(attack.seed)
    curve = [(0, _measured(victim, measure))]
    for step in range(1, attack.steps + 1):
        _mode(victim, attack.target == "scratch")
        inputs, targets = batch(draws)
        learner.zero_grad()
        torch.autograd.backward(loss(victim(inputs), targets))
        learner.step()
        if step % attack.every == 0 or step == attack.steps:
            curve.append((step, _measured(victim, measure)))
    return curve


def reset(model: nn.Module, seed: int) -> None:
    """Give every layer of `model` fresh weights, in place, leaving torch's generator as it was.

    Raises `ApiMisuse` when a module holds parameters and cannot be reset.
    """
    if isinstance(model, fx.GraphModule):
        raise ApiMisuse("an exported program has no fresh weights to start from", remedy="Give the module itself.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in model.named_modules():
            if next(module.parameters(recurse=False), None) is None:
                continue
            if not callable(start := getattr(module, "reset_parameters", None)):
                raise ApiMisuse(f"{name or 'the model'} holds parameters and has no reset_parameters()")
            start()


def _trained(victim: nn.Module, attack: Attack, locked: set[str]) -> list[nn.Parameter]:
    if attack.target == "scratch":
        reset(victim, attack.seed)
    names = dict(victim.named_parameters())
    if (attack.target == "locked" and not locked) or locked - names.keys():
        raise ApiMisuse("an attack on the locked layers needs the names of their weights")
    for name, value in names.items():
        value.requires_grad_(value.is_floating_point() and (attack.target != "locked" or name in locked))
    return [value for value in names.values() if value.requires_grad]


def _measured(victim: nn.Module, measure: Measure) -> float:
    _mode(victim, False)
    with torch.no_grad():
        return measure(victim)


def _mode(victim: nn.Module, training: bool) -> None:
    if not isinstance(victim, fx.GraphModule):
        victim.train(training)
