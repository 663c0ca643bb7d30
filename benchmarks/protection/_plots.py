"""Pictures of the results: drawn without a display, one PNG each."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Row = dict[str, Any]


def draw_sweep(rows: Sequence[Row], metric: str, references: dict[str, float], title: str, path: Path) -> None:
    """Draw quality without a key against the share of the network that is encrypted, one line per selector."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for selector in dict.fromkeys(row["selector"] for row in rows):
        mine = [row for row in rows if row["selector"] == selector]
        shares = [100 * row["share_of_network"] for row in mine]
        axes.plot(shares, [row["mean"] for row in mine], marker="o", markersize=3, label=selector)
        axes.fill_between(shares, [row["lowest"] for row in mine], [row["highest"] for row in mine], alpha=0.12)
    for name, value in references.items():
        axes.axhline(value, color="0.4", linestyle="--", linewidth=1)
        axes.annotate(name, (0.99, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set(xscale="log", xlabel="encrypted, % of the network's conv and linear weights", ylabel=metric, title=title)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def draw_tiers(rows: Sequence[Row], measures: Sequence[str], references: dict[str, float], path: Path) -> None:
    """Draw quality by tier, one line per measure and selector."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for selector in dict.fromkeys(row["selector"] for row in rows):
        mine = [row for row in rows if row["selector"] == selector and row["tier"] != "plain"]
        for measure in measures:
            label = f"{measure}, {selector}"
            axes.plot([row["tier"] for row in mine], [row[measure] for row in mine], marker="o", label=label)
    for name, value in references.items():
        axes.axhline(value, color="0.4", linestyle="--", linewidth=1)
        axes.annotate(name, (0.99, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set(xlabel="tier", ylabel="quality", title="what a holder of each tier has")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def draw_attacks(rows: Sequence[Row], metric: str, references: dict[str, float], path: Path) -> None:
    """Draw the recovered quality along retraining, one panel per number of images."""
    counts = list(dict.fromkeys(row["images"] for row in rows))
    figure = Figure(figsize=(3.2 * len(counts), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, count in zip(panels, counts, strict=True):
        for row in (row for row in rows if row["images"] == count):
            steps, values = zip(*row["curve"], strict=True)
            axes.plot(steps, values, marker="o", markersize=3, label=row["trained"])
        for value in references.values():
            axes.axhline(value, color="0.4", linestyle="--", linewidth=1)
        axes.set(title=f"{count} images", xlabel="steps")
    panels[0].set(ylabel=metric)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def draw_fingerprints(rows: Sequence[Row], unit: str, strangers: int, significance: float, path: Path) -> None:
    """Draw how well the right buyer's mark fits after each theft, beside the best of the strangers."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = rows[::-1]
    names = [f"{row['thief']}  (-{max(row['lost'], 0):.2g})" for row in shown]
    trials = (strangers + 1) * (int(rows[0]["tensors"].partition("/")[2]) + 1)
    limit = math.sqrt(2 * math.log(2 * trials / significance))
    axes.barh(names, [abs(row["Z"]) for row in shown], color="tab:blue", label="right buyer")
    axes.plot([abs(row["best stranger"]) for row in shown], names, "k.", label=f"best of {strangers:,} strangers")
    axes.axvline(limit, color="tab:red", linewidth=1, label=f"named above {limit:.1f}")
    axes.set(xscale="log", xlim=(1, None), xlabel="|Z|", title=f"what the thief did (lost, {unit})")
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=100)
