"""How fast keyed transforms are on one core, beside a bare copy, a bare `np.take` and a bare table lookup.

    python -m benchmarks.transforms [--quick] [--rounds 15] [--implementation numpy] [--json PATH]

Inputs are random uint8 images, 1 and 32 at a time; every variant returns a new array. `np.take` gathers with an index
made beforehand, `table[x]` is `np.take(table, x)`, the plain way to look bytes up in NumPy. Variants take turns, and
ratios and bars are of the lowest times: what the code costs, not what else ran meanwhile (medians are beside them).
`images last` is the layout (C, H, W, N), measured where there are 32 images. All steps and stacks of a run are of one
implementation: what is installed, or with `--implementation numpy` what is used where the extension was not built.
"""

import argparse
import gc
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._harness import bar, interleaved_seconds, print_bars, print_table, result_path, spread, write_result
from tessera.keystore.secrets import InputKey
from tessera.transforms import IMPLEMENTATION, Transform, TransformSpec
from tessera.transforms.compiled import Implementation

SEED = 11
SHAPES = ((3, 32, 32), (3, 224, 224), (3, 1080, 1920))
BATCHES = (1, 32)
STAGES = ("shf:{m}", "np:{m}", "ffx:{m}", "ffx:{m}:positions")
STACKS = ("shf:{m},np:{m}", "np:{m},ffx:{m}", "shf:{m},np:{m},ffx:{m}", "shf:{m},np:{m},ffx:{m}:positions")
BLOCKS = (2, 4, 8, 16, 32)
"""All are measured with one image of 3x224x224; elsewhere 4 alone is."""
LEAST_SECONDS = 0.002
"""A timing repeats its call until it takes this long."""

Row = dict[str, Any]


def variants_of(
    shape: tuple[int, int, int], images: int, block: int, implementation: Implementation
) -> dict[str, Callable[[], object]]:
    """Return what is timed for one shape, by name; each result is checked first."""
    random = np.random.default_rng(SEED)
    x = random.integers(0, 256, (images, *shape), dtype=np.uint8)
    table = random.permutation(256).astype(np.uint8)
    flat = x.reshape(-1) if images == 1 else x.reshape(images, -1)
    index = transform("shf:{m}", block, shape).index
    found: dict[str, Callable[[], object]] = {
        "copy": x.copy,
        "np.take": lambda: np.take(flat, index, axis=flat.ndim - 1),
        "table[x]": lambda: np.take(table, x),
    }
    planes = np.ascontiguousarray(x.transpose(1, 2, 3, 0)) if images > 1 else None
    for text in (*STAGES, *STACKS):
        lock = transform(text, block, shape, implementation=implementation)
        if not (lock.inverse(lock(x)) == x).all():
            raise SystemExit(f"{lock!r} is not undone by its inverse")
        name = text.format(m=block)
        found[name] = lambda lock=lock: lock(x)  # type: ignore[misc]
        if planes is not None:
            if not (lock.images_last(planes)[..., -1] == lock(x[-1])).all():
                raise SystemExit(f"{lock!r} differs between layouts")
            found[f"{name} images last"] = lambda lock=lock: lock.images_last(planes)  # type: ignore[misc]
    return found


def transform(
    text: str,
    block: int,
    shape: tuple[int, int, int],
    key: bytes = bytes(range(32)),
    implementation: Implementation = IMPLEMENTATION,
) -> Transform:
    """Return the transform of a text with `{m}` for the block size."""
    spec = TransformSpec.parse_text(text.format(m=block))
    return Transform(spec, InputKey(key), *shape, implementation=implementation)


def repeated(run: Callable[[], object]) -> tuple[Callable[[], object], int]:
    """Return what calls `run` often enough to be timed, and how often that is."""
    run()
    begin = time.perf_counter()
    run()
    calls = max(1, int(LEAST_SECONDS / max(time.perf_counter() - begin, 1e-7)))

    def several() -> None:
        for _ in range(calls):
            run()

    return several, calls


def measure(
    shape: tuple[int, int, int], images: int, block: int, rounds: int, implementation: Implementation
) -> list[Row]:
    """Return the rows of one shape, batch and block size."""
    timed = {name: repeated(run) for name, run in variants_of(shape, images, block, implementation).items()}
    seconds = interleaved_seconds({name: run for name, (run, _) in timed.items()}, rounds)
    spreads = {name: spread([value / timed[name][1] for value in values]) for name, values in seconds.items()}
    lowest = {name: found["lowest"] for name, found in spreads.items()}
    size = images * int(np.prod(shape))
    return [
        {
            "shape": "x".join(map(str, shape)),
            "images": images,
            "block": block,
            "variant": name,
            "lowest s": low,
            "median s": spreads[name]["median"],
            "GB/s": size / low / 1e9,
            "of a copy": lowest["copy"] / low,
            "of np.take": lowest["np.take"] / low,
            "of table[x]": lowest["table[x]"] / low,
            "of slowest stage": slowest_stage(name, lowest) / low,
        }
        for name, low in lowest.items()
    ]


