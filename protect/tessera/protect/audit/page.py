"""The report as files: `report.html`, one page that needs nothing else, and `report.json` with the same numbers."""

import base64
import json
import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Final

from tessera.keystore._files import PUBLIC_MODE, write_atomically
from tessera.keystore.errors import Unavailable
from tessera.keystore.proof import input_key_id
from tessera.protect.audit.plots import draw
from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.audit.run import Report
from tessera.protect.audit.table import Attack
from tessera.protect.audit.verdict import (
    FALLS,
    FLOORS,
    GAIN_FALLS,
    GAIN_HOLDS,
    HOLDS,
    Level,
    Measured,
    Verdict,
    measured,
)
from tessera.protect.curves import METRIC_WORDS

HTML, JSON = "report.html", "report.json"

_LEVELS: Final[dict[Level, str]] = {
    "holds": "held in this audit",
    "weak": "weak",
    "falls": "does not hold",
    "not measured": "not measured",
}
"""What a level is called in front of people."""


def write_report(report: Report, folder: Path) -> None:
    """Write both files into `folder`, made when missing; files of those names are replaced.

    Raises `MissingExtra` when matplotlib is not installed, and `Denied`, `NotFound` or `Unavailable` when the disk
    refuses.
    """
    page = render(report).encode()
    document = json.dumps(report.to_json(), indent=1).encode() + b"\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"{folder} cannot be made a folder", remedy="Choose another path.") from error
    for name, raw in ((HTML, page), (JSON, document)):
        write_atomically(folder / name, raw, mode=PUBLIC_MODE, overwrite=True)


def render(report: Report) -> str:
    """Return the page: self-contained HTML, its pictures inline. Raises `MissingExtra` without matplotlib."""
    found = measured(report.results)
    verdicts = report.verdicts
    title = f"Attack report: {report.subject.name}"
    body = (
        f"<h1>{escape(title)}</h1>",
        _lead(report),
        _numbers(report, found),
        _strip(verdicts),
        _not_finished(report),
        "<h2>The attacks</h2>",
        _how_judged(report),
        *(
            _attack(attack, result, found, report)
            for attack, result in zip(report.attacks, report.results, strict=True)
        ),
        _verdicts(verdicts),
        _conditions(report),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _lead(report: Report) -> str:
    subject = report.subject
    return (
        f"<p>A {subject.kind} model whose inputs are transformed with <b>{escape(str(subject.spec))}</b> under a "
        "secret key. This page says what it is worth to somebody who has the model file and no key. Every number "
        "was measured on images that the attacker did not have; nothing is estimated.</p>"
    )


def _numbers(report: Report, found: Measured | None) -> str:
    """The few numbers that everything else lies between."""
    if found is None:
        return "<p class=warn>The scores with and without the key were not measured: run the attack <i>no-key</i>.</p>"
    few = [score for score in (found.searched, found.adapter_few) if score is not None]
    tuned = [score for _, score, _ in found.tuned]
    shown = (
        ("with the right key", found.right),
        ("plain images, no key", found.plain),
        ("random wrong keys, on average", found.wrong_mean),
        ("best attack with a few labelled images", max(few, default=None)),
        ("trained further on up to 10 % of the data", max(tuned, default=None)),
        ("blind guessing", found.floor),
    )
    words = METRIC_WORDS[report.sample.metric]
    cells = (f"<div><b>{_percent(value)}</b><span>{label}</span></div>" for label, value in shown if value is not None)
    return f"<div class=numbers>{''.join(cells)}</div><p class=small>All in {words}.</p>"


def _strip(verdicts: list[Verdict]) -> str:
    if not verdicts:
        return ""
    cells = (
        f"<a class='{_css(verdict.level)}' href='#verdicts'><b>{verdict.attacker}</b> {_LEVELS[verdict.level]}"
        f"<span>{escape(verdict.who)}</span></a>"
        for verdict in verdicts
    )
    return f"<div class=strip>{''.join(cells)}</div>"


def _not_finished(report: Report) -> str:
    cut = [attack.title for attack, result in zip(report.attacks, report.results, strict=True) if _cut(result)]
    if not cut:
        return ""
    return (
        f"<p class=warn>Time ran out before these attacks had done all that was planned: {escape(', '.join(cut))}. A "
        "patient thief reaches more than the numbers below.</p>"
    )


def _cut(result: AttackResult) -> bool:
    return any(row.cut_short for row in result.rows)


def _how_judged(report: Report) -> str:
    sample = report.sample
    return (
        f"<p class=small>Images: {escape(sample.source)}. Attackers choose from {len(sample.attacker):,} labelled "
        f"ones; every score is on {len(sample.held_out):,} others{_accurate(report)}.</p>"
    )


def _accurate(report: Report) -> str:
    """Return what the number of images alone leaves uncertain: the widest 95 % interval of a share of right answers."""
    if report.sample.metric != "accuracy":
        return ""
    return f", which alone leaves an uncertainty of up to {98 / math.sqrt(len(report.sample.held_out)):.1f} points"


def _attack(attack: Attack, result: AttackResult, found: Measured | None, report: Report) -> str:
    head = f"<section id='{escape(attack.name)}'><h3>{escape(attack.title)}</h3><p>{escape(attack.explained)}</p>"
    if result.skipped:
        return f"{head}<p class=small>Not run: {escape(result.skipped)}.</p></section>"
    picture = draw(
        result,
        right=None if found is None else found.right,
        floor=None if found is None else found.floor,
        words=METRIC_WORDS[report.sample.metric],
        axis=attack.axis,
    )
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
    return f"{head}{_rows(result.rows)}{details}{_picture(picture, attack.title)}</section>"


def _rows(rows: Iterable[Row]) -> str:
    listed = list(rows)
    beside = any(row.beside is not None for row in listed)
    head = "<tr><th></th><th>score</th>" + ("<th>from scratch</th><th>gain</th>" if beside else "")
    return (
        f"<table>{head}<th>labelled images</th><th>spent</th><th></th></tr>"
        f"{''.join(_row(row, beside) for row in listed)}</table>"
    )


def _row(row: Row, beside: bool) -> str:
    cells = [f"<td>{escape(row.label)}</td>", f"<td class=n><b>{_percent(row.score)}</b></td>"]
    if beside:
        gain = None if row.score is None or row.beside is None else row.score - row.beside
        cells += [f"<td class=n>{_percent(row.beside)}</td>", f"<td class=n>{_points(gain)}</td>"]
    note = "; ".join(text for text in ("<b>cut short</b>" if row.cut_short else "", escape(row.note)) if text)
    cells += [f"<td class=n>{row.images:,}</td>", f"<td>{row.work:,} {escape(row.unit)}</td>", f"<td>{note}</td>"]
    return f"<tr>{''.join(cells)}</tr>"


def _picture(raw: bytes | None, title: str) -> str:
    if raw is None:
        return ""
    return f"<img alt='{escape(title, quote=True)}' src='data:image/png;base64,{base64.b64encode(raw).decode()}'>"


def _verdicts(verdicts: list[Verdict]) -> str:
    if not verdicts:
        return (
            "<h2 id=verdicts>Verdicts</h2><p>None: without the score of the right key there is nothing to compare.</p>"
        )
    rows = "".join(
        f"<tr class='{_css(verdict.level)}'><td><b>{verdict.attacker}</b><br>{escape(verdict.who)}</td>"
        f"<td class=level>{_LEVELS[verdict.level]}</td>"
        f"<td>{escape(verdict.says)}<br><i>{escape(verdict.advice)}</i></td></tr>"
        for verdict in verdicts
    )
    return (
        "<h2 id=verdicts>Verdicts: who is kept out</h2>"
        "<table class=verdicts><tr><th>attacker</th><th>the lock</th><th>measured, and what to do</th></tr>"
        f"{rows}</table>"
        "<p class=small>By written rules, from the numbers above. An attack undoes the share of the lock that it "
        "recovers of the distance between blind guessing and the right key. "
        f"Up to {HOLDS:.0%} the lock held, above {FALLS:.0%} it does not hold, between them it is weak. A0: it holds "
        f"while the model without a key reaches at most {FLOORS:.0f} times blind guessing. A2: it holds while the "
        f"stolen file helps by at most {GAIN_HOLDS * 100:.0f} points, and does not above {GAIN_FALLS * 100:.0f}. "
        "The number of possible keys plays no part: the searches above do not try them all.</p>"
    )


def _conditions(report: Report) -> str:
    budget, subject = report.budget, report.subject
    facts = (
        ("transform", str(subject.spec)),
        ("id of the input key", input_key_id(subject.key)),
        ("input", "x".join(map(str, subject.shape))),
        ("classes", str(subject.classes)),
        ("budget", f"{budget.name}, at most {budget.minutes:g} minutes; {report.seconds:.0f} seconds were used"),
        ("seed", str(report.seed)),
        ("device", report.device),
        ("the model while attackers train it", subject.training),
    )
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts)
    return (
        f"<h2>How this was measured</h2><table>{rows}</table>"
        "<p class=small>A lock on inputs is no encryption. This report does not say that a stronger attack is "
        "impossible; it says what these attacks reached with this effort. The file itself is protected by the sealed "
        "package, its users by licences.</p>"
    )


