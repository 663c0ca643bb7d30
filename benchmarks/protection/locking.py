"""Keys put into a trained network without training: what they cost, what other keys get, what copies tell.

    python -m benchmarks.protection.locking PART… [--data PATH] [--work DIR] [--quick]

    cifar10    the CPU recipe's network with first layers that take every transform of M = 4, trained without a key
    camvid     the U-Net recipe's, for shf and np; mean IoU

One network is trained on plain images and kept in --work; then it is locked under each transform. `changed` is the
share of test images that are answered otherwise than before the lock, `two copies` what a buyer's key is worth on
another buyer's copy to someone who lays the two copies over each other. Wrong and other buyers' keys are measured on
the first images of a shuffled test set, as many as `config` says; everything else on all of it.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from benchmarks._harness import bar, print_bars, print_table, result_path, spread, write_result
from benchmarks.protection._samples import sample
from tessera.keystore.secrets import InputKey
from tessera.protect import RECIPES, Bundle, TrainingTask, bundle_of, train
from tessera.protect.audit.programs import ProgramModel
from tessera.protect.data import Split
from tessera.protect.evaluate import LabelledImages, evaluate, evaluation_keys, score
from tessera.protect.locking import BlockMap, Lockable, find_entry
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform, TransformSpec

AREA: Final = "protection"
RECIPE_OF: Final = {"cifar10": "cifar10-fast", "camvid": "camvid-unet"}
STEMS: Final = {"cifar10": "shf:4,np:4,ffx:4", "camvid": "shf:4,np:4"}
LOCKS: Final = {
    "cifar10": ("shf:4", "np:4", "ffx:4", "ffx:4:positions", "shf:4,np:4", "shf:4,np:4,ffx:4"),
    "camvid": ("shf:4", "np:4", "shf:4,np:4"),
}
SAMPLES: Final = {"cifar10": 1000, "camvid": 16}
WRONG_KEYS: Final = {"cifar10": 100, "camvid": 20}
BUYERS: Final = {"cifar10": 10, "camvid": 4}
TIMED: Final = 50
SHOWN: Final = ("lock", "right_key", "changed", "plain", "wrong_mean", "wrong_max", "answers_moved", "milliseconds")
EXACT_BAR: Final = 0.001
WRONG_BAR: Final = 0.20
MILLISECONDS_BAR: Final = 10.0
CPU: Final = torch.device("cpu")

Row = dict[str, Any]


def base_of(part: str, task: TrainingTask, work: Path) -> Bundle:
    """Return the network with the stems of every lock, trained on plain images; a broken training goes on."""
    build, stems = task.network_for, TransformSpec.parse_text(STEMS[part])
    assert build is not None
    plain = dataclasses.replace(task, network_for=lambda _none: build(stems))

    def tell(state: object) -> None:
        print(f"  {part}: {state}", file=sys.stderr, flush=True)

    return bundle_of(
        train(plain, transform=None, key=None, wrong_keys=0, checkpoint_dir=work / f"locking-{part}", progress=tell)
    )


def answers_of(bundle: Bundle, data: LabelledImages, key: InputKey | None) -> Tensor:
    """Return the classes that a bundle answers, with its transform where a key is given."""
    model, found = ProgramModel(bundle.program, bundle.tensors), []
    for images in torch.split(data.images, 256):
        seen = images
        if key is not None and bundle.transform is not None:
            seen = torch.from_numpy(Transform(bundle.transform, key, *data.shape)(images.numpy()))
        with torch.no_grad():
            found.append(model(seen).argmax(1).to(torch.uint8))
    return torch.cat(found)


def lock_rows(part: str, base: Bundle, data: Split, *, quick: bool) -> Iterator[Row]:
    """Yield a row for each transform."""
    lockable, some = Lockable(base), sample(data.test, SAMPLES[part])
    before = answers_of(base, data.test, None)
    key = evaluation_keys(1, 4000)[0]
    for text in LOCKS[part][: 2 if quick else None]:
        spec = TransformSpec.parse_text(text)
        made = lockable.lock(spec, key)
        seconds = [lockable.lock(spec, other).seconds for other in evaluation_keys(3 if quick else TIMED, 4001)]
        model = ProgramModel(made.bundle.program, made.bundle.tensors)
        found = evaluate(model, data.test, transform=spec, key=key)
        wrong = evaluate(
            model, some, transform=spec, key=key, wrong_keys=evaluation_keys(2 if quick else WRONG_KEYS[part], 1)
        )
        yield {
            "lock": text,
            "right_key": found.right_key,
            "changed": float((answers_of(made.bundle, data.test, key) != before).float().mean()),
            "answers_moved": made.moved,
            "plain": found.plain,
            "wrong_mean": statistics.fmean(wrong.wrong_keys),
            "wrong_max": max(wrong.wrong_keys),
            "wrong_keys": len(wrong.wrong_keys),
            "milliseconds": 1e3 * spread(seconds)["median"],
        }


def buyer_rows(part: str, base: Bundle, data: Split, *, quick: bool) -> Iterator[Row]:
    """Yield what buyers' keys are worth on each other's copies, as they are and with two copies side by side."""
    lockable, some = Lockable(base), sample(data.test, SAMPLES[part])
    spec = TransformSpec.parse_text(LOCKS[part][-1])
    keys = evaluation_keys(2 if quick else BUYERS[part], 4002)
    copies = [lockable.lock(spec, key).bundle for key in keys]
    models = [ProgramModel(copy.program, copy.tensors) for copy in copies]
    others = [
        score(models[mine], some, CPU, TorchTransform(Transform(spec, key, *some.shape), CPU))
        for mine in range(len(keys))
        for number, key in enumerate(keys)
        if number != mine
    ]
    yield {"lock": f"{spec}: other buyers' keys", "wrong_mean": statistics.fmean(others), "wrong_max": max(others)}
    begin = time.perf_counter()
    between = map_between(copies[0], copies[1])
    seconds = time.perf_counter() - begin
    own = TorchTransform(Transform(spec, keys[0], *some.shape), CPU)
    reached = score(models[1], some, CPU, lambda images: moved_by(between, own(images)))
    yield {
        "lock": f"{spec}: one buyer's key, two copies",
        "right_key": score(models[1], some, CPU, TorchTransform(Transform(spec, keys[1], *some.shape), CPU)),
        "wrong_max": reached,
        "milliseconds": 1e3 * seconds,
    }
    again = Lockable(copies[0], present=keys[0]).lock(spec, keys[1])
    model = ProgramModel(again.bundle.program, again.bundle.tensors)
    found = evaluate(model, data.test, transform=spec, key=keys[1], wrong_keys=[keys[0]])
    yield {
        "lock": f"{spec}: another key in the place of the first",
        "right_key": found.right_key,
        "plain": found.plain,
        "wrong_max": found.wrong_keys[0],
        "answers_moved": again.moved,
        "milliseconds": 1e3 * again.seconds,
    }


def map_between(first: Bundle, second: Bundle) -> BlockMap:
    """Return the map from inputs of the first copy to inputs of the second, from the two files alone."""
    shape = tuple(first.inputs[0].shape[1:])
    entry = find_entry(ProgramModel(first.program, first.tensors), (shape[0], shape[1], shape[2]))
    assert entry.patches is not None
    one, two = (copy.tensors[entry.patches.weight].flatten(1).double().numpy() for copy in (first, second))
    if entry.tables is None:
        alike = _unit(two).T @ _unit(one)  # place of the second by place of the first; a minus sign is an inversion
        source = np.abs(alike).argmax(axis=1)
        levels = np.arange(256, dtype=np.uint8)
        turned = alike[np.arange(len(source)), source] < 0
        return BlockMap(source, np.where(turned[:, None], 255 - levels, levels))
    rows, others = (copy.tensors[entry.tables].numpy() for copy in (first, second))
    apart = np.abs(np.sort(others, axis=1)[:, None] - np.sort(rows, axis=1)[None]).sum(axis=2)
    source = apart.argmin(axis=1)
    values = np.empty(others.shape, dtype=np.uint8)
    ranks = np.argsort(rows[source], axis=1, kind="stable")
    np.put_along_axis(values, ranks, np.argsort(others, axis=1, kind="stable").astype(np.uint8), axis=1)
    return BlockMap(source, values)


def _unit(weight: Any) -> Any:
    return weight / np.linalg.norm(weight, axis=0, keepdims=True)


def moved_by(found: BlockMap, images: Tensor) -> Tensor:
    """Apply a map of blocks to images."""
    side = round((len(found.source) // images.shape[1]) ** 0.5)
    blocks = torch.nn.functional.pixel_unshuffle(images, side)
    places = blocks[:, torch.from_numpy(found.source)].numpy()
    looked = found.values[np.arange(len(found.source))[None, :, None, None], places]
    return torch.nn.functional.pixel_shuffle(torch.from_numpy(looked), side)


def bars_of(base: float, rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the bars."""
    for row in rows:
        if "changed" in row:
            lost = base - row["right_key"]
            yield bar(f"{row['lock']}: lost by the lock", f"<= {EXACT_BAR}", lost, lost <= EXACT_BAR)
            yield bar(f"{row['lock']}: answers changed", f"<= {EXACT_BAR}", row["changed"], row["changed"] <= EXACT_BAR)
            mean = row["wrong_mean"]
            yield bar(f"{row['lock']}: wrong keys, mean", f"<= {WRONG_BAR}", mean, mean <= WRONG_BAR)
            spent = row["milliseconds"]
            yield bar(f"{row['lock']}: a copy, ms", f"<= {MILLISECONDS_BAR}", spent, spent <= MILLISECONDS_BAR)


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=sorted(RECIPE_OF))
    parser.add_argument("--data", type=Path, help="folder with the data sets; default: TESSERA_DATA")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tessera-locking")
    parser.add_argument("--quick", action="store_true", help="does it run at all? records nothing")
    asked = parser.parse_args()
    for part in asked.parts:
        task = RECIPES[RECIPE_OF[part]].task(asked.data)
        work = asked.work
        if asked.quick:
            small = Split(sample(task.data.train, 256), sample(task.data.test, 64))
            task, work = dataclasses.replace(task, data=small, epochs=1), asked.work / "quick"
        base = base_of(part, task, work)
        metric = "mean_iou" if task.kind == "segmentation" else "accuracy"
        reached = base.quality[f"{metric}_plain"]
        locked = list(lock_rows(part, base, task.data, quick=asked.quick))
        rows = [{"lock": "none", "right_key": reached, "plain": reached}, *locked]
        rows += buyer_rows(part, base, task.data, quick=asked.quick)
        print_table([{name: row.get(name) for name in SHOWN} for row in rows])
        bars = list(bars_of(reached, rows))
        print_bars(bars)
        if not asked.quick:
            config = {
                "recipe": task.name, "metric": metric, "first layers for": STEMS[part], "epochs": task.epochs,
                "samples": SAMPLES[part], "wrong_keys": WRONG_KEYS[part], "buyers": BUYERS[part], "timed": TIMED,
                "parameters": sum(value.numel() for value in base.tensors.values()),
                "threads": torch.get_num_threads(),
            }  # fmt: skip
            path = result_path(AREA, f"locking-{part}")
            write_result(f"locking-{part}", AREA, config, rows, bars, [0], path)
            print(f"written to {path}")


if __name__ == "__main__":
    main()
