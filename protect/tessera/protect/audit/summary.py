"""The top of the page: the few numbers that everything else lies between, and the verdicts in short."""

from html import escape
from itertools import groupby
from typing import Final

from tessera.protect.audit.run import Report
from tessera.protect.audit.sections import percent
from tessera.protect.audit.tier_verdict import TiersMeasured
from tessera.protect.audit.verdict import Level, Measured, Verdict
from tessera.protect.curves import METRIC_WORDS

LEVELS: Final[dict[Level, str]] = {
    "holds": "held in this audit",
    "weak": "weak",
    "falls": "does not hold",
    "not measured": "not measured",
}
"""What a level is called in front of people."""

_Number = tuple[str, float | None]
"""What it is, and its value where it was measured."""


def numbers(report: Report, found: Measured | None, tiers: TiersMeasured | None) -> str:
    """Return the numbers, a row for each protection, and what is missing to compare with."""
    rows = []
    if found is not None:
        rows.append(_keyed(found))
    if tiers is not None:
        rows.append(_tiers(tiers, beside=found is not None))
    cells = "".join(f"<div class=numbers>{''.join(map(_cell, row))}</div>" for row in rows)
    words = f"<p class=small>All in {METRIC_WORDS[report.sample.metric]}.</p>" if rows else ""
    wanted = (("no-key", report.subject.lock, found), ("tier-quality", report.subject.cut, tiers))
    return cells + words + "".join(_warning(name) for name, there, measured in wanted if there and not measured)


def strip(verdicts: list[Verdict]) -> str:
    """Return the verdicts in short, a row for each family of attackers."""
    families = groupby(verdicts, key=lambda verdict: verdict.attacker[0])
    return "".join(f"<div class=strip>{''.join(map(_short, family))}</div>" for _, family in families)


def css_class(level: Level) -> str:
    """Return the class of what shows a level."""
    return level.replace(" ", "-")


def _keyed(found: Measured) -> list[_Number]:
    few = [score for score in (found.searched, found.adapter_few) if score is not None]
    return [
        ("with the right key", found.right),
        ("plain images, no key", found.plain),
        ("random wrong keys, on average", found.wrong_mean),
        ("best attack with a few labelled images", max(few, default=None)),
        ("trained further on up to 10 % of the data", max((score for _, score, _ in found.tuned), default=None)),
        ("read off keyed images that passed", max((score for _, score in found.passing), default=None)),
        ("blind guessing", found.floor),
    ]


def _tiers(found: TiersMeasured, *, beside: bool) -> list[_Number]:
    """Return what is to be said of tiers; `beside` other numbers, which have the floor already."""
    return [
        ("the full model, all tiers", found.full),
        ("the file alone, no tier key", found.alone),
        ("a lower tier retrained, at best", max((row.best or 0.0 for row in found.retrained), default=None)),
        ("blind guessing", None if beside else found.floor),
    ]


def _cell(number: _Number) -> str:
    label, value = number
    return "" if value is None else f"<div><b>{percent(value)}</b><span>{label}</span></div>"


def _warning(attack: str) -> str:
    return (
        f"<p class=warn>The scores that others are compared with were not measured: run the attack <i>{attack}</i>.</p>"
    )


def _short(verdict: Verdict) -> str:
    return (
        f"<a class='{css_class(verdict.level)}' href='#verdicts'><b>{verdict.attacker}</b> {LEVELS[verdict.level]}"
        f"<span>{escape(verdict.who)}</span></a>"
    )
