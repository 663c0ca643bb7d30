"""What the numbers mean for four kinds of attackers of a model in tiers, by written rules.

    T0   found the file: its weights with all decoys, no tier key, no data
    T1   looks for the encrypted units by statistics
    T2   has a lower tier's weights and some images, 2 of them to 10 % of the data
    T3   holds a lower tier's key, and the whole sealed file

T0 holds while the file answers at most twice as well as blind guessing, and falls when it gives more than half of what
lies between that and the full model. T1 holds while no test reaches an AUC above 0.60, counted from 0.5 in either
direction, and falls above 0.75; between them it is weak, as it is where too few units are encrypted to tell, or where
the test applies to fewer than half of them. T2 holds while retraining brings at most 2 points more than both the tier
as it was and training from scratch, is weak up to 10 points, and falls above. T3 holds when every attempt ended in an
authentication failure, and falls when one did not.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tessera.protect.audit import tier_keys, tier_localisation, tier_retraining, tier_use
from tessera.protect.audit.result import AttackResult, Row
from tessera.protect.audit.verdict import FALLS, FLOORS, GAIN_FALLS, GAIN_HOLDS, Level, Verdict

AUC_FALLS: Final = 0.75
MOST: Final = 0.5
"""A test that applies to fewer of the encrypted units makes a verdict weak, however well it finds those."""
_ORDER: Final[tuple[Level, ...]] = ("holds", "weak", "falls")

TIER_RULES: Final = {
    "t1_auc_holds_up_to": tier_localisation.BAR,
    "t1_auc_falls_above": AUC_FALLS,
    "t1_tests": list(tier_localisation.BARRED),
    "t2_gain_over_tier_and_scratch_holds_up_to": GAIN_HOLDS,
    "t2_gain_over_tier_and_scratch_falls_above": GAIN_FALLS,
}
"""The rules as numbers, for report.json."""


@dataclass(frozen=True, kw_only=True)
class Located:
    """One test's AUC, with the lower end of its 95 % interval, both counted upwards from 0.5."""

    label: str
    test: str
    score: float
    low: float
    share: float = 1.0
    """Of the encrypted units, those in layers that the test applies to."""


@dataclass(frozen=True, kw_only=True)
class TiersMeasured:
    """The numbers that verdicts on tiers are made of, 0 … 1; None or empty for what was not measured."""

    full: float
    floor: float
    alone: float
    """What the file alone answers."""
    located: tuple[Located, ...] = ()
    retrained: tuple[Row, ...] = ()
    """Rows that were trained, each with `before`, `best` and `beside`."""
    opened: int | None = None
    """Attempts with lower keys that opened something."""
    attempts: int = 0
    controlled: bool = False
    """Whether the right keys opened everything in the same ways."""
    cut_short: bool = False


def tiers_measured(results: Iterable[AttackResult]) -> TiersMeasured | None:
    """Return what `results` measured of tiers, or None when what each tier answers is not among it."""
    found = {result.name: result for result in results}
    base = found.get(tier_use.NAME)
    if base is None or not base.rows:
        return None
    scores = [row.score or 0.0 for row in base.rows]
    keys = found.get(tier_keys.NAME)
    tried = [] if keys is None else [row for row in keys.rows if row.label not in tier_keys.CONTROLS]
    retrained = found[tier_retraining.NAME].rows if tier_retraining.NAME in found else ()
    return TiersMeasured(
        full=scores[-1],
        floor=float(base.details[tier_use.FLOOR]),
        alone=scores[0],
        located=tuple(_located(found.get(tier_localisation.NAME))),
        retrained=tuple(row for row in retrained if row.best is not None),
        opened=sum(_opened(row) for row in tried) if keys is not None and keys.rows else None,
        attempts=sum(row.work for row in tried),
        controlled=keys is not None and all(row.score == 1.0 for row in keys.rows if row.label in tier_keys.CONTROLS),
        cut_short=any(row.cut_short for row in retrained),
    )


def tier_verdicts(found: TiersMeasured) -> list[Verdict]:
    """Return the verdict on each of the attackers T0 to T3; the rules are this module's."""
    return [_t0(found), _t1(found), _t2(found), _t3(found)]


def gained(row: Row) -> float:
    """Return what a retraining brought beyond the tier as it was and training from scratch."""
    return round((row.best or 0.0) - max(row.before or 0.0, row.beside or 0.0), 6)


def _t0(found: TiersMeasured) -> Verdict:
    worth = found.full - found.floor
    given = (found.alone - found.floor) / worth if worth > 0 else 1.0
    level: Level = "falls" if given > FALLS else "weak" if found.alone > FLOORS * found.floor else "holds"
    says = (
        f"The file alone, decoys in place, reaches {found.alone:.0%}; the full model {found.full:.0%}, blind guessing "
        f"{found.floor:.0%}."
    )
    advice = {
        "holds": "Without a tier key the weights are useless as they are.",
        "weak": "Something is left without any tier key: encrypt more of the weights, unless it is meant to answer.",
        "falls": "Most of the model works without any tier key: encrypt more weights, or layers that matter more.",
    }[level]
    return Verdict(
        attacker="T0", who="Somebody with the weights of the file, no tier key and no data", level=level, says=says,
        advice=advice,
    )  # fmt: skip


