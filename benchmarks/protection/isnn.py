"""What input-sensitive networks answer: legal inputs, every kind of illegal one, many buyers, and thieves.

    python -m benchmarks.protection.isnn PART… [--data PATH] [--work DIR] [--only ROW…] [--keep] [--quick]

    cifar10      CIFAR-10 with the CPU recipe: both forms, three seeds, beside Chen & Wu 2018
    fashion      the same for Fashion-MNIST
    camvid       CamVid with the U-Net recipe: both forms, one seed; mean IoU
    buyers       Fashion-MNIST, the form by content, for 1, 4, 16 and 64 buyers at once
    attacks      inversion, averaging, adapter, fine-tuning, pruning, ambiguity against both forms on CIFAR-10, the
                 first two against three seeds by content
    choose       one table beside the block transforms of `keyed_inputs`, from what both have recorded

Every model is a short fine-tune of one unprotected model of the recipe (seed 0), which is trained first and kept in
--work; seeds vary keys, order, draws. Long runs go in pieces: `--only` names the rows to run now, and one that was not
run is recorded as not run, or with `--keep` taken from the recorded result, with its commit. Legal and clean inputs are
measured on the whole test set, the rest on `config`'s samples.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch

from benchmarks._harness import (
    RESULTS,
    bar,
    print_bars,
    print_table,
    result_path,
    unknown_rows,
    with_kept,
    write_result,
)
from benchmarks.protection._isnn_models import (
    LONGER,
    SAMPLE,
    SPECS,
    TUNING,
    WRONG_KEYS,
    WRONG_RECORDS,
    Bench,
    Plan,
    Row,
)
from benchmarks.protection._isnn_plots import draw_inversion, draw_near
from tessera.protect.audit import Budget

AREA: Final = "protection"
LOST_BAR: Final = 0.010
ILLEGAL_BAR: Final = 0.15
ATTACKED: Final = ("averaging", "pattern-pairs", "inversion", "adapter", "fine-tuning", "pruning", "ambiguity")
BUYERS: Final = (1, 4, 16, 64)
SEEDS: Final = (0, 1, 2)


def plans_of(data: str) -> list[Plan]:
    """The rows of one data set."""
    return [Plan(data, form, seed) for form in ("content", "fixed") for seed in SEEDS] + [Plan(data, "chen-wu")]


def buyer_plans() -> list[Plan]:
    """The rows of many buyers."""
    return [Plan("fashion", "content", 0, count) for count in BUYERS]


def attack_plans() -> list[Plan]:
    """The models that are attacked."""
    return [Plan("cifar10", "fixed"), *(Plan("cifar10", "content", seed) for seed in SEEDS)]


def attacks_on(plan: Plan) -> tuple[str, ...]:
    """The attacks on a model: all on the first seed's, on the others those that have a bar."""
    return ATTACKED if plan.seed == 0 else ("averaging", "inversion")


PARTS: Final = {
    "cifar10": lambda: plans_of("cifar10"),
    "fashion": lambda: plans_of("fashion"),
    "camvid": lambda: [Plan("camvid", form) for form in ("content", "fixed")],
    "buyers": buyer_plans,
    "attacks": attack_plans,
    "choose": list,
}


def names_of(part: str) -> Iterator[str]:
    """Yield what `--only` may name: rows, and ROW/ATTACK where models are attacked."""
    for plan in PARTS[part]():
        yield plan.name
        if part == "attacks":
            yield from (f"{plan.name}/{name}" for name in attacks_on(plan))


