"""What the numbers mean for five kinds of attackers, by written rules.

    A0   found the file; has no data, but ordinary pictures as anybody has
    A1   has a few labelled images of the kind that the model is for
    A2   has 1 to 10 % of the training data
    A3   has the public model from which this one was made
    A4   a licensed buyer who looks into the memory of the own machine
    A5   who sees keyed images pass, as the operator of a node does; only where the spec is one `ffx` step

The measure is the share of the lock that an attack undid: (score - floor) / (right key - floor), where the floor is
what always giving the commonest class reaches. Of A0 the rule is the level itself: at most twice the floor.

    holds    at most 20 % undone (A0: at most twice the floor)
    weak     more than that, at most 50 %
    falls    more than 50 %

A2 is judged by what the file adds, because somebody with that much data can train a model without it: it holds when no
attack is more than 2 points better than training from scratch at any share of the data, is weak up to 10 points, and
falls above. Attacks are the fine-tuned model, beside the same data, and the adapter, beside at least as many images.
No rule counts keys: how many there are says nothing about how fast a search finds a good one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from tessera.protect.audit import (
    adapters,
    averaging,
    fine_tuning,
    first_layer,
    inversion,
    keyless,
    known_pairs,
    pattern_pairs,
    searching,
    substitution,
)
from tessera.protect.audit.result import AttackResult, Row

Level = Literal["holds", "weak", "falls", "not measured"]

HOLDS: Final = 0.2
FALLS: Final = 0.5
FEW_IMAGES: Final = 100
"""Up to here an adapter's images are few (A1), above they are a part of the training data (A2)."""
GAIN_HOLDS: Final = 0.02
GAIN_FALLS: Final = 0.10
FLOORS: Final = 2.0
"""How many times the floor a model may reach without its key and still count as useless."""

RULES: Final = {
    "undone": "(score - floor) / (right key - floor)",
    "floor": "always giving the commonest class",
    "holds_up_to": HOLDS,
    "falls_above": FALLS,
    "a0_holds_up_to_floors": FLOORS,
    "a2_gain_over_scratch_holds_up_to": GAIN_HOLDS,
    "a2_gain_over_scratch_falls_above": GAIN_FALLS,
}
"""The rules as numbers, for report.json."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The numbers that verdicts are made of, 0 … 1; None for what was not measured."""

    right: float
    floor: float
    plain: float | None = None
    wrong_mean: float | None = None
    wrong_best: float | None = None
    searched: float | None = None
    """Best of all key searches."""
    read: float | None = None
    """With the key as the first layer's weights tell it, without labels."""
    corrected: float | None = None
    """The same after labelled images improved it."""
    inverted: float | None = None
    """Best perturbation for all images that was optimised on up to `FEW_IMAGES`."""
    adapter_few: float | None = None
    adapter_many: float | None = None
    tuned: tuple[tuple[float, float, float], ...] = ()
    """(share of the data, protected model trained further, the same from scratch)."""
    adapted: tuple[tuple[int, float, float], ...] = ()
    """(labelled images, the adapter, from scratch with at least as many images)."""
    pairs: tuple[tuple[int, float], ...] = ()
    """(pairs of images, score)."""
    passing: tuple[tuple[int, float], ...] = ()
    """(keyed images seen, without labels, score)."""
    cut_short: bool = False
    """Whether time ran out in one of the attacks: a patient thief reaches more."""

    def undone(self, score: float) -> float:
        """Return the share of the lock that an attack with this score undid, 0 … 1."""
        worth = self.right - self.floor
        return min(1.0, max(0.0, (score - self.floor) / worth)) if worth > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How the protection stands against one kind of attacker."""

    attacker: str
    who: str
    level: Level
    says: str
    advice: str

    def to_json(self) -> dict[str, str]:
        """Return the object kept in report.json."""
        return {
            "attacker": self.attacker, "who": self.who, "level": self.level, "says": self.says, "advice": self.advice,
        }  # fmt: skip


def measured(results: Iterable[AttackResult]) -> Measured | None:
    """Return what `results` measured, or None when the right key's score is not among it."""
    found = {result.name: result for result in results}
    base = found.get(keyless.NAME)
    if base is None or not base.rows:
        return None
    scores = {row.label: row.score for row in base.rows}
    adapter, tuning = (_rows(found, name) for name in (adapters.NAME, fine_tuning.NAME))
    pairs = [row for name in _PAIRED for row in _rows(found, name)]
    return Measured(
        right=scores[keyless.RIGHT] or 0.0,
        floor=float(base.details["chance"]),
        plain=scores[keyless.PLAIN],
        wrong_mean=scores[keyless.WRONG],
        wrong_best=scores[keyless.WRONG_BEST],
        searched=_best(row for name in _searches(found) for row in _rows(found, name)),
        read=_best(row for row in _rows(found, first_layer.NAME) if not row.images),
        corrected=_best(row for row in _rows(found, first_layer.NAME) if row.images),
        inverted=_best(row for row in _rows(found, inversion.NAME) if (row.at or 0) <= FEW_IMAGES),
        adapter_few=_best(row for row in adapter if (row.at or 0) <= FEW_IMAGES),
        adapter_many=_best(row for row in adapter if (row.at or 0) > FEW_IMAGES),
        tuned=tuple(
            (row.at or 0.0, row.score, row.beside) for row in tuning if row.score is not None and row.beside is not None
        ),
        adapted=tuple(_beside(adapter, tuning)),
        pairs=tuple((int(row.at or 0), row.score) for row in pairs if row.score is not None),
        passing=tuple(
            (int(row.at or 0), row.score)
            for row in _rows(found, substitution.NAME)
            if row.score is not None and not row.images
        ),
        cut_short=any(row.cut_short for result in found.values() for row in result.rows),
    )


