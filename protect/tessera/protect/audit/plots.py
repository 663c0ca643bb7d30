"""The pictures of the report, drawn from the form of an attack's rows, so that new attacks get theirs for nothing.

Rows with a curve show score against work; rows with `at` show score against that, beside training from scratch where
there is such a number; the keyless attack shows how the scores of wrong keys are distributed.
"""

import io
from typing import TYPE_CHECKING, Any, Final

from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.extras import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RIGHT, _FLOOR, _SCRATCH = "#1a7f37", "#6e7781", "#bf8700"
_LINES: Final = ("#0550ae", "#cf222e", "#8250df")
_BINS: Final = 20


def draw(result: AttackResult, *, right: float | None, floor: float | None, words: str, axis: str) -> bytes | None:
    """Return a PNG of one attack, or None where a picture would show no more than its table.

    `right` and `floor` are the scores with the key and by blind guessing, `words` names the measure and `axis` what
    the rows' `at` counts. Raises `MissingExtra` when matplotlib is not installed.
    """
    series = [row for row in result.rows if row.at is not None and row.score is not None]
    curves = [row for row in result.rows if len(row.curve) > 1]
    keys = result.details.get("wrong_keys")
    if not (curves or len(series) > 1 or keys):
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
    if keys:
        _distribution(axes, keys, words)
    elif curves:
        _curves(axes, curves)
    else:
        _series(axes, series, axis)
    _levels(axes, right, floor, upright=bool(keys))
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
    at = [row.at or 0.0 for row in rows]
    beside = [(row.at or 0.0, row.beside) for row in rows if row.beside is not None]
    axes.plot(
        at,
        [row.score or 0.0 for row in rows],
        marker="o",
        color=_LINES[1],
        label="the attack" if not beside else "stolen",
    )
    if beside:
        axes.plot(*zip(*beside, strict=True), marker="s", linestyle="--", color=_SCRATCH, label="from scratch")
    axes.set_xscale("log")
    axes.set_xticks(at, [f"{value:.0%}" if value < 1 else f"{value:,.0f}" for value in at])
    axes.minorticks_off()
    axes.set(xlabel=axis)


def _levels(axes: "Axes", right: float | None, floor: float | None, *, upright: bool) -> None:
    """Mark the scores that every other one lies between."""
    line: Any = axes.axvline if upright else axes.axhline
    for value, colour, text in ((right, _RIGHT, "right key"), (floor, _FLOOR, "blind guessing")):
        if value is not None:
            line(value, color=colour, linestyle=":", linewidth=1.6, label=f"{text}: {value:.0%}")
