"""One attack as a section of the page: its words, its rows as a table, its picture."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Final

from tessera.protect.audit.plots import draw
from tessera.protect.audit.result import AttackResult, Row, Scale
from tessera.protect.audit.table import Attack
from tessera.protect.audit.tier_verdict import gained


@dataclass(frozen=True)
class Marks:
    """The scores that every other one lies between; None where they were not measured."""

    right: float | None
    floor: float | None
    right_words: str
    """What `right` is the score of."""


Cell = Callable[[Row], str]
"""How a column shows a row, as HTML."""

_SCORES: Final[dict[Scale, str]] = {"quality": "score", "auc": "AUC", "opened": "opened"}


def section(attack: Attack, result: AttackResult, marks: Marks, words: str) -> str:
    """Return the section of one attack; `words` names the measure. Raises `MissingExtra` without matplotlib."""
    head = f"<section id='{escape(attack.name)}'><h3>{escape(attack.title)}</h3><p>{escape(attack.explained)}</p>"
    if result.skipped:
        return f"{head}<p class=small>Not run: {escape(result.skipped)}.</p></section>"
    picture = draw(
        result, right=marks.right, floor=marks.floor, words=words, axis=attack.axis, right_words=marks.right_words
    )
    return f"{head}{_table(result)}{_details(result)}{_picture(picture, attack.title)}</section>"


def percent(value: float | None) -> str:
    """Return a share as people read it."""
    return "–" if value is None else f"{value:.1%}"


def _table(result: AttackResult) -> str:
    rows, columns = result.rows, _columns(result)
    several = len({row.series for row in rows if row.series}) > 1
    lines = []
    for before, row in zip((None, *rows), rows, strict=False):
        if several and row.series and (before is None or before.series != row.series):
            lines.append(f"<tr class=series><th colspan={len(columns) + 2}>{escape(row.series)}</th></tr>")
        cells = "".join(f"<td class=n>{text(row)}</td>" for _, text in columns)
        label = row.label.removeprefix(row.series).removesuffix(row.series).strip(" ,:") if several else row.label
        lines.append(f"<tr><td>{escape(label)}</td>{cells}<td>{_note(row)}</td></tr>")
    head = "".join(f"<th class=n>{name}</th>" for name, _ in columns)
    return f"<div class=wide><table><tr><th></th>{head}<th></th></tr>{''.join(lines)}</table></div>"


def _columns(result: AttackResult) -> list[tuple[str, Cell]]:
    """Return the columns that say something of these rows: heads and cells."""
    found: list[tuple[str, Cell]] = [(_SCORES[result.scale], _CELLS[result.scale])]
    if any(row.before is not None for row in result.rows):
        found = [(name, _CELLS[kind]) for name, kind in (("before", "before"), ("after", "quality"), ("best", "best"))]
    if any(row.beside is not None for row in result.rows):
        found += [("from scratch", _CELLS["beside"]), ("gain", _CELLS["gain"])]
    if result.scale == "quality":
        found.append(("labelled images", _CELLS["images"]))
    if result.scale != "opened":
        found.append(("compared" if result.scale == "auc" else "spent", _CELLS["spent"]))
    return found


def _gain(row: Row) -> str:
    if row.best is not None:
        return _points(gained(row))
    return "–" if row.score is None or row.beside is None else _points(row.score - row.beside)


_CELLS: Final[dict[str, Cell]] = {
    "quality": lambda row: f"<b>{percent(row.score)}</b>",
    "auc": lambda row: "–" if row.score is None else f"<b>{row.score:.2f}</b>",
    "opened": lambda row: "–" if row.score is None else f"<b>{row.score * row.work:.0f} of {row.work}</b>",
    "before": lambda row: percent(row.before),
    "best": lambda row: percent(row.best),
    "beside": lambda row: percent(row.beside),
    "gain": _gain,
    "images": lambda row: f"{row.images:,}",
    "spent": lambda row: f"{row.work:,} {escape(row.unit)}",
}


def _note(row: Row) -> str:
    return "; ".join(text for text in ("<b>cut short</b>" if row.cut_short else "", escape(row.note)) if text)


def _details(result: AttackResult) -> str:
    details = "".join(
        f"<p class=small>{escape(name)}: {escape(value)}.</p>"
        for name, value in result.details.items()
        if isinstance(value, str)
    )
    spread = result.details.get("interval_of_the_mean_95")
    if isinstance(spread, list):
        low, high = result.details["range_of_95_percent_of_keys"]
        details += (
            f"<p class=small>Mean over the wrong keys, 95 % interval: {spread[0]:.1%} to {spread[1]:.1%}; the middle "
            f"95 % of the keys themselves: {low:.1%} to {high:.1%}.</p>"
        )
    return details


def _picture(raw: bytes | None, title: str) -> str:
    if raw is None:
        return ""
    return f"<img alt='{escape(title, quote=True)}' src='data:image/png;base64,{base64.b64encode(raw).decode()}'>"


def _points(value: float) -> str:
    return f"{value * 100:+.1f} points"
