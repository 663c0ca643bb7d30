"""A model cut into tiers, as the vendor's audit holds it: public weights, and what each tier adds to the one below.

Tiers are numbered from 1, as in a package (rule P-15). 0 is the file alone: all decoys in place, no tier key.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.package import PatchEntry
from tessera.keystore.package.reader import UnlockedPackage
from tessera.keystore.tiers import TierKey
from tessera.protect.selective.plan import Units
from tessera.protect.selective.split import apply
from tessera.protect.selective.units import Layer, kind_of

_PREFIX = "graph."
"""What `ProgramModel` puts before the names of a program's weights."""


@dataclass(frozen=True)
class Vault:
    """A sealed package of the model, unlocked, with the key of its top tier."""

    path: Path
    package: UnlockedPackage = field(repr=False)
    top: TierKey = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a model is cut. Raises `ApiMisuse` for no tier, or another number of increments than names."""

    names: tuple[str, ...]
    public: Mapping[str, Tensor] = field(repr=False)
    """The weights of the file, decoys in place."""
    increments: tuple[tuple[PatchEntry, ...], ...] = field(repr=False)
    """What each tier adds, from tier 1; secret."""
    model: Callable[[Mapping[str, Tensor]], nn.Module] = field(repr=False)
    """From weights to a model that holds them."""
    sealed: Callable[[], AbstractContextManager[Vault]] = field(repr=False)
    """Opens the sealed package that the model is sold as, or one made as it would be."""

    def __post_init__(self) -> None:
        if not self.names or len(self.names) != len(self.increments):
            raise ApiMisuse(f"{len(self.names)} tiers with {len(self.increments)} increments are nothing to audit")

    @property
    def tiers(self) -> int:
        """How many tiers there are, which is also the number of the full model."""
        return len(self.names)

    def state(self, tier: int) -> dict[str, Tensor]:
        """Return the weights of a tier, or of the file alone. Raises `ApiMisuse` for a tier that is not there."""
        return dict(self.public) if tier == 0 else apply(self.public, self.increments, tier - 1)

    def title(self, tier: int) -> str:
        """Return what reports call a tier."""
        return f"tier {tier}, {self.names[tier - 1]}" if tier else "the file alone"

    def starts(self) -> tuple[int, ...]:
        """Return what lies below the full model and differs from what lies below it: the file, then lower tiers."""
        return (0, *(tier for tier in range(1, self.tiers) if self.increments[tier - 1]))

    def units(self, below: int, upto: int | None = None) -> dict[str, Units]:
        """Return weight name to the sorted units that tiers above `below`, up to `upto` or the top, give back."""
        found: dict[str, list[Units]] = {}
        for increment in self.increments[below:upto]:
            for entry in increment:
                found.setdefault(entry.tensor, []).append(entry.units.astype(np.int64))
        return {name: np.sort(np.concatenate(parts)) for name, parts in sorted(found.items())}

    def layers(self) -> tuple[Layer, ...]:
        """Return the weights that units are taken from. Raises `ApiMisuse` for runs that are no units."""
        found = {}
        for entry in (entry for increment in self.increments for entry in increment):
            shape = tuple(self.public[entry.tensor].shape)
            layer = found[entry.tensor] = Layer(entry.tensor, kind_of(shape) or "linear", shape)
            if layer.elements != entry.run:
                raise ApiMisuse(f"{entry.tensor} is cut in runs of {entry.run} weights, and not in its units")
        return tuple(found[name] for name in sorted(found))


def weights_called(model: nn.Module, names: Iterable[str]) -> list[nn.Parameter]:
    """Return the parameters of `model` with the names that a bundle gives them."""
    wanted = set(names)
    return [weight for name, weight in model.named_parameters() if name.removeprefix(_PREFIX) in wanted]
