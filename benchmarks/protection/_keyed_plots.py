"""Pictures of what keys open: drawn without a display, one PNG each."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Row = dict[str, Any]

_WORDS = {"accuracy": "accuracy", "mean_iou": "mean IoU"}


def draw_keys(rows: Sequence[Row], path: Path) -> None:
    """Draw, for each protected row, the right key, plain images and every wrong key."""
    figure = Figure(figsize=(max(5.0, 1.3 * len(rows)), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for at, row in enumerate(rows):
        wrong = row["wrong_keys"]
        spread = [at + 0.3 * ((number * 0.618) % 1 - 0.5) for number in range(len(wrong))]
        axes.scatter(spread, wrong, s=9, color="tab:red", alpha=0.5, label="a wrong key" if not at else None)
        axes.scatter(at, row["plain"], marker="x", color="tab:orange", label="plain images" if not at else None)
        axes.scatter(at, row["right_key"], marker="_", s=400, color="tab:green", label="right key" if not at else None)
    axes.set_xticks(range(len(rows)), [_short(row) for row in rows], rotation=20)
    axes.set(ylim=(0, 1), ylabel=_WORDS[rows[0]["metric"]], title="what a key opens")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def draw_near_keys(rows: Sequence[Row], path: Path) -> None:
    """Draw the quality against the share of a key's permutation, mask or table that is wrong."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row in rows:
        shares = [0.0, *map(float, row["near_keys"]), 1.0]
        means = [row["right_key_same_sample"], *map(statistics.mean, row["near_keys"].values()), row["wrong_mean"]]
        axes.plot([100 * share for share in shares], means, marker="o", markersize=4, label=_short(row))
    axes.set(xlabel="wrong, % of the key's map (100: another key)", ylabel=_WORDS[rows[0]["metric"]], ylim=(0, 1))
    axes.set_title("nearly right keys")
    axes.set_xscale("symlog", linthresh=1)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _short(row: Row) -> str:
    _, transform, seed = row["row"].split("/")
    return transform if seed == "0" else f"{transform} ({seed})"