def slowest_stage(name: str, seconds: Mapping[str, float]) -> float:
    """Return the seconds of the slowest step of a stack, in the same layout; of one step, its own."""
    texts, _, layout = name.partition(" images")
    stages = [f"{text} images{layout}" if layout else text for text in texts.split(",")]
    return max(seconds[stage] for stage in stages)


def set_up_rows(rounds: int, implementation: Implementation) -> list[Row]:
    """Return how long a new key takes, and one that was used before."""
    rows = []
    for shape in SHAPES:
        for text in (*STAGES, STACKS[-1]):
            fresh = []
            for number in range(rounds):
                key = number.to_bytes(32, "big")
                begin = time.perf_counter()
                transform(text, 4, shape, key, implementation)
                fresh.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            transform(text, 4, shape, key, implementation)
            again = time.perf_counter() - begin
            row = {"shape": "x".join(map(str, shape)), "variant": text.format(m=4)}
            rows.append(row | {"new key, ms": spread(fresh)["median"] * 1e3, "same key, ms": again * 1e3})
    return rows


def worst(rows: list[Row], column: str, wanted: Callable[[str], bool]) -> float:
    """Return the lowest figure of a column among the variants that are wanted."""
    return min(float(row[column]) for row in rows if wanted(row["variant"]))


def bars_of(rows: list[Row]) -> list[dict[str, Any]]:
    """Return the bars, each over all shapes, batches and block sizes; 0.95 where "no slower" leaves room for noise."""
    shf = worst(rows, "of np.take", lambda name: name.startswith("shf") and "," not in name)
    negative = worst(rows, "of a copy", lambda name: name.startswith("np:") and "," not in name and "last" not in name)
    one_table = worst(
        [row for row in rows if row["images"] > 1 or row["shape"] != "3x32x32"],
        "of table[x]",
        lambda name: name.startswith("ffx") and name.count(":") == 1,
    )
    folded = worst(rows, "of slowest stage", lambda name: "," in name and not ("shf" in name and "ffx" in name))
    moved = worst(rows, "of slowest stage", lambda name: "shf" in name and "ffx" in name and "last" not in name)
    planes = worst(rows, "of slowest stage", lambda name: "shf" in name and "ffx" in name and "last" in name)
    stack = "at most 20 % slower than the slowest stage: at least 0.833"
    return [
        bar("SHF against np.take", "no slower: at least 0.95 in every row", shf, shf >= 0.95),
        bar("NP against a copy", "at least a third in every row", negative, negative >= 1 / 3),
        bar(
            "FFX with one table against table[x], above one small image",
            "no slower in every row",
            one_table,
            one_table >= 1,
        ),
        bar("stacks of SHF and NP, or of NP and FFX", stack, folded, folded >= 1 / 1.2),
        bar("stacks of SHF and FFX", stack, moved, moved >= 1 / 1.2),
        bar("stacks of SHF and FFX, images last", stack, planes, planes >= 1 / 1.2),
    ]


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small images and few rounds: does it still run?")
    parser.add_argument("--rounds", type=int, default=15, help="rounds, in which the variants take turns")
    parser.add_argument(
        "--implementation", choices=sorted({"numpy", IMPLEMENTATION}), default=IMPLEMENTATION, help="what to measure"
    )
    parser.add_argument("--json", type=Path, help="where to write the result instead of the recorded place")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if cores:
        os.sched_setaffinity(0, cores[-1:])
    rounds = 3 if arguments.quick else max(arguments.rounds, 5)
    cases = [((3, 32, 32), 1, 4), ((3, 32, 32), 32, 4)]
    if not arguments.quick:
        cases = [(shape, images, 4) for shape in SHAPES for images in BATCHES]
        cases += [(SHAPES[1], 1, block) for block in BLOCKS if block != 4]
    rows: list[Row] = []
    for shape, images, block in cases:
        many = images * int(np.prod(shape)) > 1 << 26
        rows += measure(shape, images, block, min(rounds, 5) if many else rounds, arguments.implementation)
        gc.collect()
    set_up = [] if arguments.quick else set_up_rows(5, arguments.implementation)
    bars = bars_of(rows)
    print_table(rows)
    print_table(set_up)
    print_bars(bars)
    config = {"implementation": arguments.implementation, "rounds": rounds, "cores": cores[-1:]}
    config |= {"quick": arguments.quick, "set_up": set_up}
    name = "speed" if arguments.implementation == IMPLEMENTATION else f"speed-{arguments.implementation}"
    recorded = None if arguments.quick else result_path("transforms", name)
    write_result(name, "transforms", config, rows, bars, [SEED], arguments.json or recorded)


if __name__ == "__main__":
    main()
