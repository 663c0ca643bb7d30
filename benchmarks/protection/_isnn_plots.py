"""Pictures of input-sensitive networks: drawn without a display, one PNG each."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Row = dict[str, Any]


def draw_near(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy against the share of the pattern's signs that are wrong, one line for each model."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row in rows:
        shares = [0.0, *map(float, row["near"])]
        _, form, seed, buyers = row["row"].split("/")
        label = f"{form}, seed {seed}" + (f", {buyers} buyers" if buyers != "1" else "")
        axes.plot([100 * share for share in shares], [row["legal_on_sample"], *row["near"].values()], "o-", label=label)
    axes.axhline(0.1, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="signs of the pattern that are wrong, %", ylabel="accuracy", ylim=(0, 1), title="nearly right keys")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def draw_inversion(rows: Sequence[Row], path: Path) -> None:
    """Draw what each attack with a number of images recovers, for both forms: the mean over seeds, and each seed."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3, sharey=True)
    for panel, name, words in zip(
        axes, ("inversion", "averaging", "adapter"), ("labelled images", "pairs", "labelled images"), strict=True
    ):
        for form, colour in (("fixed", "tab:orange"), ("content", "tab:blue")):
            scores: dict[float, list[float]] = {}
            for row in rows:
                if row["attack"] == name and f"/{form}/" in row["row"] and row.get("score") is not None:
                    scores.setdefault(row["at"], []).append(row["score"])
            if scores:
                means = [(at, statistics.fmean(scores[at])) for at in sorted(scores)]
                panel.plot(*zip(*means, strict=True), "o-", color=colour, label=form)
                each = [(at, score) for at, values in scores.items() for score in values]
                panel.plot(*zip(*each, strict=True), ".", color=colour)
        panel.set(xscale="log", xlabel=words, title=name, ylim=(0, 1))
        panel.axhline(0.1, color="grey", linewidth=0.8, linestyle=":")
    axes[0].set_ylabel("accuracy recovered")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