def verdicts(found: Measured) -> list[Verdict]:
    """Return the verdict on each of the attackers A0 to A4, and A5 where there is one; the rules are this module's."""
    passing = [_a5(found)] if found.passing else []
    return [_a0(found), _a1(found), _a2(found), _a3(found), _a4(found), *passing]


def _a0(found: Measured) -> Verdict:
    values = {
        "ordinary images": found.plain,
        "random keys on average": found.wrong_mean,
        "the key as it can be read in the first layer's weights": found.read,
    }
    known = {words: value for words, value in values.items() if value is not None}
    who = "Somebody who found the file: no key, no data"
    if not known:
        return _unmeasured("A0", who)
    worst = max(known.values())
    level: Level = "falls" if found.undone(worst) > FALLS else "weak" if worst > FLOORS * found.floor else "holds"
    numbers = ", ".join(f"{value:.0%} with {words}" for words, value in known.items())
    told = level != "holds" and worst == found.read
    lucky = "" if found.wrong_best is None else f" The luckiest random key reached {found.wrong_best:.0%}."
    says = (
        f"The copied model reaches {numbers}; with the right key {found.right:.0%}, by blind guessing "
        f"{found.floor:.0%}.{lucky}"
    )
    advice = {
        "holds": "Enough against casual copying. Encrypt and license the file as well: that stops this attacker "
        "outright.",
        "weak": "Too much is left without the key: choose another transform or block size before you sell.",
        "falls": "Do not sell this as protected: it works without the key. Choose another transform or block size.",
    }[level]
    if told:
        advice = (
            "Whoever has the weights has the key: this lock keeps out those who only copy and run the file. Ship it "
            "sealed, to nodes you trust. No choice of block size or transform of these kinds hides the key in a first "
            "layer that takes whole blocks."
        )
    return Verdict(attacker="A0", who=who, level=level, says=says, advice=advice)


def _a1(found: Measured) -> Verdict:
    who = "Somebody with the file and a few labelled images"
    ways = {
        "searching the key": found.searched,
        "reading the key in the weights and correcting it": found.corrected,
        f"a perturbation optimised on up to {FEW_IMAGES} images": found.inverted,
        f"an adapter trained on up to {FEW_IMAGES} images": found.adapter_few,
    }
    known = {words: value for words, value in ways.items() if value is not None}
    if not known:
        return _unmeasured("A1", who)
    way = max(known, key=lambda words: known[words])
    undone = found.undone(known[way])
    level = _level(undone)
    says = f"The best such attack was {way}: {known[way]:.0%}, which undoes {undone:.0%} of the lock.{_patience(found)}"
    advice = {
        "holds": "Within this budget the lock slowed such a thief down. A larger budget may say otherwise: run one.",
        "weak": "Expect a determined thief with a few of your images to get a usable model.",
        "falls": "Do not count on the transform against anybody who has a few labelled images and the file: "
        "what protects you is that nobody gets the file. Keep it sealed, and license it only to nodes you trust.",
    }[level]
    return Verdict(attacker="A1", who=who, level=level, says=says, advice=advice)


