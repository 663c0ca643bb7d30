"""What models trained on keyed inputs do with the right key, plain images, 100 wrong keys and nearly right ones.

    python -m benchmarks.protection.keyed_inputs PART… [--data PATH] [--work DIR] [--only ROW…] [--keep]
        [--device D] [--quick]

    cpu            CIFAR-10 with the CPU recipe: unprotected, shf, np, ffx at M = 4
    gpu            CIFAR-10 with ResNet-18: each transform at M = 2, 4, 8, 16, three seeds at M = 4
    segmentation   CamVid with the U-Net recipe: mean IoU at the blocks that divide the image

Long runs go in pieces: each trained model and each measurement is kept in --work, `--only` names the rows to run now,
and a broken training goes on at its last epoch. A row that was not run is recorded as not run; with `--keep` it is
taken from the result that is recorded already, and says from which commit. Wrong and near keys are measured on the
first images of a shuffled test set, as many as `config` says; right key and plain on all of it.
"""

import argparse
import dataclasses
import itertools
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

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
from benchmarks.protection._cache import Cache
from benchmarks.protection._keyed_plots import draw_keys, draw_near_keys
from benchmarks.protection._published import UNPROTECTED, published_loss
from benchmarks.protection._samples import sample
from tessera.keystore.secrets import InputKey
from tessera.protect import RECIPES, TrainingTask, train
from tessera.protect.evaluate import evaluate, evaluation_keys, score
from tessera.protect.near_keys import NearKeyTransform
from tessera.transforms import TransformSpec

AREA: Final = "protection"
WRONG_KEYS: Final = 100
WRONG_KEY_SAMPLES: Final = 1000
WRONG_KEY_FRAMES: Final = 16
NEAR_SHARES: Final = (0.01, 0.02, 0.1, 0.5)
"""Of the permutation or of the mask."""
NEAR_DRAWS: Final = 5
ADVISED_AGAINST: Final = 0.20
"""A setting whose wrong keys reach more than this on average is advised against by name (chance is 0.10)."""

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """One row: a recipe under a transform, trained from one seed."""

    recipe: str
    transform: str | None
    seed: int = 0
    network_of: str | None = None
    """For an unprotected model: build the network for this transform, whose first layer takes blocks."""

    @property
    def name(self) -> str:
        """How `--only` and the table call it."""
        plain = "unprotected" if self.network_of is None else f"unprotected+{self.network_of}"
        return f"{self.recipe}/{self.transform or plain}/{self.seed}"

    @property
    def settings(self) -> Row:
        """What decides the row."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "network_of" or value}

    @property
    def kind_and_block(self) -> tuple[str, int] | None:
        """Kind and block size of a transform of one step."""
        steps = () if self.transform is None else TransformSpec.parse_text(self.transform).steps
        return (steps[0].kind, steps[0].block) if len(steps) == 1 else None


def cpu_plans() -> list[Plan]:
    """The rows of the CPU recipe."""
    return [Plan("cifar10-fast", transform) for transform in (None, "shf:4", "np:4", "ffx:4")]


def gpu_plans() -> list[Plan]:
    """The rows of ResNet-18."""
    rows = [Plan("cifar10-resnet18", None)]
    for kind, block in itertools.product(("shf", "np", "ffx"), (2, 4, 8, 16)):
        rows += [Plan("cifar10-resnet18", f"{kind}:{block}", seed) for seed in range(3 if block == 4 else 1)]
    return rows


def segmentation_plans() -> list[Plan]:
    """The rows of the segmenter: the recipe's 176x240 is divided by 2, 4, 8 and 16."""
    specs = [f"{kind}:{block}" for block, kind in itertools.product((4, 2, 8, 16), ("shf", "np", "ffx"))]
    keyed = [Plan("camvid-unet", transform) for transform in specs]
    return [Plan("camvid-unet", None), Plan("camvid-unet", None, network_of="np:4"), *keyed]


PARTS: Final = {"cpu": cpu_plans, "gpu": gpu_plans, "segmentation": segmentation_plans}


