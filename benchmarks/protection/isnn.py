"""What input-sensitive networks answer: legal inputs, every kind of illegal one, many buyers, and thieves.

    python -m benchmarks.protection.isnn PART… [--data PATH] [--work DIR] [--only ROW…] [--quick]

    cifar10      CIFAR-10 with the CPU recipe: both forms, three seeds, beside Chen & Wu 2018
    fashion      the same for Fashion-MNIST
    buyers       Fashion-MNIST, the form by content, for 1, 4, 16 and 64 buyers at once
    attacks      inversion, averaging, adapter, fine-tuning, pruning, ambiguity against both forms on CIFAR-10
    choose       one table beside the block transforms of `keyed_inputs`, from what both have recorded

Every model is a short fine-tune of one unprotected model of the recipe (seed 0), which is trained first and kept in
--work; seeds vary keys, order, draws. Long runs go in pieces: `--only` names the rows to run now, and one that was not
run is recorded as not run. Legal and clean inputs are measured on the whole test set, the rest on `config`'s samples.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks._harness import RESULTS, bar, print_bars, print_table, result_path, write_result
from benchmarks.protection._cache import Cache
from benchmarks.protection._chen_wu import ChenWuRun, Transformation, bytes_of
from benchmarks.protection._isnn_plots import draw_inversion, draw_near
from tessera.keystore.copyright import CopyrightRecord, bound_key, buyer_input_key
from tessera.keystore.secrets import InputKey
from tessera.protect import RECIPES, TrainingTask, train
from tessera.protect.audit import ATTACKS, Budget, Meter, Sample, subject_of_module
from tessera.protect.data import ArrayDataset, Split
from tessera.protect.evaluate import evaluation_keys, score
from tessera.protect.isnn import IsnnAccuracy, IsnnSettings, measure, trace
from tessera.protect.isnn.run import IsnnRun
from tessera.transforms import TransformSpec

AREA: Final = "protection"
SEEDS: Final = (0, 1, 2)
BUYERS: Final = (1, 4, 16, 64)
WRONG_KEYS: Final = 100
WRONG_RECORDS: Final = 20
SAMPLE: Final = 300
"""Test images that wrong keys, wrong records, near keys, noise and traces are measured on."""
LOST_BAR: Final = 0.010
ILLEGAL_BAR: Final = 0.15
ATTACKED: Final = ("averaging", "pattern-pairs", "inversion", "adapter", "fine-tuning", "pruning", "ambiguity")
RECIPE_OF: Final = {"cifar10": "cifar10-fast", "fashion": "fashion-mnist-fast"}
SPECS: Final = {
    "cifar10": {"fixed": "isnn:4:16", "content": "isnn:4:16:content"},
    "fashion": {"fixed": "isnn:14:16", "content": "isnn:14:16:content"},
}
TUNING: Final[dict[str, dict[str, Any]]] = {
    "cifar10": {"epochs": 2, "batch": 128, "learning_rate": 0.05, "muon_rate": 0.02},
    "fashion": {"epochs": 2, "batch": 64, "learning_rate": 0.05, "muon_rate": 0.02},
}
"""A fine-tune's settings in the place of the recipe's."""

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """One row: a data set, a form or the baseline, a seed and a number of buyers."""

    data: str
    form: str
    seed: int = 0
    buyers: int = 1

    @property
    def name(self) -> str:
        """How `--only` and the tables call it."""
        return f"{self.data}/{self.form}/{self.seed}/{self.buyers}"


def plans_of(data: str) -> list[Plan]:
    """The rows of one data set."""
    return [Plan(data, form, seed) for form in ("content", "fixed") for seed in SEEDS] + [Plan(data, "chen-wu")]


def buyer_plans() -> list[Plan]:
    """The rows of many buyers."""
    return [Plan("fashion", "content", 0, count) for count in BUYERS]


def attack_plans() -> list[Plan]:
    """The models that are attacked."""
    return [Plan("cifar10", "fixed"), Plan("cifar10", "content")]


PARTS: Final = {
    "cifar10": lambda: plans_of("cifar10"),
    "fashion": lambda: plans_of("fashion"),
    "buyers": buyer_plans,
    "attacks": attack_plans,
    "choose": list,
}


def keys_of(plan: Plan) -> list[InputKey]:
    """Return the bound keys of a row's buyers: the same in every run, so that they protect nothing."""
    master = evaluation_keys(1, 7000 + plan.seed)[0]
    records = [CopyrightRecord("Example vendor", f"Buyer {number}", f"L-{number}") for number in range(plan.buyers)]
    return [bound_key(buyer_input_key(master, record), record) for record in records]


