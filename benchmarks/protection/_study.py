"""One model under selective encryption: scores, sweeps, tiers, localisation and retraining, whatever its task."""

import hashlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from benchmarks.protection._cache import Cache
from tessera.protect.selective import (
    PAPER_FRACTIONS,
    Attack,
    DecoySeed,
    Layer,
    Objective,
    Plan,
    Schedule,
    ScoreKind,
    Scores,
    apply,
    choose,
    layers_of,
    localise,
    make_plan,
    mean_auc,
    rank_agreement,
    retrain,
    same_bits,
    score_by,
    split,
    with_state,
)
from tessera.protect.selective import decoys as decoys_module
from tessera.protect.selective.decoys import DecoyKind
from tessera.protect.selective.measure import Apply
from tessera.protect.selective.objective import Batch
from tessera.protect.selective.plan import Scope

DECOY_CODE: Final = hashlib.sha256(Path(decoys_module.__file__).read_bytes()).hexdigest()[:12]
"""Part of the key of every kept piece that decoys decide: other decoys are measured again."""
SELECTORS: Final[tuple[ScoreKind, ...]] = (
    "pss", "opening", "gradient", "fisher", "random", "descend", "ascend", "mean",
)  # fmt: skip

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A model, what it is judged by and how long it is studied."""

    name: str
    metric: str
    model: nn.Module
    objective: Objective
    chosen: tuple[Layer, ...]
    """The layers that a per-layer budget takes from."""
    subset: Callable[[Apply], float]
    """Quality on the evaluation subset of the sweeps."""
    full: Callable[[Apply], dict[str, float]]
    """Quality on the full test sets, by name."""
    batches: int
    """For one-shot scores."""
    schedule: Schedule
    network_schedule: Schedule
    """For all layers at once."""
    full_images: str = "all"
    """What `full` judges by, for the record."""
    settings: Mapping[str, Any]
    """What else decides the numbers; recorded, and part of every cache key."""
    most: int | None = None
    """The largest batch that the model takes."""
    samples: Callable[[int], Batch] | None = None
    """Batches of an attacker who has so many training images."""

    @property
    def network(self) -> tuple[Layer, ...]:
        """All layers: the denominator."""
        return layers_of(self.model)

    @property
    def state(self) -> dict[str, Tensor]:
        """The vendor's weights."""
        return {name: value.detach() for name, value in self.model.state_dict().items()}

    def run(self, state: Mapping[str, Tensor]) -> Apply:
        """Return the function that runs the model with other weights."""
        return with_state(self.model, state, most=self.most)

    def layers(self, scope: Scope) -> tuple[Layer, ...]:
        """Return what a budget takes from: the chosen layers, or every one that `choose` takes by itself."""
        return self.chosen if scope == "layer" else choose(self.network)


def bench_seed(number: int) -> DecoySeed:
    """Return the decoy seed of repetition `number`: the same on every machine, so of no use as a secret."""
    return DecoySeed(hashlib.sha256(f"tessera/benchmark/decoys/{number}".encode()).digest())


def scores(study: Study, cache: Cache, kind: ScoreKind, scope: Scope = "layer") -> Scores:
    """Return cached scores of the chosen layers, or (global) of all layers learned together."""
    together = scope == "global"
    schedule = study.network_schedule if together else study.schedule
    settings = {"study": dict(study.settings), "kind": kind, "scope": scope, "schedule": repr(schedule)}

    def make() -> Scores:
        print(f"{study.name}: scores {kind} ({scope})", flush=True)
        begin = time.perf_counter()
        made = score_by(
            kind,
            study.objective,
            study.layers(scope),
            schedule=schedule,
            together=together,
            batches=study.batches,
        )
        seconds = round(time.perf_counter() - begin, 2)
        cache.rows(f"{study.name} seconds {kind} {scope}", settings, lambda: seconds)
        return made

    return cache.scores(f"{study.name} scores {kind} {scope}", settings, make)


def score_seconds(study: Study, cache: Cache, kind: ScoreKind, scope: Scope = "layer") -> float:
    """Return how long the scores took when they were made."""
    schedule = study.network_schedule if scope == "global" else study.schedule
    settings = {"study": dict(study.settings), "kind": kind, "scope": scope, "schedule": repr(schedule)}
    found: float = cache.rows(f"{study.name} seconds {kind} {scope}", settings, lambda: -1.0)
    return found


