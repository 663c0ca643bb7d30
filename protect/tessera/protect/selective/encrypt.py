"""From a bundle to a tiered bundle: score, choose, take apart, and measure what every tier is worth.

    made = encrypt_bundle(read_bundle(folder), data, Settings(budget=0.08), key=key)
    write_bundle(made.bundle, out)          # public weights with decoys, one patch per tier: all still the vendor's

Scores come from the training half of `data`, qualities from its test half. What is measured is what a holder of the
right input key gets; the lowest tier's quality is what the file alone is worth.
"""

import dataclasses
import itertools
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse, WrongKey
from tessera.keystore.package import fields
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey
from tessera.protect.bundle import Bundle, BundleTier
from tessera.protect.data import SegmentationDataset, Split
from tessera.protect.evaluate import metric_of, score
from tessera.protect.selective.bundled import module_of
from tessera.protect.selective.decoys import DecoyKind, check_kind
from tessera.protect.selective.measure import as_module, with_state
from tessera.protect.selective.objective import Batch, Objective, cross_entropy, labelled
from tessera.protect.selective.plan import PAPER_FRACTIONS, Plan, Scope, check_budget, make_plan
from tessera.protect.selective.pss import SHORT, Progress, Schedule
from tessera.protect.selective.scoring import ScoreKind, score_by
from tessera.protect.selective.split import apply, same_bits, split
from tessera.protect.selective.units import choose, layers_of
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform

USELESS_MARGIN = 0.05
"""How much better than guessing the lowest tier may be and still count as useless."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to encrypt, how it is chosen, and how many tiers there are; see `make_plan` and `score_by`."""

    budget: float
    fractions: tuple[float, ...] = PAPER_FRACTIONS
    layers: tuple[str, ...] | None = None
    """Names of weights; None for all convolutions larger than 1x1."""
    scope: Scope = "layer"
    scores: ScoreKind = "opening"
    decoys: DecoyKind = "kernel"
    schedule: Schedule = SHORT
    batch: int = 32
    batches: int = 32
    seed: int = 0
    """Of the scores; decoys are always fresh."""
    names: tuple[str, ...] | None = None
    """Of the tiers, lowest first; None for tier-1, tier-2, … and full."""


@dataclass(frozen=True)
class Encrypted:
    """What `encrypt_bundle` gives."""

    bundle: Bundle
    """With tiers, lowest first."""
    report: dict[str, Any]
    """What was chosen and measured, without a secret: no positions. It is in the bundle's report as `selective`."""


def encrypt_bundle(
    bundle: Bundle,
    data: Split,
    settings: Settings,
    *,
    key: InputKey | None = None,
    progress: Progress | None = None,
) -> Encrypted:
    """Return `bundle` with the plan's units encrypted and every tier measured; `progress` follows the scores.

    Raises `ApiMisuse` for a bundle that has tiers, data of another shape or with labels that the model has no classes
    for, settings that no plan can follow and a model without layers to encrypt; `WrongKey` when `key` is not the one
    that the model was trained with; `Malformed` for weights that are not finite.
    """
    _check(bundle, data)
    check_budget(settings.budget, settings.fractions, settings.scope)
    names = _names(settings)
    check_kind(settings.decoys)
    transform = _transform(bundle, key)
    model = module_of(bundle)
    network = layers_of(model)
    layers = choose(network, settings.layers)
    begin = time.perf_counter()
    scores = score_by(
        settings.scores,
        Objective(
            model,
            _transformed(labelled(*_arrays(data), min(settings.batch, bundle.max_batch)), transform),
            cross_entropy,
        ),
        layers,
        schedule=settings.schedule,
        together=settings.scope == "global",
        batches=settings.batches,
        seed=settings.seed,
        progress=progress,
    )
    seconds = time.perf_counter() - begin
    plan = make_plan(
        network, layers, scores, budget=settings.budget, fractions=settings.fractions, scope=settings.scope
    )
    return _taken_apart(bundle, model, data, plan, settings, names, transform, seconds)