def table(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the lines that are printed."""
    for row in rows:
        lost = None if "legal" not in row else row["unprotected"] - row["legal"]
        near = row.get("near", {})
        yield {
            "row": row["row"],
            "legal": row.get("legal"),
            "lost": lost,
            "clean": row.get("clean"),
            "wrong key": row.get("wrong_key"),
            "best wrong": row.get("wrong_key_max"),
            "wrong record": row.get("wrong_record"),
            "10 % of signs": near.get("0.1"),
            "30 %": near.get("0.3"),
            "50 %": near.get("0.5"),
            "noise": row.get("noise"),
            "misplaced": row.get("misplaced"),
            "named": row.get("named_by_trace"),
            "CPU s": row.get("fine_tuning_cpu_seconds"),
            "status": row["status"],
        }


def bars_of(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the bars of the measured rows of ours, and whether Chen & Wu are beaten by the mean over seeds."""
    measured = [row for row in rows if row["status"] == "measured"]
    for row in measured:
        if "chen-wu" in row["row"] or row["row"].startswith("camvid"):
            continue  # what mean IoU chance has is not 10 %
        lost = round(row["unprotected"] - row["legal"], 6)  # both are shares of 10,000 images
        yield bar(f"{row['row']}: legal, lost", f"<= {LOST_BAR}", lost, lost <= LOST_BAR)
        for name, words in (("clean", "clean"), ("wrong_key", "wrong keys"), ("wrong_record", "wrong records")):
            yield bar(f"{row['row']}: {words}, mean", f"<= {ILLEGAL_BAR}", row[name], row[name] <= ILLEGAL_BAR)
    theirs = next((row for row in measured if "chen-wu" in row["row"]), None)
    for form in ("content", "fixed"):
        ours = [row for row in measured if f"/{form}/" in row["row"]]
        if theirs is not None and ours:
            gaps = [row["legal"] - max(row["clean"], row["wrong_key"], row["noise"]) for row in ours]
            rival = theirs["legal"] - max(theirs["clean"], theirs["wrong_key"], theirs["noise"])
            gap = statistics.fmean(gaps)
            words = f"{form}: legal less the best of clean, wrong keys and noise, above Chen & Wu's"
            yield bar(words, f"> {rival:.3f}", gap, gap > rival)


def run_models(part: str, bench: Bench, asked: argparse.Namespace) -> None:
    """Train and measure the rows of a part."""
    plans = PARTS[part]()
    path = result_path(AREA, f"isnn-{part}")
    rows = [bench.row(plan, run=asked.only is None or plan.name in asked.only) for plan in plans]
    rows = with_kept(rows, path) if asked.keep else rows
    print_table(list(table(rows)))
    bars = list(bars_of(rows))
    print_bars(bars)
    if asked.quick or all(row["status"] != "measured" for row in rows):
        return
    write_result(f"isnn-{part}", AREA, _config(), rows, bars, sorted({plan.seed for plan in plans}), path)
    done = [row for row in rows if row.get("near")]
    if done:
        draw_near(done, RESULTS / f"{path.stem}.png")
    print(f"written to {path}")


def run_attacks(bench: Bench, asked: argparse.Namespace) -> None:
    """Carry the attacks out on both forms."""
    budget = Budget(
        name="benchmark", minutes=60, held_out=64 if asked.quick else 500, wrong_keys=100,
        random_keys=5 if asked.quick else 300, search_images=32 if asked.quick else 64, evaluations=10,
        steps=3 if asked.quick else 150,
    )  # fmt: skip
    rows: list[Row] = []
    for plan in attack_plans():
        row = bench.row(plan, run=asked.only is None or plan.name in asked.only)
        for name in attacks_on(plan):
            wanted = asked.only is None or f"{plan.name}/{name}" in asked.only
            if row["status"] == "measured" and (wanted or bench.has_attack(plan, name, budget)):
                rows += bench.attack(plan, name, budget)
            else:
                rows.append({"row": plan.name, "attack": name, "label": "not run", "score": None})
    path = result_path(AREA, "isnn-attacks")
    rows = with_kept(rows, path, ("row", "attack")) if asked.keep else rows
    shown = ("row", "attack", "label", "images", "work", "score", "from_scratch", "note", "seconds")
    print_table([{name: row.get(name) for name in shown} for row in rows])
    bars = list(attack_bars(rows))
    print_bars(bars)
    if asked.quick:
        return
    config = _config() | {"budget": dataclasses.asdict(budget)}
    write_result("isnn-attacks", AREA, config, rows, bars, sorted({plan.seed for plan in attack_plans()}), path)
    draw_inversion(rows, RESULTS / f"{path.stem}.png")
    print(f"written to {path}")


def attack_bars(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the bars: by content averaging gets nothing, inversion with 100 images half of what it gets elsewhere.

    Scores are means over the seeds that were attacked.
    """
    scores: dict[tuple[str, str, float | None], list[float]] = {}
    for row in rows:
        if row["score"] is not None:
            scores.setdefault((row["row"].split("/")[1], row["attack"], row.get("at")), []).append(row["score"])
    found = {key: statistics.fmean(values) for key, values in scores.items()}
    averaged = [score for (form, name, _), score in found.items() if (form, name) == ("content", "averaging")]
    if averaged:
        wanted = f"at most {ILLEGAL_BAR}, as clean images"
        yield bar("content: the best of averaging", wanted, max(averaged), max(averaged) <= ILLEGAL_BAR)
    content, fixed = found.get(("content", "inversion", 100)), found.get(("fixed", "inversion", 100))
    if content is not None and fixed is not None:
        chance = 0.1
        share = (content - chance) / max(fixed - chance, 1e-9)
        words = "inversion with 100 images: above chance by content, of what it is in the fixed form"
        yield bar(words, "below 0.5", share, share < 0.5)


def run_choose(asked: argparse.Namespace) -> None:
    """Put the recorded results of the block transforms and of input-sensitive networks into one table."""
    rows: list[Row] = []
    keyed, isnn = result_path(AREA, "keyed-inputs-cpu"), result_path(AREA, "isnn-cifar10")
    base = 0.0
    for row in json.loads(keyed.read_text(encoding="utf-8"))["rows"]:
        _, transform, seed = row["row"].split("/")
        if transform == "unprotected":
            base = row["right_key"]
        elif row["status"] == "measured":
            rows.append(
                _choice(transform, base, row["right_key"], row["plain"], row["wrong_mean"], max(row["wrong_keys"]))
                | {"half wrong": statistics.fmean(row["near_keys"]["0.5"]), "seed": seed}
            )
    for row in json.loads(isnn.read_text(encoding="utf-8"))["rows"]:
        if row["status"] == "measured":
            found = _choice(
                row["spec"], row["unprotected"], row["legal"], row["clean"], row["wrong_key"], row["wrong_key_max"]
            )
            rows.append(found | {"half wrong": row.get("near", {}).get("0.5"), "seed": row["row"].split("/")[2]})
    print_table(rows)
    if not asked.quick:
        config = {
            "from": [keyed.name, isnn.name],
            "half wrong": "a key of which half of the permutation or signs is wrong",
        }
        write_result("isnn-choose", AREA, config, rows, [], [0], result_path(AREA, "isnn-choose"))


def _choice(name: str, base: float, right: float, plain: float, wrong: float, best: float) -> Row:
    return {
        "transform": name, "right key": right, "lost": base - right, "plain": plain, "wrong key": wrong,
        "best wrong": best,
    }  # fmt: skip


def _config() -> Row:
    return {
        "specs": SPECS,
        "tuning": TUNING,
        "longer": {"/".join(names): changes for names, changes in LONGER.items()},
        "wrong_keys": WRONG_KEYS,
        "wrong_records": WRONG_RECORDS,
        "sample": SAMPLE,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=sorted(PARTS))
    parser.add_argument("--data", type=Path, help="folder with the data sets; default: TESSERA_DATA")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tessera-isnn")
    parser.add_argument("--only", nargs="*", metavar="ROW", help="run these rows; none: only report what was run")
    parser.add_argument("--keep", action="store_true", help="take rows that are not run now from the recorded result")
    parser.add_argument("--quick", action="store_true", help="does it run at all? records nothing")
    asked = parser.parse_args()
    wrong = unknown_rows(asked.only, [name for part in asked.parts for name in names_of(part)])
    if wrong:
        parser.error(wrong)
    bench = Bench(asked.data, asked.work, quick=asked.quick)
    for part in asked.parts:
        if part == "attacks":
            run_attacks(bench, asked)
        elif part == "choose":
            run_choose(asked)
        else:
            run_models(part, bench, asked)


if __name__ == "__main__":
    main()