def plan_of(
    study: Study, found: Scores, budget: float, scope: Scope = "layer", fractions: Sequence[float] = (0, 1)
) -> Plan:
    """Return the plan of a budget in the study."""
    layers = study.layers(scope)
    return make_plan(study.network, layers, found, budget=budget, fractions=fractions, scope=scope)


def sweep(
    study: Study,
    cache: Cache,
    budgets: Sequence[float],
    seeds: int,
    scope: Scope = "layer",
    selectors: Iterable[ScoreKind] = SELECTORS,
    decoys: DecoyKind = "kernel",
) -> Iterator[Row]:
    """Yield the quality without a key for every selector and budget, over `seeds` sets of decoys."""
    for kind in selectors:
        found = scores(study, cache, kind, scope)
        for budget in budgets:
            settings: Row = {
                "study": dict(study.settings),
                "kind": kind,
                "budget": budget,
                "scope": scope,
                "seeds": seeds,
            }
            settings |= {
                "decoys": decoys,
                "code": DECOY_CODE,
                "schedules": repr((study.schedule, study.network_schedule)),
            }

            def make(
                kind: ScoreKind = kind, budget: float = budget, found: Scores = found, scope: Scope = scope
            ) -> Row:
                plan = plan_of(study, found, budget, scope)
                values = [_locked(study, plan, seed, decoys) for seed in range(seeds)]
                print(f"{study.name}: {scope} {kind} {budget:g} {statistics.fmean(values):.4f}", flush=True)
                shares = plan.shares().to_json()
                return {"scope": scope, "selector": kind, "budget": budget, **shares, "decoys": decoys, **_of(values)}

            yield cache.rows(f"{study.name} sweep {kind} {budget}", settings, make)


def _locked(study: Study, plan: Plan, seed: int, decoys: DecoyKind) -> float:
    return study.subset(study.run(split(study.state, plan, decoys, seed=bench_seed(seed)).public))


def _of(values: Sequence[float]) -> Row:
    mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": mean, "stdev": spread, "lowest": min(values), "highest": max(values), "seeds": len(values)}


def tiers(
    study: Study,
    cache: Cache,
    kind: ScoreKind,
    budget: float,
    scope: Scope = "layer",
    fractions: Sequence[float] = PAPER_FRACTIONS,
) -> list[Row]:
    """Return the full-set quality of the plain model and of every tier; the top tier is compared by bits too."""
    plan = plan_of(study, scores(study, cache, kind, scope), budget, scope, fractions)
    parts = split(study.state, plan, seed=bench_seed(0))
    base: Row = {"study": dict(study.settings), "kind": kind, "budget": budget, "scope": scope, "f": list(fractions)}
    base |= {"schedules": repr((study.schedule, study.network_schedule)), "judged": study.full_images}
    base |= {"code": DECOY_CODE}

    def full(label: str, state: Mapping[str, Tensor]) -> dict[str, float]:
        if same_bits(state, study.state):
            label = "plain"  # the same weights give the same answers

        def make() -> dict[str, float]:
            values = study.full(study.run(state))
            print(f"{study.name}: {kind} {label} {values}", flush=True)
            return values

        found: dict[str, float] = cache.rows(f"{study.name} tier {kind} {label}", {**base, "tier": label}, make)
        return found

    rows: list[Row] = []
    for tier, fraction in enumerate(fractions):
        state = apply(parts.public, parts.increments, tier)
        shares = plan.shares(tier).to_json()
        bits = same_bits(state, study.state)
        rows.append({"selector": kind, "tier": tier, "fraction": fraction, **shares, "bit_identical": bits})
        rows[-1] |= full(f"tier-{tier}", state)
    rows.append({"selector": kind, "tier": "plain", "fraction": None, **full("plain", study.state)})
    return rows


