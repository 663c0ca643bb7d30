"""What every benchmark shares: the machine it ran on, the table it prints, the JSON it leaves.

A result is `{"name", "area", "commit", "date", "machine", "versions", "seeds", "config", "rows", "bars"}`; a bar is
`{"name", "bar", "observed", "ok"}` and one that fails is recorded as failing.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

DISTRIBUTIONS = ("torch", "numpy", "grpcio", "protobuf", "cryptography", "safetensors", "pynacl", "sqlalchemy")
"""Whose versions are recorded, where they are installed."""

Row = Mapping[str, Any]


def environment() -> dict[str, Any]:
    """Return `commit` (with `-dirty` when files are changed), `date` (UTC), `machine` and `versions` of this run."""
    return {
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gib": _memory_gib(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "load_before": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def bar(name: str, wanted: str, observed: float, ok: bool) -> dict[str, Any]:
    """Return one bar of a result: what was wanted, in words, what was seen, and whether that is enough."""
    return {"name": name, "bar": wanted, "observed": observed, "ok": ok}


def write_result(
    name: str,
    area: str,
    config: Mapping[str, Any],
    rows: Sequence[Row],
    bars: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    path: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    """Return the result and write it as JSON to `path`; with None, nothing is written.

    Pass `result_path(area, name)` to record a full run. A quick run passes a path of the caller's, or None, so that it
    never replaces a recorded result.
    """
    result = {
        "name": name,
        "area": area,
        **environment(),
        "seeds": list(seeds),
        "config": dict(config),
        "rows": [dict(row) for row in rows],
        "bars": [dict(entry) for entry in bars],
    }
    if path is not None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=2, sort_keys=False) + "\n", encoding="utf-8")
    return result


def with_kept(rows: Sequence[Row], path: Path, names: Sequence[str] = ("row",)) -> list[dict[str, Any]]:
    """Return `rows` with those that were not run now taken from the result recorded at `path`, where it has them.

    `names` are the columns that tell rows apart; a row that was not run has no `status` or `label` but "not run". One
    that is taken over carries the commit that measured it as `kept_from`, because code and settings may have moved on
    since.
    """
    recorded: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
        for row in result["rows"]:
            if not _not_run(row):
                kept = {"kept_from": result["commit"]} | row
                recorded.setdefault(tuple(row[name] for name in names), []).append(kept)
    merged: list[dict[str, Any]] = []
    for row in rows:
        found = recorded.get(tuple(row[name] for name in names), []) if _not_run(row) else []
        merged += found or [dict(row)]
    return merged


def unknown_rows(only: Sequence[str] | None, known: Iterable[str]) -> str | None:
    """Return what is wrong with `--only`: a name that no row has would run nothing and report kept rows."""
    names = list(known)
    strangers = [name for name in only or () if name not in names]
    return f"--only: no row is named {', '.join(strangers)}; rows: {', '.join(names)}" if strangers else None


def _not_run(row: Row) -> bool:
    return "not run" in (row.get("status"), row.get("label"))


def result_path(area: str, name: str) -> Path:
    """Return where a full run of a benchmark records its result on this machine."""
    words = "".join(char if char.isalnum() else " " for char in _processor().lower()).split()
    return RESULTS / f"{area}-{name}-{'-'.join(words[:4])}-{os.cpu_count()}c.json"


def print_table(rows: Sequence[Row]) -> None:
    """Print rows with the columns of the first one; numbers to the right, floats with three digits that count."""
    if not rows:
        print("(no rows)")
        return
    columns = list(rows[0])
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    numeric = [all(isinstance(row.get(column), int | float | None) for row in rows) for column in columns]
    for number, line in enumerate(cells):
        pairs = zip(line, widths, numeric, strict=True)
        print("  ".join(text.rjust(width) if right else text.ljust(width) for text, width, right in pairs).rstrip())
        if not number:
            print("  ".join("-" * width for width in widths))


def print_bars(bars: Sequence[Mapping[str, Any]]) -> None:
    """Print what was wanted beside what was seen."""
    for entry in bars:
        print(
            f"[{'ok' if entry['ok'] else 'FAILED'}] {entry['name']}: {_cell(entry['observed'])} (bar: {entry['bar']})"
        )


def interleaved_seconds(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 1,
    prepare: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Return the seconds of each variant in `rounds` rounds that take turns, so that a busy moment hits all alike.

    `prepare` runs before each variant and is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-warm_up, rounds):
        for name, run in variants.items():
            prepare()
            begin = time.perf_counter()
            run()
            elapsed = time.perf_counter() - begin
            if number >= 0:
                seconds[name].append(elapsed)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest of `values`."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _commit() -> str:
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("-dirty" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None