class Bench:
    """Runs rows and remembers what was run."""

    def __init__(self, data: Path | None, work: Path, device: str, *, quick: bool) -> None:
        self._data, self._work, self._device, self._quick = data, work, device, quick
        self._cache = Cache(work)
        self._tasks: dict[str, TrainingTask] = {}

    def row(self, plan: Plan, *, run: bool) -> Row:
        """Return the row of `plan`: measured now or before when `run`, else what was measured before."""
        settings = plan.settings | {"quick": self._quick, "torch": torch.__version__, "device": self._device}
        if not run and not self._cache.has(plan.name, settings):
            return {"row": plan.name, "status": "not run"}
        row: Row = self._cache.rows(plan.name, settings, lambda: self._measured(plan))
        return row

    def _measured(self, plan: Plan) -> Row:
        task = self._task(plan.recipe)
        if plan.network_of is not None:
            build, blocks = task.network_for, TransformSpec.parse_text(plan.network_of)
            assert build is not None
            task = dataclasses.replace(task, network_for=lambda _none: build(blocks))
        spec = None if plan.transform is None else TransformSpec.parse_text(plan.transform)
        key = None if spec is None else row_key(plan)
        started_s = time.monotonic()
        trained = train(
            task,
            transform=spec,
            key=key,
            seed=plan.seed,
            device=self._device,
            wrong_keys=0,
            checkpoint_dir=self._work / "checkpoints" / re.sub("[^A-Za-z0-9]+", "-", plan.name.replace(":", "")),
            progress=lambda state: print(f"  {plan.name}: {state}", file=sys.stderr, flush=True),
        )
        row: Row = {
            "row": plan.name,
            "status": "measured",
            "metric": trained.report["metric"],
            "parameters": sum(part.numel() for part in trained.model.parameters()),
            "epochs": trained.report["epochs"],
            "training_seconds": trained.report["training_seconds"],
            "right_key": trained.accuracy.right_key,
            "plain": trained.accuracy.plain,
        }
        if spec is not None and key is not None:
            row |= self._keys(trained.model.to(self._device), task, spec, key)
        return row | {"seconds": round(time.monotonic() - started_s, 1)}

    def _keys(self, model: nn.Module, task: TrainingTask, spec: TransformSpec, key: InputKey) -> Row:
        """Return what wrong and nearly right keys reach."""
        frames = 2 if self._quick else WRONG_KEY_FRAMES
        some = sample(task.data.test, frames if task.kind == "segmentation" else WRONG_KEY_SAMPLES)
        wrong = evaluation_keys(3 if self._quick else WRONG_KEYS, 1)
        found = evaluate(model, some, transform=spec, key=key, wrong_keys=wrong, device=self._device)
        interval = found.wrong_key_interval
        near = {}
        for share in NEAR_SHARES:
            transforms = [NearKeyTransform(spec, key, some.shape, share, seed=draw) for draw in range(NEAR_DRAWS)]
            near[str(share)] = [score(model, some, torch.device(self._device), each) for each in transforms]
        return {
            "wrong_mean": found.wrong_key,
            "wrong_max": max(found.wrong_keys),
            "wrong_interval": None if interval is None else list(interval),
            "wrong_keys": list(found.wrong_keys),
            "near_keys": near,
            "right_key_same_sample": found.right_key,
            "sample": len(some),
        }

    def _task(self, recipe: str) -> TrainingTask:
        if recipe not in self._tasks:
            task = RECIPES[recipe].task(self._data)
            if self._quick:
                data = type(task.data)(sample(task.data.train, 64), sample(task.data.test, 32))
                task = dataclasses.replace(task, data=data, epochs=1, batch=min(task.batch, 32))
            self._tasks[recipe] = task
        return self._tasks[recipe]


def row_key(plan: Plan) -> InputKey:
    """Return the input key of a row: the same in every run, so that a broken one can go on; it protects nothing."""
    return evaluation_keys(1, 1000 + plan.seed)[0]


def table(rows: Sequence[Row], plans: Sequence[Plan]) -> Iterator[Row]:
    """Yield the lines that are printed: points lost beside the published loss, wrong keys, near keys."""
    base = _unprotected(plans, rows)
    for plan, row in zip(plans, rows, strict=True):
        line: Row = {"row": plan.name, "right key": row.get("right_key"), "plain": row.get("plain")}
        unprotected = base.get(plan.recipe)
        loss = None if unprotected is None or "right_key" not in row else unprotected - row["right_key"]
        line["lost"] = loss if plan.transform is not None else None
        line["published"] = published_of(plan)
        line["wrong mean"], line["wrong max"] = row.get("wrong_mean"), row.get("wrong_max")
        for share in NEAR_SHARES:
            values = row.get("near_keys", {}).get(str(share))
            line[f"{share:.0%} wrong"] = statistics.mean(values) if values else None
        yield line | {"training s": row.get("training_seconds"), "status": row["status"]}