def agreement(study: Study, cache: Cache, layer: Layer, steps: Sequence[int], reference: int) -> list[Row]:
    """Return how well short schedules and one-shot scores of one layer agree with PSS of `reference` steps, which are
    the study's own where it learns each layer for as many.
    """

    def learned(count: int, seed: int = 0) -> Scores:
        schedule = Schedule(steps=count)
        settings = {"study": dict(study.settings), "layer": layer.weight, "schedule": repr(schedule), "seed": seed}

        def make() -> Scores:
            print(f"{study.name}: PSS of {layer.weight}, {count} steps", flush=True)
            return score_by("pss", study.objective, [layer], schedule=schedule, seed=seed)

        return cache.scores(f"{study.name} agreement {count}", settings, make)

    own = layer in study.chosen and study.schedule == Schedule(steps=reference)
    long = {layer.weight: scores(study, cache, "pss")[layer.weight]} if own else learned(reference)
    found: dict[str, Scores] = {f"pss {count} steps": learned(count) for count in steps}
    found[f"pss {reference} steps, other seed"] = learned(reference, 1)
    found |= {
        kind: {layer.weight: scores(study, cache, kind)[layer.weight]}
        for kind in SELECTORS
        if kind != "pss" and layer in study.chosen
    }
    return [
        {"layer": layer.weight, "order": name, "reference": f"pss {reference} steps", **_agree(value, long)}
        for name, value in found.items()
    ]


def _agree(found: Scores, reference: Scores) -> dict[str, float]:
    return rank_agreement(found, reference).to_json()


def localisation(study: Study, cache: Cache, kind: ScoreKind, budgets: Sequence[float], seeds: int) -> list[Row]:
    """Return the mean AUCs of every statistical test, for both kinds of decoys and for no decoys at all."""
    rows = []
    for budget in budgets:
        plan = plan_of(study, scores(study, cache, kind), budget)
        rows.append(_localised(study, kind, budget, "(true weights)", [mean_auc(localise(study.state, plan), plan)]))
        for decoys in ("kernel", "normal"):
            parts = [split(study.state, plan, decoys, seed=bench_seed(seed)) for seed in range(seeds)]
            found = [mean_auc(localise(part.public, plan), plan) for part in parts]
            rows.append(_localised(study, kind, budget, decoys, found))
    return rows


def _localised(study: Study, kind: str, budget: float, decoys: str, found: list[dict[str, float]]) -> Row:
    means = {name: round(statistics.fmean(entry[name] for entry in found), 4) for name in found[0]}
    worst = {f"{name}_highest": round(max(entry[name] for entry in found), 4) for name in ("smoothness", "residual")}
    row = {"model": study.name, "selector": kind, "budget": budget, "decoys": decoys, "seeds": len(found)}
    return {**row, **means, **{name: value for name, value in worst.items() if name[: name.index("_")] in means}}


def attack(
    study: Study, cache: Cache, kind: ScoreKind, budget: float, counts: Sequence[int], steps: int, every: int
) -> list[Row]:
    """Return the quality that retraining reaches with so many images, for each of the three attackers."""
    assert study.samples is not None
    plan = plan_of(study, scores(study, cache, kind), budget)
    public = split(study.state, plan, seed=bench_seed(0)).public
    locked = sorted(plan.selected())
    rows: list[Row] = []
    for count in counts:
        for target in ("locked", "all", "scratch"):
            settings: Row = {"study": dict(study.settings), "kind": kind, "budget": budget, "count": count}
            settings |= {"steps": steps}
            settings["code"] = DECOY_CODE

            def make(count: int = count, target: str = target) -> list[list[float]]:
                assert study.samples is not None
                plot = retrain(
                    study.model,
                    public,
                    study.samples(count),
                    study.objective.loss,
                    lambda victim: study.subset(with_state(victim, {}, most=study.most)),
                    Attack(target=target, steps=steps, every=every),  # type: ignore[arg-type]  # from the tuple above
                    locked=locked,
                )
                print(f"{study.name}: attack {target} with {count} images {plot}", flush=True)
                return [[step, value] for step, value in plot]

            curve = cache.rows(f"{study.name} attack {target} {count}", {**settings, "target": target}, make)
            best = max(value for _, value in curve)
            rows.append(
                {"model": study.name, "selector": kind, "budget": budget, "images": count, "trained": target}
                | {"steps": steps, "before": curve[0][1], "after": curve[-1][1], "best": best, "curve": curve}
            )
    return rows
