"""What an input-sensitive network answers: legal inputs, and every kind of illegal one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from tessera.keystore.secrets import InputKey
from tessera.protect.evaluate import BatchTransform, LabelledImages, Metric, metric_of, score
from tessera.protect.isnn.illegal import IllegalInputs
from tessera.protect.isnn.legal import LegalInputs
from tessera.protect.perturbation_torch import perturbed
from tessera.transforms import TransformSpec

NEAR_SHARES: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Of the signs of a block, how many a near key has wrong."""

_DRAWS_SEED: Final = 20231205


@dataclass(frozen=True)
class IsnnAccuracy:
    """What was measured, 0 … 1. `legal` has one value for each buyer; `near` one for each share of wrong signs."""

    metric: Metric
    legal: tuple[float, ...]
    clean: float
    wrong_keys: tuple[float, ...] = ()
    """Keys that nobody has, under a buyer's record."""
    wrong_records: tuple[float, ...] = ()
    """The first buyer's key under other records."""
    near: dict[float, float] = field(default_factory=dict)
    noise: float | None = None
    misplaced: float | None = None
    """The right pattern with turns by chance; None in the fixed form."""

    @property
    def mean_legal(self) -> float:
        """Over the buyers."""
        return sum(self.legal) / len(self.legal)

    def to_json(self) -> dict[str, Any]:
        """Return the object kept in reports, rounded to 1e-4."""
        return {
            "legal": round(self.mean_legal, 4),
            "legal_lowest": round(min(self.legal), 4),
            "buyers": len(self.legal),
            "clean": round(self.clean, 4),
            **_of("wrong_key", self.wrong_keys),
            **_of("wrong_record", self.wrong_records),
            "near": {f"{share:g}": round(value, 4) for share, value in self.near.items()},
            "noise": None if self.noise is None else round(self.noise, 4),
            "misplaced": None if self.misplaced is None else round(self.misplaced, 4),
        }


def measure(
    model: nn.Module,
    data: LabelledImages,
    spec: TransformSpec,
    legal_keys: Sequence[InputKey],
    *,
    wrong_keys: Sequence[InputKey] = (),
    wrong_records: Sequence[InputKey] = (),
    near_shares: Sequence[float] = NEAR_SHARES,
    device: torch.device | str = "cpu",
    told: Callable[[], None] | None = None,
) -> IsnnAccuracy:
    """Return what a model that takes uint8 (N, C, H, W) reaches on `data`; all keys are bound keys (rule C-4).

    The same draws of near keys, noise and turns in every call. `told` is called after each pass over the data. Raises
    what `LegalInputs` raises.
    """
    where = torch.device(device)
    legal = LegalInputs(spec, legal_keys, data.shape, where)
    illegal = IllegalInputs(legal)

    def under(transform: BatchTransform | None) -> float:
        found = score(model, data, where, transform)
        if told is not None:
            told()
        return found

    def drawn(make: Callable[[Tensor, torch.Generator], Tensor]) -> float:
        draws = torch.Generator().manual_seed(_DRAWS_SEED)
        return under(lambda x: make(x, draws))

    return IsnnAccuracy(
        metric=metric_of(data),
        legal=tuple(under(for_buyer(legal, number)) for number in range(len(legal))),
        clean=under(None),
        wrong_keys=tuple(under(under_key(spec, key, data.shape, where)) for key in wrong_keys),
        wrong_records=tuple(under(under_key(spec, key, data.shape, where)) for key in wrong_records),
        near={share: drawn(near_key(legal, share)) for share in near_shares},
        noise=drawn(illegal.noise),
        misplaced=drawn(by_chance(legal)) if legal.step.content else None,
    )


def for_buyer(legal: LegalInputs, buyer: int) -> BatchTransform:
    """Return what buyer number `buyer` does to a batch."""
    return lambda x: legal(x, torch.full((len(x),), buyer, device=x.device))


def under_key(
    spec: TransformSpec, key: InputKey, shape: tuple[int, int, int], device: torch.device | str
) -> BatchTransform:
    """Return what the holder of a bound `key` does to a batch."""
    return for_buyer(LegalInputs(spec, [key], shape, device), 0)


def near_key(legal: LegalInputs, share: float) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Return the maker of inputs under the first buyer's pattern with `share` of its signs turned, at least one.

    Which ones is drawn once for each batch; the turns of the form by content stay right.
    """

    def make(x: Tensor, draws: torch.Generator) -> Tensor:
        signs = legal.signs[0]
        turned = torch.ones(signs.numel())
        turned[torch.randperm(signs.numel(), generator=draws)[: max(1, round(share * signs.numel()))]] = -1.0
        buyers = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        near = signs * turned.reshape(signs.shape).to(x.device)
        return perturbed(x, near, legal.step.epsilon, legal.bits(x, buyers))

    return make


def by_chance(legal: LegalInputs) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Return the maker of inputs under the first buyer's pattern whose turns are drawn by chance for each block."""

    def make(x: Tensor, draws: torch.Generator) -> Tensor:
        block, (height, width) = legal.step.block, x.shape[2:]
        bits = torch.rand(len(x), 1, height // block, width // block, generator=draws).to(x.device) < 0.5
        return perturbed(x, legal.signs[0], legal.step.epsilon, bits)

    return make


def _of(name: str, values: Sequence[float]) -> dict[str, float | int | None]:
    mean = sum(values) / len(values) if values else None
    return {
        name: None if mean is None else round(mean, 4),
        f"{name}_max": round(max(values), 4) if values else None,
        f"{name}s": len(values),
    }
