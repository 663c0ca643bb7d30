"""One package at one of its tiers: the base weights with the patches up to that tier, as a program (rule W-59).

Every variant is read from the package anew, because a program may keep its tensors in another form. What two variants
have in common they hold in common all the same: the tensor that no patch between their tiers changes has one identity
in both, and `SharedTensors` keeps one tensor for one identity.
"""

from collections.abc import Hashable
from typing import Protocol

import torch

from tessera.keystore.errors import WrongKey
from tessera.keystore.package import UnlockedPackage
from tessera.keystore.tiers import TierKey
from tessera.server.engine.memory import raw
from tessera.server.engine.program import WORKERS, Arithmetic, LoadedProgram, build, fresh_state, read_state
from tessera.server.engine.sharing import SharedTensors, overwrite


class VariantLoader(Protocol):
    """Makes a runnable program of a package, as `load_variant` does."""

    def __call__(
        self, package: UnlockedPackage, device: torch.device, *, tier_key: TierKey | None, shared: SharedTensors
    ) -> LoadedProgram:
        """Return the program at the tier of `tier_key`; None for a package whose tiers have no keys."""


def load_variant(
    package: UnlockedPackage,
    device: torch.device | str = "cpu",
    *,
    tier_key: TierKey | None = None,
    shared: SharedTensors | None = None,
    arithmetic: Arithmetic = "exact",
) -> LoadedProgram:
    """Return the package's program at the tier of `tier_key`, sharing in `shared` what other variants have as well.

    Raises what `load_sealed` raises, and for the tier key what `UnlockedPackage.apply_patch` raises.
    """
    if tier_key is None and package.manifest.patches:
        raise WrongKey("the tiers of this package have keys, and none was given")
    state, changed = read_variant(package, tier_key)
    identity: dict[str, Hashable] = {name: (name, changed.get(name, 0)) for name in state}
    return build(package, state, device, arithmetic=arithmetic, shared=shared, identity=identity)


def read_variant(package: UnlockedPackage, tier_key: TierKey | None) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Return the weights at the tier of `tier_key`, in fresh CPU memory, and the last tier that changed a tensor, by
    name, for those that are not the base's. Raises as `load_variant`; nothing in plain is left behind then.
    """
    if tier_key is None:
        return read_state(package), {}
    state = fresh_state(package)
    try:
        buffers = {name: raw(tensor) for name, tensor in state.items()}
        return state, package.read_tier_into(tier_key, buffers, workers=WORKERS)
    except BaseException:
        for tensor in state.values():
            overwrite(tensor)
        raise
