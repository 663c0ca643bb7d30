"""The pictures of the report, drawn from the form of an attack's rows, so that new attacks get theirs for nothing.

Rows of a series show score against their `at`, a line for each series, beside training from scratch where there is
such a number; rows with a curve show score against work; AUCs are bars around 0.5; the keyless attack shows how the
scores of wrong keys are distributed.
"""

import io
import itertools
import math
import textwrap
from typing import TYPE_CHECKING, Any, Final

from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.extras import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RIGHT, _FLOOR, _SCRATCH = "#1a7f37", "#6e7781", "#bf8700"
_LINES: Final = ("#0550ae", "#cf222e", "#8250df", "#1b7c83")
_BINS: Final = 20
_LEAST_GAP: Final = 0.08
"""Between two labels of an axis, of its length."""


def draw(
    result: AttackResult,
    *,
    right: float | None,
    floor: float | None,
    words: str,
    axis: str,
    right_words: str = "right key",
) -> bytes | None:
    """Return a PNG of one attack, or None where a picture would show no more than its table.

    `right` and `floor` are the scores of what `right_words` says and of blind guessing, `words` names the measure and
    `axis` what the rows' `at` counts. Raises `MissingExtra` when matplotlib is not installed.
    """
    series = [row for row in result.rows if row.at is not None and row.score is not None]
    curves = [row for row in result.rows if len(row.curve) > 1]
    keys = result.details.get("wrong_keys")
    if result.scale == "opened" or not (curves or len(series) > 1 or keys or result.scale == "auc"):
        return None
    try:
        # The object interface needs no display and leaves pyplot's global state alone.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "vendor", "to draw an audit's report") from error
    figure = Figure(figsize=(7.6, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if result.scale == "auc":
        _bars(axes, [row for row in result.rows if row.score is not None], float(result.details["bar"]))
    elif keys:
        _distribution(axes, keys, words)
    elif len(series) > 1 and (not curves or any(row.series for row in series)):
        _series(axes, series, axis)
    else:
        _curves(axes, curves)
    if result.scale == "quality":
        _levels(axes, right, floor, right_words, upright=bool(keys))
        if not keys:
            axes.set(ylabel=words, ylim=(0, 1.04))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
    return picture.getvalue()


def _distribution(axes: "Axes", keys: list[float], words: str) -> None:
    axes.hist(keys, bins=_BINS, color=_LINES[0], alpha=0.75, label=f"{len(keys)} wrong keys")
    axes.set(xlabel=words, ylabel="keys", xlim=(0, 1.02))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _curves(axes: "Axes", rows: list[Row]) -> None:
    for row, colour in zip(rows, _LINES, strict=False):
        axes.plot(*zip(*row.curve, strict=True), marker=".", color=colour, label=row.label)
    axes.set_xscale("log")
    axes.set(xlabel=rows[0].unit)


def _series(axes: "Axes", rows: list[Row], axis: str) -> None:
    names = list(dict.fromkeys(row.series for row in rows))
    beside = {row.at or 0.0: row.beside for row in rows if row.beside is not None}
    for name, colour in zip(names, itertools.cycle(_LINES if len(names) > 1 else _LINES[1:]), strict=False):
        line = [row for row in rows if row.series == name]
        label = name or ("stolen" if beside else "the attack")
        axes.plot(
            [row.at or 0.0 for row in line],
            [row.best if row.best is not None else row.score or 0.0 for row in line],
            marker="o",
            markersize=max(3, 8 - 2 * names.index(name)),
            color=colour,
            linestyle="-" if names.index(name) < len(_LINES) else "-.",
            label="\n".join(textwrap.wrap(label, 24)),
        )
    if beside:
        at = sorted(beside)
        axes.plot(at, [beside[place] for place in at], marker="s", linestyle="--", color=_SCRATCH, label="from scratch")
    _ticks(axes, sorted({row.at or 0.0 for row in rows}))
    axes.set(xlabel=axis)


def _ticks(axes: "Axes", at: list[float]) -> None:
    """Label the places that were measured; those too near to each other share a label."""
    logarithmic = at[0] > 0
    if logarithmic:
        axes.set_xscale("log")
    reach = math.log(at[-1] / at[0]) if logarithmic else at[-1] - at[0]
    shown = at[:1]
    for place in at[1:]:
        if (math.log(place / shown[-1]) if logarithmic else place - shown[-1]) > reach * _LEAST_GAP:
            shown.append(place)
    shares = logarithmic and at[-1] < 1
    axes.set_xticks(shown, [f"{value:.0%}" if shares else f"{value:,.0f}" for value in shown])
    axes.minorticks_off()


def _bars(axes: "Axes", rows: list[Row], bar: float) -> None:
    """Draw AUCs as bars from 0.5, tests from top to bottom, a colour for each series; the bar itself on both sides."""
    names = list(dict.fromkeys(row.series for row in rows))
    tests = list(dict.fromkeys(_test(row) for row in rows))
    height = 0.8 / len(names)
    for number, (name, colour) in enumerate(zip(names, itertools.cycle((*_LINES, _FLOOR)), strict=False)):
        own = [row for row in rows if row.series == name]
        places = [tests.index(_test(row)) + (number - (len(names) - 1) / 2) * height for row in own]
        axes.barh(places, [(row.score or 0.0) - 0.5 for row in own], height, left=0.5, color=colour, label=name)
    for side, label in ((bar, f"bar: {bar:.2f}"), (1 - bar, None)):
        axes.axvline(side, color=_SCRATCH, linestyle="--", linewidth=1.4, label=label)
    axes.axvline(0.5, color="black", linewidth=0.8)
    axes.set_yticks(range(len(tests)), tests)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="AUC: 0.5 tells nothing, 0 and 1 tell all")


def _test(row: Row) -> str:
    return row.label.removeprefix(f"{row.series}: ").partition(",")[0]


def _levels(axes: "Axes", right: float | None, floor: float | None, right_words: str, *, upright: bool) -> None:
    """Mark the scores that every other one lies between."""
    line: Any = axes.axvline if upright else axes.axhline
    for value, colour, text in ((right, _RIGHT, right_words), (floor, _FLOOR, "blind guessing")):
        if value is not None:
            line(value, color=colour, linestyle=":", linewidth=1.6, label=f"{text}: {value:.0%}")