def published_of(plan: Plan) -> float | None:
    """Return the loss that was published for the transform of `plan`: for classifiers of CIFAR-10 only."""
    if plan.kind_and_block is None or not plan.recipe.startswith("cifar10"):
        return None
    return published_loss(*plan.kind_and_block)


def bars_of(rows: Sequence[Row], plans: Sequence[Plan]) -> Iterator[dict[str, Any]]:
    """Yield the bars of measured rows: the loss against the published one, and wrong keys and plain images."""
    base = _unprotected(plans, rows)
    for plan, row in _measured(plans, rows):
        if plan.recipe == "cifar10-fast" and plan.transform is None and plan.network_of is None:
            yield bar(f"{plan.name}: accuracy", ">= 0.85", row["right_key"], row["right_key"] >= 0.85)
        if plan.transform is None or row["metric"] != "accuracy":
            continue
        published = published_of(plan)
        if published is not None and plan.recipe in base:
            lost = base[plan.recipe] - row["right_key"]
            yield bar(f"{plan.name}: right key, lost", f"<= {published} as published", lost, lost <= published)
        for name, value in (("wrong keys, mean", row["wrong_mean"]), ("plain images", row["plain"])):
            yield bar(f"{plan.name}: {name}", f"<= {ADVISED_AGAINST}", value, value <= ADVISED_AGAINST)


def _unprotected(plans: Sequence[Plan], rows: Sequence[Row]) -> dict[str, float]:
    """Return what each recipe's own network reaches."""
    plain = ((plan, row) for plan, row in _measured(plans, rows) if plan.transform is None)
    return {plan.recipe: row["right_key"] for plan, row in plain if plan.network_of is None}


def _measured(plans: Sequence[Plan], rows: Sequence[Row]) -> Iterator[tuple[Plan, Row]]:
    return ((plan, row) for plan, row in zip(plans, rows, strict=True) if row["status"] == "measured")


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=sorted(PARTS))
    parser.add_argument("--data", type=Path, help="folder with the data sets; default: TESSERA_DATA")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tessera-keyed-inputs")
    parser.add_argument("--only", nargs="*", metavar="ROW", help="run these rows; none: only report what was run")
    parser.add_argument("--keep", action="store_true", help="take rows that are not run now from the recorded result")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="does it run at all? records nothing")
    asked = parser.parse_args()
    wrong = unknown_rows(asked.only, [plan.name for part in asked.parts for plan in PARTS[part]()])
    if wrong:
        parser.error(wrong)
    bench = Bench(asked.data, asked.work, asked.device, quick=asked.quick)
    for part in asked.parts:
        plans = PARTS[part]()
        name = f"keyed-inputs-{part}"
        path = result_path(AREA, name)
        rows = [bench.row(plan, run=asked.only is None or plan.name in asked.only) for plan in plans]
        rows = with_kept(rows, path) if asked.keep else rows
        print_table(list(table(rows, plans)))
        bars = list(bars_of(rows, plans))
        print_bars(bars)
        if asked.quick or all(row["status"] != "measured" for row in rows):
            continue
        config: Row = {"wrong_keys": WRONG_KEYS, "sample": WRONG_KEY_SAMPLES, "sample_frames": WRONG_KEY_FRAMES}
        config |= {"device": asked.device, "threads": torch.get_num_threads(), "published_unprotected": UNPROTECTED}
        config |= {"near_shares": NEAR_SHARES, "near_draws": NEAR_DRAWS}
        write_result(name, AREA, config, rows, bars, sorted({plan.seed for plan in plans}), path)
        done = [row for row in rows if "wrong_keys" in row]
        if done:
            draw_keys(done, RESULTS / f"{path.stem}.png")
            draw_near_keys(done, RESULTS / f"{path.stem}-near.png")
        print(f"written to {path}")


if __name__ == "__main__":
    main()
