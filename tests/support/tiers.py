"""A small model cut into tiers by hand: decoys in place of some weights, and the patches that give them back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from support.keys import PACKAGE_ID
from support.models import Digits, Sealed, seal, seeded
from tessera.keystore.package import PatchEntry, Tier, encode_patch
from tessera.keystore.secrets import TierSecret
from tessera.keystore.tiers import TierKey

RUNS = {"conv.weight": 9, "head.weight": 16}
"""Tensors of `Digits` that are cut, and the elements in a unit of each."""
NAMES = ("none", "half", "full")
TIERS = tuple(Tier(number, name, {"accuracy": number / 4}) for number, name in enumerate(NAMES, 1))
TOP = len(TIERS)


def tier_key(tier: int = TOP, package_id: str = PACKAGE_ID, fill: int = 0x71) -> TierKey:
    """Return the key of a tier in the chain of `fill`."""
    return TierKey(package_id, TOP, TierSecret(bytes([fill]) * 32)).at(tier)


@dataclass(frozen=True)
class Cut:
    """A state taken apart: tier t is `base` with the first t patches."""

    base: dict[str, torch.Tensor]
    patches: tuple[bytes, ...]
    states: tuple[dict[str, torch.Tensor], ...]
    """The state of each tier, from tier 1 on."""


def cut(state: Mapping[str, torch.Tensor], tiers: int = TOP, runs: Mapping[str, int] = RUNS) -> Cut:
    """Take every unit of the tensors in `runs` away; tier 1 gets none back, the top one all of them."""
    random = np.random.default_rng(5)
    made = {name: value.clone() for name, value in state.items()}
    order = {name: random.permutation(state[name].numel() // run) for name, run in runs.items()}
    for name in runs:
        made[name] = torch.from_numpy(random.standard_normal(tuple(made[name].shape), np.float32))
    base, states, patches = dict(made), [], []
    for tier in range(tiers):
        entries = []
        for name, run in runs.items():
            begin, end = (len(order[name]) * max(step, 0) // (tiers - 1) for step in (tier - 1, tier))
            units = np.sort(order[name][begin:end])
            if units.size:
                values = state[name].detach().numpy().reshape(-1, run)[units]
                entries.append(
                    PatchEntry(name, "F32", run, units.astype(np.uint32), np.ascontiguousarray(values).view(np.uint8))
                )
                made[name] = made[name].clone()
                made[name].view(-1, run)[torch.from_numpy(units)] = torch.from_numpy(values)
        patches.append(encode_patch(entries))
        states.append(dict(made))
    return Cut(base, tuple(patches), tuple(states))


@dataclass(frozen=True)
class Tiered:
    """A package of three tiers, and the module that each tier ought to be."""

    sealed: Sealed
    modules: tuple[nn.Module, ...]
    """Of tier 1, 2, 3; the last has the vendor's own weights."""


def seal_tiered(folder: Path, *, model: str = "digits", version: int = 1, package_id: str = PACKAGE_ID) -> Tiered:
    """Seal a seeded `Digits` in three tiers under `CONTENT_KEY` and `tier_key()`."""
    module = seeded(Digits)
    parts = cut(module.state_dict())
    public = seeded(Digits)
    public.load_state_dict(parts.base)
    sealed = seal(
        folder,
        public,
        model=model,
        version=version,
        tiers=TIERS,
        package_id=package_id,
        patches=parts.patches,
        tier_key=tier_key(package_id=package_id),
    )
    return Tiered(sealed, tuple(_with(state) for state in parts.states))


def expected(tiered: Tiered, tier: int, images: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> Sequence[float]:
    """Return the logits that `tier` ought to give, flat."""
    with torch.inference_mode():
        answers = tiered.modules[tier - 1](torch.from_numpy(images))
    flat: list[float] = answers.flatten().tolist()
    return flat


def _with(state: dict[str, torch.Tensor]) -> nn.Module:
    module = seeded(Digits)
    module.load_state_dict(state)
    return module
