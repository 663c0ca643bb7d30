"""What an attack found: rows of one form, so that the report shows attacks that it has never heard of."""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

NO_TIME: Final = "not run: time ran out before it began"

Scale = Literal["quality", "auc", "opened"]
"""What the scores of a result are: the held-out measure; the area under a ROC curve, where 0.5 tells nothing; or the
share of attempts that opened something."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement. `score` and `beside` are the held-out measure, 0 … 1; None: it was not run, `note` says why."""

    label: str
    score: float | None
    images: int
    """Labelled images that the attacker used."""
    work: int
    unit: str
    """What `work` counts, such as "keys tried"."""
    at: float | None = None
    """Where a row is one of a series: images, pairs or the share of the data."""
    beside: float | None = None
    """The same without our model: trained from scratch."""
    before: float | None = None
    """The same before the attack."""
    best: float | None = None
    """The highest along the way, chosen by the judge's images: an upper bound for an attacker who stops in time."""
    series: str = ""
    """Rows of one name are one line of the picture."""
    cut_short: bool = False
    """Whether time ran out before the planned work was done."""
    note: str = ""
    curve: tuple[tuple[int, float], ...] = ()
    """(work done, score) along the way."""

    def to_json(self) -> dict[str, Any]:
        """Return the object kept in report.json, scores rounded to 1e-4."""
        return {
            "label": self.label,
            "score": _rounded(self.score),
            "from_scratch": _rounded(self.beside),
            "before": _rounded(self.before),
            "best": _rounded(self.best),
            "series": self.series,
            "at": self.at,
            "images": self.images,
            "work": self.work,
            "unit": self.unit,
            "cut_short": self.cut_short,
            "note": self.note,
            "curve": [[work, _rounded(score)] for work, score in self.curve],
        }


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """One attack's rows; an attack that does not apply has none and says why in `skipped`."""

    name: str
    rows: tuple[Row, ...] = ()
    skipped: str = ""
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)
    """Further measurements, JSON values; never key material."""
    scale: Scale = "quality"

    @property
    def best(self) -> float | None:
        """The highest score of its rows."""
        return max((row.score for row in self.rows if row.score is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the object kept in report.json."""
        return {
            "name": self.name,
            "skipped": self.skipped,
            "seconds": round(self.seconds, 1),
            "scale": self.scale,
            "rows": [row.to_json() for row in self.rows],
            "details": self.details,
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