def wrong_records_of(plan: Plan) -> list[InputKey]:
    """Return the first buyer's key bound to records that are not theirs."""
    master = evaluation_keys(1, 7000 + plan.seed)[0]
    key = buyer_input_key(master, CopyrightRecord("Example vendor", "Buyer 0", "L-0"))
    records = [CopyrightRecord("Example vendor", "Buyer 0", f"L-forged-{number}") for number in range(WRONG_RECORDS)]
    return [bound_key(key, record) for record in records]


class Bench:
    """Trains, measures and remembers."""

    def __init__(self, data: Path | None, work: Path, *, quick: bool) -> None:
        self._data, self._work, self._quick = data, work, quick
        self._cache = Cache(work)
        self._tasks: dict[str, TrainingTask] = {}

    def row(self, plan: Plan, *, run: bool) -> Row:
        """Return the row of `plan`, measured now or before when `run`, else only if it was measured before."""
        settings = self._settings(plan)
        if not run and not self._cache.has(plan.name, settings):
            return {"row": plan.name, "status": "not run"}
        make = self._chen_wu if plan.form == "chen-wu" else self._isnn
        row: Row = self._cache.rows(plan.name, settings, lambda: make(plan))
        return row

    def attack(self, plan: Plan, name: str, budget: Budget) -> list[Row]:
        """Return the rows of one attack on the model of `plan`."""
        settings = [self._settings(plan), name, dataclasses.asdict(budget)]
        found: list[Row] = self._cache.rows(f"{plan.name} {name}", settings, lambda: self._attack(plan, name, budget))
        return found

    def has_attack(self, plan: Plan, name: str, budget: Budget) -> bool:
        """Whether an attack was carried out before."""
        return self._cache.has(f"{plan.name} {name}", [self._settings(plan), name, dataclasses.asdict(budget)])

    def _settings(self, plan: Plan) -> Row:
        return dataclasses.asdict(plan) | {
            "spec": SPECS[plan.data].get(plan.form),
            "tuning": TUNING[plan.data],
            "quick": self._quick,
            "torch": torch.__version__,
            "sample": SAMPLE,
            "isnn": dict(IsnnSettings().to_json()),
        }

    def task(self, data: str) -> TrainingTask:
        """Return the recipe's task."""
        if data not in self._tasks:
            task = RECIPES[RECIPE_OF[data]].task(self._data)
            if self._quick:
                small = Split(_some(task.data.train, 256), _some(task.data.test, 64))
                task = dataclasses.replace(task, data=small, epochs=1)
            self._tasks[data] = task
        return self._tasks[data]

    def unprotected(self, data: str) -> tuple[dict[str, Tensor], float]:
        """Return weights and accuracy of the unprotected model, trained now unless it was before."""
        kept = self._work / f"unprotected-{data}{'-quick' if self._quick else ''}.pt"
        if not kept.exists():
            trained = train(
                self.task(data), transform=None, key=None, wrong_keys=0,
                checkpoint_dir=self._work / f"checkpoints-{data}{'-quick' if self._quick else ''}",
                progress=lambda state: _say(f"unprotected {data}: {state}"),
            )  # fmt: skip
            torch.save((trained.model.state_dict(), trained.accuracy.plain), kept)
        weights, right = torch.load(kept, weights_only=True)
        return weights, right

    def _tuning(self, plan: Plan) -> TrainingTask:
        settings = {name: value for name, value in TUNING[plan.data].items() if name != "epochs"}
        return dataclasses.replace(self.task(plan.data), **settings)

    def _isnn(self, plan: Plan) -> Row:
        weights, unprotected = self.unprotected(plan.data)
        spec, keys = TransformSpec.parse_text(SPECS[plan.data][plan.form]), keys_of(plan)
        begun = time.process_time()
        run = IsnnRun(
            self._tuning(plan), spec, keys, IsnnSettings(), seed=plan.seed, device=torch.device("cpu"),
            epochs=TUNING[plan.data]["epochs"], start=weights,
        )  # fmt: skip
        run.all_epochs(lambda state: _say(f"{plan.name}: {state}"), None, None)
        seconds = time.process_time() - begun
        torch.save(run.result.state_dict(), self._model_path(plan))
        found, lowest = self._measured(run.result, plan, spec, keys)
        ranking = trace(
            run.result, self._some(plan), spec,
            {**{f"buyer {number}": key for number, key in enumerate(keys)}, "stranger": evaluation_keys(1, 31)[0]},
            null_keys=20 if not self._quick else 2,
        )  # fmt: skip
        return {
            "row": plan.name,
            "status": "measured",
            "spec": str(spec),
            "unprotected": unprotected,
            **found,
            "legal_lowest": lowest,
            "named_by_trace": len(ranking.named),
            "stranger_named": any(one.name == "stranger" for one in ranking.named),
            "fine_tuning_cpu_seconds": round(seconds, 1),
        }

    def _measured(self, model: nn.Module, plan: Plan, spec: TransformSpec, keys: list[InputKey]) -> tuple[Row, float]:
        whole = self.task(plan.data).data.test
        few = keys if len(keys) <= 4 else keys[:2]
        legal = measure(model, whole, spec, few, near_shares=(), told=None)
        every = measure(
            model, self._some(plan), spec, keys, wrong_keys=evaluation_keys(2 if self._quick else WRONG_KEYS, 1),
            wrong_records=wrong_records_of(plan)[: 2 if self._quick else WRONG_RECORDS],
        )  # fmt: skip
        return _joined(legal, every), min(every.legal)

    def _some(self, plan: Plan) -> ArrayDataset:
        return _some(self.task(plan.data).data.test, SAMPLE)

    def _model_path(self, plan: Plan) -> Path:
        return self._work / f"{plan.name.replace('/', '-')}{'-quick' if self._quick else ''}.pt"

    def _chen_wu(self, plan: Plan) -> Row:
        weights, unprotected = self.unprotected(plan.data)
        run = ChenWuRun(
            self._tuning(plan), None, None, seed=plan.seed, device=torch.device("cpu"),
            epochs=TUNING[plan.data]["epochs"],
        )  # fmt: skip
        run.begin(weights)
        begun = time.process_time()
        run.all_epochs(lambda state: _say(f"{plan.name}: {state}"), None, None)
        seconds = time.process_time() - begun
        device, model = torch.device("cpu"), run.result
        task, some = self.task(plan.data), self._some(plan)
        others = []
        for number in range(2 if self._quick else 20):
            torch.manual_seed(1000 + number)
            stranger = Transformation(task.shape[0])
            others.append(score(model, some, device, lambda x, other=stranger: bytes_of(other, x)))  # type: ignore[misc]
        return {
            "row": plan.name,
            "status": "measured",
            "spec": "Chen & Wu 2018",
            "unprotected": unprotected,
            "legal": score(model, task.data.test, device, lambda x: bytes_of(run.transformation, x)),
            "clean": score(model, task.data.test, device, None),
            "wrong_key": statistics.fmean(others),
            "wrong_key_max": max(others),
            "noise": score(model, some, device, _noise),
            "fine_tuning_cpu_seconds": round(seconds, 1),
        }

    def _attack(self, plan: Plan, name: str, budget: Budget) -> list[Row]:
        task = self._tuning(plan)
        spec, (key,) = TransformSpec.parse_text(SPECS[plan.data][plan.form]), keys_of(plan)
        model = task.model(spec)
        model.load_state_dict(torch.load(self._model_path(plan), weights_only=True))
        subject = subject_of_module(model, key, spec, task, name=plan.name)
        sample = Sample(task.data.train, _some(task.data.test, budget.held_out), f"the data of {task.name}")
        begun = time.process_time()
        found = ATTACKS[name].run(
            subject, sample, budget, Meter(budget.minutes * 60), seed=0, device=torch.device("cpu")
        )
        seconds = round(time.process_time() - begun, 1)
        _say(f"{plan.name} {name}: {[row.to_json() for row in found.rows]}")
        return [{"row": plan.name, "attack": name, **row.to_json(), "seconds": seconds} for row in found.rows]