def _css(level: Level) -> str:
    return level.replace(" ", "-")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:+.1f} points"


_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#1f2328}
h1{font-size:1.6em;margin-bottom:.2em}
h2{margin-top:1.8em;border-bottom:1px solid #d0d7de}
h3{margin-bottom:.2em}
table{border-collapse:collapse;margin:.6em 0;width:100%}
th,td{padding:.3em .6em;text-align:left;vertical-align:top;border-bottom:1px solid #eaeef2}
th{font-weight:600;font-size:.85em;color:#57606a}
td.n{text-align:right;white-space:nowrap}
section{margin-bottom:1.6em}
section p{margin:.3em 0}
img{max-width:100%;display:block}
.small{color:#57606a;font-size:.87em}
.warn{background:#fff8c5;padding:.6em .8em;border-radius:6px}
.numbers,.strip{display:flex;flex-wrap:wrap;gap:.6em;margin:1em 0 .2em}
.numbers div{flex:1;min-width:8em;background:#f6f8fa;border-radius:6px;padding:.6em .8em}
.numbers b{display:block;font-size:1.5em}
.numbers span{font-size:.85em;color:#57606a}
.strip a{flex:1;min-width:9em;border-radius:6px;padding:.5em .7em;color:inherit;text-decoration:none}
.strip span{display:block;font-size:.78em;color:#424a53}
.strip .holds,.holds .level{background:#dafbe1}
.strip .weak,.weak .level{background:#fff1c2}
.strip .falls,.falls .level{background:#ffdcd7}
.strip .not-measured,.not-measured .level{background:#eaeef2}
.verdicts td:first-child{width:30%}
.level{white-space:nowrap;font-weight:600}
"""
