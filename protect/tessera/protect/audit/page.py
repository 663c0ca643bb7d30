"""The report as files: `report.html`, one page that needs nothing else, and `report.json` with the same numbers."""

import json
import math
from html import escape
from pathlib import Path
from typing import Final

from tessera.keystore._files import PUBLIC_MODE, write_atomically
from tessera.keystore.errors import Unavailable
from tessera.keystore.proof import input_key_id
from tessera.protect.audit.result import AttackResult
from tessera.protect.audit.run import Report
from tessera.protect.audit.sections import Marks, section
from tessera.protect.audit.summary import LEVELS, css_class, numbers, strip
from tessera.protect.audit.tier_localisation import BAR
from tessera.protect.audit.tier_verdict import AUC_FALLS, tiers_measured
from tessera.protect.audit.verdict import (
    FALLS,
    FLOORS,
    GAIN_FALLS,
    GAIN_HOLDS,
    HOLDS,
    Verdict,
    measured,
)
from tessera.protect.curves import METRIC_WORDS

HTML, JSON = "report.html", "report.json"


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
    found, tiers = measured(report.results), tiers_measured(report.results)
    verdicts, words = report.verdicts, METRIC_WORDS[report.sample.metric]
    keyed = Marks(None, None, "") if found is None else Marks(found.right, found.floor, "right key")
    cut = Marks(None, None, "") if tiers is None else Marks(tiers.full, tiers.floor, "full model")
    title = f"Attack report: {report.subject.name}"
    body = (
        f"<h1>{escape(title)}</h1>",
        _lead(report),
        numbers(report, found, tiers),
        strip(verdicts),
        _not_finished(report),
        "<h2>The attacks</h2>",
        _how_judged(report),
        *(
            section(attack, result, cut if "tiers" in attack.protections else keyed, words)
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
    protections = []
    if subject.lock is not None:
        protections.append(
            f"whose inputs are transformed with <b>{escape(str(subject.lock.spec))}</b> under a secret key"
        )
    if subject.cut is not None:
        protections.append(
            f"that is sold in <b>{subject.cut.tiers} tiers</b>: the weights that make a tier better than the one below "
            "are encrypted, with decoys in their place"
        )
    missing = "no key" if subject.cut is None else "not all keys"
    return (
        f"<p>A {subject.kind} model {', and '.join(protections)}. This page says what it is worth to somebody who has "
        f"the model file and {missing}. Every number was measured on images that the attacker did not have; nothing is "
        "estimated.</p>"
    )


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


def _verdicts(verdicts: list[Verdict]) -> str:
    if not verdicts:
        return (
            "<h2 id=verdicts>Verdicts</h2><p>None: without the score of the right key there is nothing to compare.</p>"
        )
    rows = "".join(
        f"<tr class='{css_class(verdict.level)}'><td><b>{verdict.attacker}</b><br>{escape(verdict.who)}</td>"
        f"<td class=level>{LEVELS[verdict.level]}</td>"
        f"<td>{escape(verdict.says)}<br><i>{escape(verdict.advice)}</i></td></tr>"
        for verdict in verdicts
    )
    return (
        "<h2 id=verdicts>Verdicts: who is kept out</h2>"
        "<table class=verdicts><tr><th>attacker</th><th>the lock</th><th>measured, and what to do</th></tr>"
        f"{rows}</table>"
        f"<p class=small>{_rules(verdicts)}</p>"
    )


def _rules(verdicts: list[Verdict]) -> str:
    """Return the rules of those verdicts that are there."""
    attackers = {verdict.attacker[0] for verdict in verdicts}
    return "By written rules, from the numbers above. " + " ".join(
        text for attacker, text in _RULES.items() if attacker in attackers
    )


_RULES: Final = {
    "A": "An attack undoes the share of the lock that it recovers of the distance between blind guessing and the right "
    f"key. Up to {HOLDS:.0%} the lock held, above {FALLS:.0%} it does not hold, between them it is weak. A0: it holds "
    f"while the model without a key reaches at most {FLOORS:.0f} times blind guessing. A2: it holds while the stolen "
    f"file helps by at most {GAIN_HOLDS * 100:.0f} points, and does not above {GAIN_FALLS * 100:.0f}. The number of "
    "possible keys plays no part: the searches above do not try them all.",
    "T": f"T0: the file alone holds up to {FLOORS:.0f} times blind guessing. T1: it holds while no test has an AUC "
    f"above {BAR:.2f}, counted from 0.5 in either direction, and does not above {AUC_FALLS:.2f} where the test applies "
    f"to most of the encrypted units. T2: it holds while retraining brings at most {GAIN_HOLDS * 100:.0f} points more "
    f"than both the tier as it was and training from scratch, and does not above {GAIN_FALLS * 100:.0f}. T3: it holds "
    "when every attempt with a lower key ended in an authentication failure.",
}


_NO_CIPHER: Final = "A lock on inputs is no encryption."
_NO_HIDING: Final = (
    "Encrypted weights stay closed to whoever lacks their key, but not what they do to whoever can train."
)


def _conditions(report: Report) -> str:
    budget, subject, lock, cut = report.budget, report.subject, report.subject.lock, report.subject.cut
    facts = (
        *(() if lock is None else (("transform", str(lock.spec)), ("id of the input key", input_key_id(lock.key)))),
        *(() if cut is None else (("tiers, from the lowest", ", ".join(cut.names)),)),
        ("input", "x".join(map(str, subject.shape))),
        ("classes", str(subject.classes)),
        ("budget", f"{budget.name}, at most {budget.minutes:g} minutes; {report.seconds:.0f} seconds were used"),
        ("seed", str(report.seed)),
        ("device", report.device),
        *(() if lock is None else (("the model while attackers train it", subject.training),)),
    )
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts)
    limits = " ".join(text for text, there in ((_NO_CIPHER, lock), (_NO_HIDING, cut)) if there is not None)
    return (
        f"<h2>How this was measured</h2><table>{rows}</table>"
        f"<p class=small>{limits} This report does not say that a stronger attack is impossible; it says what these "
        "attacks reached with this effort. The file itself is protected by the sealed package, its users by "
        "licences.</p>"
    )


_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#1f2328}
h1{font-size:1.6em;margin-bottom:.2em}
h2{margin-top:1.8em;border-bottom:1px solid #d0d7de}
h3{margin-bottom:.2em}
table{border-collapse:collapse;margin:.6em 0;width:100%}
th,td{padding:.3em .6em;text-align:left;vertical-align:top;border-bottom:1px solid #eaeef2}
th{font-weight:600;font-size:.85em;color:#57606a}
td b{white-space:nowrap}
td.n,th.n{text-align:right;white-space:nowrap}
.series th{background:#f6f8fa;padding-top:.5em;color:#1f2328}
.wide{overflow-x:auto}
section{margin-bottom:1.6em}
section p{margin:.3em 0}
img{max-width:100%;display:block}
.small{color:#57606a;font-size:.87em}
.warn{background:#fff8c5;padding:.6em .8em;border-radius:6px}
.numbers,.strip{display:grid;grid-template-columns:repeat(auto-fit,minmax(9em,1fr));gap:.6em;margin:1em 0 .2em}
.numbers div{background:#f6f8fa;border-radius:6px;padding:.6em .8em}
.numbers b{display:block;font-size:1.5em}
.numbers span{font-size:.85em;color:#57606a}
.strip a{border-radius:6px;padding:.5em .7em;color:inherit;text-decoration:none}
.strip span{display:block;font-size:.78em;color:#424a53}
.strip .holds,.holds .level{background:#dafbe1}
.strip .weak,.weak .level{background:#fff1c2}
.strip .falls,.falls .level{background:#ffdcd7}
.strip .not-measured,.not-measured .level{background:#eaeef2}
.verdicts td:first-child{width:30%}
.level{white-space:nowrap;font-weight:600}
"""