def _some(data: Any, count: int) -> ArrayDataset:
    """Return `count` images of a fixed shuffle: files hold them class by class."""
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]
    return ArrayDataset(data.images[chosen], data.labels[chosen])


def _joined(legal: IsnnAccuracy, every: IsnnAccuracy) -> Row:
    """Return what the whole test set says of legal and clean inputs, and the sample of all else."""
    return every.to_json() | {
        "legal": legal.mean_legal,
        "clean": legal.clean,
        "legal_on_sample": every.mean_legal,
        "wrong_keys_each": [round(value, 4) for value in every.wrong_keys],
    }


def _noise(x: Tensor) -> Tensor:
    draws = torch.Generator().manual_seed(5)
    return (x.float() + (torch.randint(0, 2, x.shape, generator=draws) * 2.0 - 1.0) * 12).clamp(0, 255).to(torch.uint8)


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


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
        if "chen-wu" in row["row"]:
            continue
        lost = row["unprotected"] - row["legal"]
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
    rows = [bench.row(plan, run=asked.only is None or plan.name in asked.only) for plan in plans]
    print_table(list(table(rows)))
    bars = list(bars_of(rows))
    print_bars(bars)
    if asked.quick or all(row["status"] != "measured" for row in rows):
        return
    path = result_path(AREA, f"isnn-{part}")
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
        for name in ATTACKED:
            wanted = asked.only is None or f"{plan.name}/{name}" in asked.only
            if row["status"] == "measured" and (wanted or bench.has_attack(plan, name, budget)):
                rows += bench.attack(plan, name, budget)
            else:
                rows.append({"row": plan.name, "attack": name, "label": "not run", "score": None})
    shown = ("row", "attack", "label", "images", "work", "score", "from_scratch", "note", "seconds")
    print_table([{name: row.get(name) for name in shown} for row in rows])
    bars = list(attack_bars(rows))
    print_bars(bars)
    if asked.quick:
        return
    path = result_path(AREA, "isnn-attacks")
    config = _config() | {"budget": dataclasses.asdict(budget)}
    write_result("isnn-attacks", AREA, config, rows, bars, [0], path)
    draw_inversion(rows, RESULTS / f"{path.stem}.png")
    print(f"written to {path}")


def attack_bars(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the bars: by content averaging gets nothing, inversion with 100 images half of what it gets elsewhere."""
    found = {(row["row"].split("/")[1], row["attack"], row.get("at")): row["score"] for row in rows}
    averaged = [
        score
        for (form, name, _), score in found.items()
        if (form, name) == ("content", "averaging") and score is not None
    ]
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
        "wrong_keys": WRONG_KEYS,
        "wrong_records": WRONG_RECORDS,
        "sample": SAMPLE,
        "threads": torch.get_num_threads(),
        "settings": dict(IsnnSettings().to_json()),
    }


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=sorted(PARTS))
    parser.add_argument("--data", type=Path, help="folder with the data sets; default: TESSERA_DATA")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tessera-isnn")
    parser.add_argument("--only", nargs="*", metavar="ROW", help="run these rows; none: only report what was run")
    parser.add_argument("--quick", action="store_true", help="does it run at all? records nothing")
    asked = parser.parse_args()
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
