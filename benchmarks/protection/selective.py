"""What selective encryption withholds, gives back by tier, and loses to attackers.

    python -m benchmarks.protection.selective PART… [--data PATH] [--quick] [--crops] [--cache DIR] [--bundle DIR]

    dncnn         the pretrained denoiser: selectors side by side, PSNR per tier on BSD68 and Set12
    resnet20      the third-party ResNet-20 for CIFAR-10: the same, over 1 to 40 % of the chosen layers and of all
    vgg-compact   the same for a bundle that the CPU recipe trained (--bundle)
    vgg19         the same for a bundle that the recipe cifar10-vgg19 trained on a GPU (--bundle)
    camvid        a segmentation bundle (--bundle): mean IoU per tier
    localise      finding encrypted kernels by statistics, DnCNN and ResNet-20
    speed         time to score VGG19 and to take it apart
    attacks       retraining with a few images, DnCNN and ResNet-20

Data lie in --data or $TESSERA_DATA. Every piece is kept in --cache, so a broken run goes on where it stopped. Without
--quick the result and its pictures are recorded under benchmarks/results/.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from benchmarks._harness import RESULTS, bar, print_bars, print_table, result_path, write_result
from benchmarks.protection._cache import Cache
from benchmarks.protection._plots import draw_attacks, draw_sweep, draw_tiers
from benchmarks.protection._study import (
    SELECTORS,
    Row,
    Study,
    agreement,
    attack,
    localisation,
    plan_of,
    score_seconds,
    scores,
    sweep,
    tiers,
)
from benchmarks.protection._subjects import (
    COMPACT_LAYERS,
    VGG19_LAYERS,
    cifar_bundle,
    dncnn,
    noisy_psnr,
    resnet20,
    segmentation,
)
from tessera.protect.data import SegmentationDataset, camvid, data_path
from tessera.protect.models import CifarVgg19, PixelModel
from tessera.protect.recipes import CAMVID_SIZE
from tessera.protect.selective import (
    Objective,
    ScoreKind,
    baseline_scores,
    choose,
    cross_entropy,
    fast_scores,
    labelled,
    layers_of,
    make_plan,
    mask_error,
    split,
)
from tessera.protect.selective.decoys import DecoySeed
from tessera.protect.selective.plan import Scope

AREA: Final = "protection"
DNCNN_BUDGETS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
DNCNN_BUDGET: Final = 0.02
SHARES: Final = (0.01, 0.02, 0.04, 0.08, 0.12, 0.16, 0.2, 0.3, 0.4)
"""1 … 40 % of the slices."""
SEEDS: Final = 20
"""Sets of decoys, in sweeps of classifiers."""
CLASS_BUDGET: Final = 0.08
CLASS_BAR: Final = 0.15
TIER_FRACTIONS: Final = (0.0, 0.68, 0.76, 0.84, 0.92, 1.0)
CAMVID_FRACTIONS: Final = (0.0, 0.45, 0.55, 0.65, 0.76, 1.0)
"""The U-Net is as useless at 0.3 as at 0 and has nearly all of its quality back at 0.76."""
AUC_BAR: Final = 0.60
NOISY_MARGIN_DB: Final = 1.0
NETWORK_BAR: Final = 0.005

Bar = dict[str, Any]


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=sorted(PARTS))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "tessera-selective")
    parser.add_argument("--crops", action="store_true", help="judge DnCNN's tiers by the middle of each image only")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    for part in asked.parts:
        PARTS[part](asked, Cache(asked.cache))


def run_dncnn(asked: argparse.Namespace, cache: Cache) -> None:
    """PSNR without a key by selector and budget, and by tier."""
    study = dncnn(data_path(asked.data), quick=asked.quick, whole=not asked.crops)
    quick = asked.quick
    rows = list(sweep(study, cache, DNCNN_BUDGETS[3:4] if quick else DNCNN_BUDGETS, 1))
    table = tiers(study, cache, "pss", DNCNN_BUDGET, fractions=TIER_FRACTIONS)
    settings = {**study.settings, "judged": study.full_images}
    noisy = cache.rows("dncnn noisy", settings, lambda: noisy_psnr(study))
    table.append({"selector": "pss", "tier": "noisy", "fraction": None, **noisy})
    short = (2, 3) if quick else (25, 50, 100)
    agreed = agreement(study, cache, study.chosen[1], short, 4 if quick else 200)
    agreed = agreed if quick else [*agreed, *_times(study, cache)]
    bars = _psnr_bars(table, noisy)
    _record(asked, study, {"sweep": rows, "tiers": table, "agreement": agreed}, bars)
    if not quick:
        plain = next(row["BSD68"] for row in table if row["tier"] == "plain")
        on_subset = {"plain": study.subset(study.run({})), "noisy": study.subset(lambda image: image)}
        draw_sweep(rows, "PSNR (dB), no key", on_subset, "DnCNN, three layers", _picture("dncnn-sweep"))
        drawn = [row for row in table if isinstance(row["tier"], int)]
        draw_tiers(drawn, ("BSD68", "Set12"), {"plain": plain, "noisy": noisy["BSD68"]}, _picture("dncnn-tiers"))


def _psnr_bars(table: Sequence[Row], noisy: dict[str, float]) -> list[Bar]:
    by_tier = [row for row in table if isinstance(row["tier"], int)]
    bars = []
    for name, floor in noisy.items():
        lowest = by_tier[0][name]
        wanted = f"at most {floor + NOISY_MARGIN_DB:.2f} dB"
        bars.append(bar(f"{name}: tier 0 against noisy + 1 dB", wanted, lowest, lowest <= floor + NOISY_MARGIN_DB))
        bars.append(_rising(name, by_tier, name))
    share = by_tier[0]["share_of_network"]
    bars.append(bar("share of the network encrypted", f"at most {NETWORK_BAR}", share, share <= NETWORK_BAR))
    bars.append(_identical(by_tier))
    return bars


def run_resnet20(asked: argparse.Namespace, cache: Cache) -> None:
    """Accuracy without a key by selector and share, and by tier."""
    _classification(asked, cache, resnet20(data_path(asked.data), quick=asked.quick))


def run_vgg_compact(asked: argparse.Namespace, cache: Cache) -> None:
    """Do the same for the bundle of a compact VGG."""
    _bundle_study(asked, cache, "vgg-compact", COMPACT_LAYERS)


def run_vgg19(asked: argparse.Namespace, cache: Cache) -> None:
    """Do the same for the bundle of a VGG19; without one, record that it was not run."""
    if asked.bundle is None:
        note = {"model": "vgg19", "status": "not run: it takes a bundle of the recipe cifar10-vgg19, trained on a GPU"}
        _record_all(asked, "vgg19", {}, {"sweep": [note]}, [])
        return
    _bundle_study(asked, cache, "vgg19", VGG19_LAYERS)


def _bundle_study(asked: argparse.Namespace, cache: Cache, name: str, layers: tuple[int, ...]) -> None:
    model, most = _bundled(asked)
    study = cifar_bundle(name, model, layers, data_path(asked.data), most=most, quick=asked.quick)
    _classification(asked, cache, study)


def run_speed(asked: argparse.Namespace, _cache: Cache) -> None:
    """Seconds to score and take apart a VGG19; its weights are fresh ones, which costs the same."""
    images, labels = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (256,))
    torch.manual_seed(0)
    model = PixelModel(CifarVgg19(), (0.5,) * 3, (0.25,) * 3)
    goal = Objective(model, labelled(images, labels, 32), cross_entropy)
    network = layers_of(model)
    layers = choose(network)
    batches = 2 if asked.quick else 32
    rows: list[Row] = []
    for kind in ("fisher", "gradient", "opening"):
        begin = time.perf_counter()
        found = fast_scores(goal, layers if kind != "opening" else layers[:4], kind, batches=batches)
        rows.append({"step": kind, "layers": len(found), "batches": batches, "seconds": time.perf_counter() - begin})
    scored = baseline_scores(model.state_dict(), layers, "random")
    plan = make_plan(network, layers, scored, budget=CLASS_BUDGET)
    begin = time.perf_counter()
    parts = split(model.state_dict(), plan)
    rows.append({"step": "split", "layers": len(layers), "batches": None, "seconds": time.perf_counter() - begin})
    begin = time.perf_counter()
    patches = parts.patches
    rows.append({"step": "encode", "layers": len(layers), "batches": None, "seconds": time.perf_counter() - begin})
    size = sum(map(len, patches))
    _record_all(asked, "speed", {"model": "vgg19", "budget": CLASS_BUDGET, "patch_bytes": size}, {"speed": rows}, [])


def _classification(asked: argparse.Namespace, cache: Cache, study: Study) -> None:
    quick = asked.quick
    budgets = (CLASS_BUDGET,) if quick else SHARES
    scopes: tuple[Scope, ...] = ("layer", "global")
    rows = [row for scope in scopes for row in sweep(study, cache, budgets, 2 if quick else SEEDS, scope)]
    best: tuple[ScoreKind, ...] = ("pss", "opening")
    judged = [row for row in rows if row["budget"] == CLASS_BUDGET and row["selector"] in best]
    table = [row for kind in best for row in tiers(study, cache, kind, CLASS_BUDGET, "global", TIER_FRACTIONS)]
    layer = max(study.chosen[:3], key=lambda entry: entry.count)
    agreed = agreement(study, cache, layer, (2, 3) if quick else (30, 100), 4 if quick else 200)
    agreed = agreed if quick else [*agreed, *_times(study, cache)]
    falls = [_falls(rows, kind, scope) for kind in SELECTORS for scope in scopes]
    bars = [*_class_bars(judged), *_tier_bars(table)]
    parts = {"sweep": rows, "falls": falls, "tiers": table, "agreement": agreed}
    _record(asked, study, parts, bars)
    if not quick:
        plain = table[-1]["accuracy"]
        for scope, title in (("layer", "chosen layers"), ("global", "whole network")):
            drawn = [row for row in rows if row["scope"] == scope]
            name = f"{study.name}-sweep-{scope}"
            draw_sweep(
                drawn, "accuracy, no key", {"plain": plain, "15 %": CLASS_BAR}, f"{study.name}, {title}", _picture(name)
            )
        shown = [row for row in table if isinstance(row["tier"], int)]
        draw_tiers(shown, ("accuracy",), {"plain": plain}, _picture(f"{study.name}-tiers"))


def _falls(rows: Sequence[Row], kind: str, scope: str) -> Row:
    """Return the smallest measured share at and above which the mean accuracy stays below the bar."""
    mine = [row for row in rows if row["selector"] == kind and row["scope"] == scope]
    below: Row | None = None
    for row in reversed(mine):
        if row["mean"] >= CLASS_BAR:
            break
        below = row
    first = next((row for row in mine if row["mean"] < CLASS_BAR), None)
    return {
        "scope": scope,
        "selector": kind,
        "first_below_15_percent": first and first["budget"],
        "stays_below_from": below and below["budget"],
        "share_of_network": first and first["share_of_network"],
    }


def _class_bars(judged: Sequence[Row]) -> list[Bar]:
    return [
        bar(
            f"{row['selector']}, 8 % of the {'chosen layers' if row['scope'] == 'layer' else 'whole network'}: "
            f"accuracy without a key, mean of {row['seeds']} seeds",
            f"at most {CLASS_BAR:.0%}",
            row["mean"],
            row["mean"] <= CLASS_BAR,
        )
        for row in judged
    ]


def _tier_bars(table: Sequence[Row]) -> list[Bar]:
    bars = []
    for kind in dict.fromkeys(row["selector"] for row in table):
        mine = [row for row in table if row["selector"] == kind and isinstance(row["tier"], int)]
        measure = next(name for name in ("accuracy", "mean_iou") if name in mine[0])
        bars += [_rising(f"{kind} {measure}", mine, measure), _identical(mine)]
    return bars


def run_camvid(asked: argparse.Namespace, cache: Cache) -> None:
    """Mean IoU by tier of a segmentation bundle."""
    found = camvid(data_path(asked.data), crop=CAMVID_SIZE)
    model, most = _bundled(asked)
    assert isinstance(found.train, SegmentationDataset)
    assert isinstance(found.test, SegmentationDataset)
    study = segmentation("camvid", model, found.train, found.test, most=most, quick=asked.quick)
    kind: ScoreKind = "opening"
    rows = list(sweep(study, cache, (0.02, 0.08), 1 if asked.quick else 3, "global", (kind, "random")))
    table = tiers(study, cache, kind, CLASS_BUDGET, "global", CAMVID_FRACTIONS)
    _record(asked, study, {"sweep": rows, "tiers": table}, _tier_bars(table))
    if not asked.quick:
        shown = [row for row in table if isinstance(row["tier"], int)]
        draw_tiers(shown, ("mean_iou",), {"plain": table[-1]["mean_iou"]}, _picture("camvid-tiers"))


def run_localise(asked: argparse.Namespace, cache: Cache) -> None:
    """AUCs of the statistical tests, and the error of the invertible mask."""
    data, seeds = data_path(asked.data), 2 if asked.quick else 5
    rows: list[Row] = []
    masks: list[Row] = []
    for make in (dncnn, resnet20):
        study = make(data, quick=asked.quick)
        rows += localisation(study, cache, "pss", (0.02, 0.08), seeds)
        rows += localisation(study, cache, "fisher", (0.02, 0.08), seeds)
        for layer in study.chosen:
            weights = layer.rows(study.state[layer.weight].double()).numpy()
            error = mask_error(weights, DecoySeed(bytes(32)))
            masks.append({"model": study.name, "layer": layer.weight, **error})
    bars = [
        bar(
            f"{row['model']}, {row['selector']} {row['budget']:.0%}: {test}",
            f"AUC at most {AUC_BAR}",
            row[test],
            row[test] <= AUC_BAR,
        )
        for row in rows
        if row["decoys"] == "kernel"
        for test in ("smoothness", "residual")
    ]
    _record_all(asked, "localise", {"seeds": seeds}, {"auc": rows, "mask_error": masks}, bars)


def run_attacks(asked: argparse.Namespace, cache: Cache) -> None:
    """What retraining gets back; no bar, since nothing in software stops an owner of data."""
    data, quick = data_path(asked.data), asked.quick
    denoiser = dncnn(data, quick=quick)
    classifier = resnet20(data, quick=quick)
    few = (2,) if quick else (2, 10, 100)
    steps = 4 if quick else 80
    shown = {
        "dncnn": attack(denoiser, cache, "pss", DNCNN_BUDGET, few[:2], steps, 2 if quick else 40),
        "resnet20": attack(
            classifier, cache, "pss", CLASS_BUDGET, few if quick else (*few, 500, 5000), 4 if quick else 120, 60
        ),
    }
    rows = {name: [{key: row[key] for key in row if key != "curve"} for row in found] for name, found in shown.items()}
    curves = {f"{name}_curves": [dict(row) for row in found] for name, found in shown.items()}
    plain = {study.name: study.subset(study.run({})) for study in (denoiser, classifier)}
    _record_all(asked, "attacks", {"plain_on_the_same_subset": plain}, rows, [], curves)
    if not quick:
        for study, found in ((denoiser, shown["dncnn"]), (classifier, shown["resnet20"])):
            reference = {"plain": plain[study.name]}
            draw_attacks(found, study.metric, reference, _picture(f"{study.name}-attacks"))


def _times(study: Study, cache: Cache) -> list[Row]:
    """Return how long each kind of score took, for the chosen layers together."""
    rows: list[Row] = []
    for kind in SELECTORS:
        scores(study, cache, kind)
        seconds = score_seconds(study, cache, kind)
        layers = len(plan_of(study, scores(study, cache, kind), 0.5).layers)
        rows.append({"order": kind, "layers": layers, "steps": study.schedule.steps if kind == "pss" else None})
        rows[-1]["seconds"] = seconds
    return rows


def _rising(name: str, rows: Sequence[Row], measure: str) -> Bar:
    gaps = [high[measure] - low[measure] for low, high in itertools.pairwise(rows)]
    return bar(f"{name}: smallest step between tiers", "above 0", min(gaps), min(gaps) > 0)


def _identical(rows: Sequence[Row]) -> Bar:
    name = f"{rows[-1]['selector']}: top tier equal to the plain model to the bit, lower ones not"
    right = [row["bit_identical"] for row in rows] == [False] * (len(rows) - 1) + [True]
    return bar(name, "yes", float(right), right)


def _bundled(asked: argparse.Namespace) -> tuple[nn.Module, int]:
    """Return the program of --bundle with its weights, and its largest batch."""
    if asked.bundle is None:
        raise SystemExit("this part needs --bundle DIR, a bundle that `tessera protect train` wrote")
    from tessera.protect import read_bundle
    from tessera.protect.selective.bundled import module_of

    bundle = read_bundle(asked.bundle)
    return module_of(bundle), bundle.max_batch


def _record(asked: argparse.Namespace, study: Study, parts: dict[str, list[Row]], bars: list[Bar]) -> None:
    layers = {"chosen": [layer.weight for layer in study.chosen], "all": [x.weight for x in choose(study.network)]}
    config = {**study.settings, "metric": study.metric, "schedule": repr(study.schedule), "layers": layers}
    config["network_schedule"] = repr(study.network_schedule)
    config["tiers_judged_on"] = study.full_images
    _record_all(asked, study.name, config, parts, bars)


def _record_all(
    asked: argparse.Namespace,
    name: str,
    config: dict[str, Any],
    parts: dict[str, list[Row]],
    bars: list[Bar],
    unprinted: dict[str, list[Row]] | None = None,
) -> None:
    for title, rows in parts.items():
        print(f"\n{name}: {title}")
        print_table(rows)
    print()
    print_bars(bars)
    rows = [{"table": title, **row} for title, found in {**parts, **(unprinted or {})}.items() for row in found]
    path = None if asked.quick else result_path(AREA, f"selective-{name}")
    write_result(f"selective-{name}", AREA, config, rows, bars, [0], path)


def _picture(name: str) -> Path:
    RESULTS.mkdir(parents=True, exist_ok=True)
    return RESULTS / f"{AREA}-selective-{name}.png"


PARTS: Final[dict[str, Callable[[argparse.Namespace, Cache], None]]] = {
    "dncnn": run_dncnn,
    "resnet20": run_resnet20,
    "vgg-compact": run_vgg_compact,
    "vgg19": run_vgg19,
    "speed": run_speed,
    "camvid": run_camvid,
    "localise": run_localise,
    "attacks": run_attacks,
}


if __name__ == "__main__":
    main()