def _a2(found: Measured) -> Verdict:
    who = "Somebody with the file and 1 to 10 % of the training data"
    if not found.tuned:
        return _unmeasured("A2", who)
    gains = {share: tuned - scratch for share, tuned, scratch in found.tuned}
    adapter = {images: score - scratch for images, score, scratch in found.adapted}
    gain = max(*gains.values(), *adapter.values(), -1.0)
    level: Level = "holds" if gain <= GAIN_HOLDS else "weak" if gain <= GAIN_FALLS else "falls"
    parts = [
        f"with {share:.0%} of the data {tuned:.0%} instead of {scratch:.0%}" for share, tuned, scratch in found.tuned
    ]
    says = f"Training your model further instead of one from scratch gives {', '.join(parts)}.{_patience(found)}"
    if found.adapter_many is not None:
        says += f" An adapter trained on 1,000 images reaches {found.adapter_many:.0%}."
    if adapter and max(adapter.values()) == gain:
        images, score, scratch = max(found.adapted, key=lambda row: row[1] - row[2])
        says += f" Most is to be had by an adapter: {score:.0%} with {images:,} images, from scratch {scratch:.0%}."
    advice = {
        "holds": "The stolen file was worth next to nothing beyond the data itself.",
        "weak": "The stolen file gives a thief with data a head start; keep the training data as close as the weights.",
        "falls": "A thief with data gets much of your model's value out of the file. No input transform prevents that; "
        "only keeping the weights sealed does.",
    }[level]
    return Verdict(attacker="A2", who=who, level=level, says=says, advice=advice)


def _a3(_found: Measured) -> Verdict:
    return Verdict(
        attacker="A3",
        who="Somebody who has the public model that yours was made from",
        level="not measured",
        says="The audit is not given such a model. If yours was trained from scratch, there is none and this row is "
        "void.",
        advice="If you fine-tuned a public model: a keyed input does not hide the weights, and this attacker starts "
        "from the public model and needs less data than the one above. Assume that the lock does not stop them.",
    )


def _a4(found: Measured) -> Verdict:
    who = "A licensed buyer, or a program on the buyer's machine, who sees images before and after the transform"
    if not found.pairs:
        return _unmeasured("A4", who)
    count, score = max(found.pairs, key=lambda pair: (pair[1], -pair[0]))
    first = min(found.pairs)[0]
    first_score = max(reached for images, reached in found.pairs if images == first)
    undone = found.undone(score)
    more = "" if count == first else f" With {count} pairs: {score:.0%}."
    plural = "s" if first > 1 else ""
    says = (
        f"From {first} image{plural} before and after, the transform that was read off reaches {first_score:.0%}.{more}"
    )
    advice = (
        "Nothing in software stops a licensed user from reading a key that works on their machine. Let the transform "
        "run inside the buyer's process, never as a service that returns keyed images; give each licence a term and a "
        "quota; keep the weights on nodes that the buyer does not control."
    )
    return Verdict(attacker="A4", who=who, level=_level(undone), says=says, advice=advice)


def _a5(found: Measured) -> Verdict:
    count, score = max(found.passing, key=lambda seen: (seen[1], -seen[0]))
    undone = found.undone(score)
    return Verdict(
        attacker="A5",
        who="Whoever sees keyed images pass, as the operator of a node does; no label, no pair",
        level=_level(undone),
        says=f"From {count:,} such images the tables were read off by their statistics, and reach {score:.0%}: that "
        f"undoes {undone:.0%} of the lock.",
        advice="Do not count on ffx against somebody who sees keyed images: neither the model nor the images are kept "
        "from a node's operator by it. Against an operator only contracts and hardware help.",
    )


_PAIRED: Final = (known_pairs.NAME, averaging.NAME, pattern_pairs.NAME)
"""Attacks by images before and after the transform."""


def _level(undone: float) -> Level:
    return "holds" if undone <= HOLDS else "weak" if undone <= FALLS else "falls"


def _unmeasured(attacker: str, who: str) -> Verdict:
    return Verdict(
        attacker=attacker, who=who, level="not measured", says="No attack of this kind was run.",
        advice="Run the audit with all attacks before you sell.",
    )  # fmt: skip


def _patience(found: Measured) -> str:
    return " Some attacks ran out of time; a patient thief reaches more." if found.cut_short else ""


def _beside(adapter: Iterable[Row], tuning: Iterable[Row]) -> Iterable[tuple[int, float, float]]:
    """Yield adapters beside training from scratch with at least as many images: a gain that is never overstated."""
    scratch = sorted((row.images, row.beside) for row in tuning if row.beside is not None)
    for row in adapter:
        compared = [score for images, score in scratch if images >= row.images]
        if row.score is not None and compared:
            yield row.images, row.score, compared[0]


def _searches(found: dict[str, AttackResult]) -> list[str]:
    """Return the key searches of somebody who knows no part of the key."""
    names = ["random-search", "greedy-search"]
    mask = found.get("mask-search")
    return names if mask is None or searching.GIVEN in mask.details else [*names, "mask-search"]


def _rows(found: dict[str, AttackResult], name: str) -> tuple[Row, ...]:
    return found[name].rows if name in found else ()


def _best(rows: Iterable[Row]) -> float | None:
    return max((row.score for row in rows if row.score is not None), default=None)


def to_json(found: list[Verdict]) -> list[dict[str, Any]]:
    """Return the verdicts as kept in report.json."""
    return [verdict.to_json() for verdict in found]