def _taken_apart(
    bundle: Bundle,
    model: nn.Module,
    data: Split,
    plan: Plan,
    settings: Settings,
    names: tuple[str, ...],
    transform: TorchTransform | None,
    seconds: float,
) -> Encrypted:
    parts = split(bundle.tensors, plan, settings.decoys)
    states = [apply(parts.public, parts.increments, tier) for tier in range(plan.tiers)]
    if not same_bits(states[-1], bundle.tensors):
        raise ApiMisuse("the top tier is not the model to the bit; nothing is written")  # cannot happen: a bug of ours
    metric = metric_of(data.test)
    runs = [as_module(with_state(model, state, most=bundle.max_batch)) for state in states]
    values = [float(score(run, data.test, torch.device("cpu"), transform)) for run in runs]
    tiers = tuple(
        BundleTier(name, {metric: value}, patch)
        for name, value, patch in zip(names, values, parts.patches, strict=True)
    )
    report = {
        "settings": {**dataclasses.asdict(settings), "layers": [layer.weight for layer in plan.layers]},
        "encrypted": plan.shares().to_json(),
        "metric": metric,
        "tiers": [
            {"tier": tier + 1, "name": made.name, "fraction": plan.fractions[tier], **made.quality}
            for tier, made in enumerate(tiers)
        ],
        "rising": all(low < high for low, high in itertools.pairwise(values)),
        "lowest_is_useless": values[0] <= _chance(data) + USELESS_MARGIN if plan.fractions[0] == 0 else None,
        "score_seconds": round(seconds, 2),
        "test_samples": len(data.test),
    }
    made = dataclasses.replace(
        bundle, tensors=parts.public, tiers=tiers, report={**(bundle.report or {}), "selective": report}
    )
    return Encrypted(made, report)


def _names(settings: Settings) -> tuple[str, ...]:
    """Return the tiers' names. Raises `ApiMisuse` unless there is one for each, none twice, each a label of the
    package format (1 to 64 printable ASCII characters) and no number: licences name a tier by number or name.
    """
    count = len(settings.fractions)
    if settings.names is None:
        return (*(f"tier-{tier}" for tier in range(1, count)), "full")
    names = settings.names
    fit = all(fields.LABEL.fullmatch(name) and not name.isdigit() for name in names)
    if len(names) != count or len(set(names)) != count or not fit:
        raise ApiMisuse(
            f"the names of {count} tiers are {count} different ones, not {', '.join(map(repr, names)) or 'none'}",
            remedy="Give one for each fraction, the lowest tier first: up to 64 printable ASCII characters, no number.",
        )
    return names


def _chance(data: Split) -> float:
    """Return the quality of guessing: the commonest class every time; for a segmentation its share of the mean IoU."""
    test = data.test
    if isinstance(test, SegmentationDataset):
        counts = torch.bincount(test.labels.reshape(-1), minlength=256)[: test.classes]
        return float(counts.max() / counts.sum().clamp(min=1) / (counts > 0).sum().clamp(min=1))
    return float(torch.bincount(test.labels).max()) / len(test)


def _arrays(data: Split) -> tuple[Tensor, Tensor]:
    return data.train.images, data.train.labels


def _transformed(batch: Batch, transform: TorchTransform | None) -> Batch:
    if transform is None:
        return batch

    def draw(draws: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = batch(draws)
        return transform(images), labels

    return draw


def _check(bundle: Bundle, data: Split) -> None:
    if bundle.tiers:
        raise ApiMisuse("the bundle has tiers already", remedy="Encrypt the bundle that training wrote.")
    wanted = tuple(bundle.inputs[0].shape[1:])
    for part in data:
        if part.shape != wanted:
            raise ApiMisuse(f"the model takes images of {wanted}, and the data has {part.shape}")
    _check_labels(tuple(bundle.outputs[0].shape[1:]), data)


def _check_labels(gives: tuple[int, ...], data: Split) -> None:
    """Raise `ApiMisuse` for labels that the model's answers cannot be held against: the qualities would be signed."""
    maps = isinstance(data.test, SegmentationDataset)
    if len(gives) != (3 if maps else 1) or (maps and gives[1:] != data.test.shape[1:]):
        what = "each pixel" if maps else "each image"
        raise ApiMisuse(
            f"the data has a label for {what}, and the model gives {gives} for an image",
            remedy="Encrypt a model that gives a score for each class; for other models see tessera.protect.selective.",
        )
    classes = max(part.classes for part in data)
    if classes > gives[0]:
        raise ApiMisuse(
            f"the data has labels up to {classes - 1}, and the model has {gives[0]} classes",
            remedy="Give the labels that the model was trained with, counted from 0.",
        )


def _transform(bundle: Bundle, key: InputKey | None) -> TorchTransform | None:
    ids = bundle.input_key_ids or ((bundle.input_key_id,) if bundle.input_key_id is not None else ())
    if bundle.transform is None or not ids:
        if key is not None:
            raise ApiMisuse("the model takes plain inputs, so it has no input key", remedy="Leave the key out.")
        return None
    if key is None:
        raise ApiMisuse("the model takes keyed inputs, so its tiers are measured with its input key")
    if input_key_id(key) not in ids:
        raise WrongKey(
            "the input key is not the one the model was trained with",
            reason="wrong-input-key",
            remedy=f"Give the key with the id {ids[0]}, or the master and --buyers for a model made for buyers.",
        )
    channels, height, width = bundle.inputs[0].shape[1:]
    return TorchTransform(Transform(bundle.transform, key, channels, height, width))