def _t1(found: TiersMeasured) -> Verdict:
    who = "Somebody who looks for the encrypted weights by statistics"
    if not found.located:
        return _unmeasured("T1", who)
    barred = [test for test in found.located if test.test in tier_localisation.BARRED]
    worst = max(barred or found.located, key=lambda test: test.score)
    other = max(found.located, key=lambda test: test.score)
    level = max((_auc_level(test) for test in found.located), key=_ORDER.index)
    says = f"The better of the tests with a bar ({worst.label}) reaches an AUC of {worst.score:.2f}, and 0.5 is chance."
    if worst.score > tier_localisation.BAR >= worst.low:
        says += " With so few encrypted units that may be chance."
    if other.score > max(worst.score, tier_localisation.BAR):
        says += (
            f" Another test ({other.label}) reaches {other.score:.2f}; it applies to {other.share:.1%} of the "
            "encrypted units."
        )
    advice = {
        "holds": "The decoys do not give their places away to these tests.",
        "weak": "Statistics narrow down where the encrypted weights are. Count on the cipher, which hides their "
        "values, and not on nobody knowing the places.",
        "falls": "The decoys are found: do not count on hidden places, and use the kind kernel if they are not yet.",
    }[level]
    return Verdict(attacker="T1", who=who, level=level, says=says, advice=advice)


def _auc_level(test: Located) -> Level:
    if test.score <= tier_localisation.BAR:
        return "holds"
    found = test.score > AUC_FALLS and test.low > tier_localisation.BAR and test.share >= MOST
    return "falls" if found else "weak"


def _t2(found: TiersMeasured) -> Verdict:
    who = "Somebody with a lower tier and a few images, up to 10 % of the training data"
    if not found.retrained:
        return _unmeasured("T2", who)
    worst = max(found.retrained, key=gained)
    gain = gained(worst)
    level: Level = "holds" if gain <= GAIN_HOLDS else "weak" if gain <= GAIN_FALLS else "falls"
    says = (
        f"Retraining brought most from {worst.label}: {worst.before or 0:.0%} became {worst.best or 0:.0%}, where "
        f"training from scratch gives {worst.beside or 0:.0%} and the full model has {found.full:.0%}."
    )
    if found.cut_short:
        says += " Some trainings ran out of time; a patient thief reaches more."
    advice = {
        "holds": "The withheld weights were not to be had back by training, within this budget.",
        "weak": "A lower tier is a head start for somebody with data; price it as one.",
        "falls": "A lower tier and a few images give much of the full model back. Withhold more weights, keep lower "
        "tiers on nodes that you trust, or sell tiers for what they save a buyer, not for what they keep from a thief.",
    }[level]
    return Verdict(attacker="T2", who=who, level=level, says=says, advice=advice)


def _t3(found: TiersMeasured) -> Verdict:
    who = "A holder of a lower tier's key who has the whole file"
    if found.opened is None:
        return _unmeasured("T3", who)
    if not found.controlled:
        return Verdict(
            attacker="T3", who=who, level="not measured",
            says="The right keys did not open the file, so that lower keys did not either says nothing.",
            advice="Seal the model again, and audit that package.",
        )  # fmt: skip
    level: Level = "falls" if found.opened else "holds"
    says = f"{found.opened:,} of {found.attempts:,} attempts opened something; the right keys opened everything."
    advice = {
        "holds": "Each ended in an authentication failure: higher tiers are closed by cryptography.",
        "falls": "Do not sell this package: a lower tier's key opens a higher tier. Seal it again with this software, "
        "and if that does not help, tell us.",
    }[level]
    return Verdict(attacker="T3", who=who, level=level, says=says, advice=advice)


def _located(result: AttackResult | None) -> Iterable[Located]:
    if result is None:
        return
    scores = [row.score for row in result.rows if row.score is not None]
    for score, about in zip(scores, result.details.get(tier_localisation.TESTED, ()), strict=True):
        low, high = about["interval"]
        yield Located(
            label=f"{about['test']}, {about['start']}",
            test=about["test"],
            score=0.5 + abs(score - 0.5),
            low=0.5 + max(0.0, low - 0.5, 0.5 - high),
            share=about["share"],
        )


def _opened(row: Row) -> int:
    return round((row.score or 0.0) * row.work)


def _unmeasured(attacker: str, who: str) -> Verdict:
    return Verdict(
        attacker=attacker, who=who, level="not measured", says="No attack of this kind was run.",
        advice="Run the audit with all attacks before you sell.",
    )  # fmt: skip
