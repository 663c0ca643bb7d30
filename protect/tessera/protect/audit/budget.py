"""How much an attacker may spend: counts that make a run repeatable, and a time after which it is cut short.

Counts are part of a budget, so that the same budget and seed give the same numbers. Time is a limit above them: an
attack that reaches it stops where it is and its rows say so.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from tessera.keystore.errors import ApiMisuse, NotFound

Advance = Callable[[int, int], None]
"""Progress: (work done, work in all)."""

MAX_MINUTES: Final = 7 * 24 * 60


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of one audit. Raises `ApiMisuse` for numbers that leave nothing to do."""

    name: str
    minutes: float
    """Time for all attacks together, above 0 and at most a week; each gets its share of what is left."""
    held_out: int
    """Most images that an attack is judged by."""
    wrong_keys: int
    """Random keys whose score is measured one by one."""
    random_keys: int
    """Keys tried by the random search."""
    search_images: int
    """Labelled images by which a key search compares keys."""
    evaluations: int
    """Keys that each key search tries."""
    steps: int
    """Training steps of each adapter, of each fine-tuning and of each retraining of a tier."""
    lower_tiers: int = 1
    """Tiers between the file alone and the full model from which retraining starts as well."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= MAX_MINUTES:
            raise ApiMisuse(
                f"an audit takes more than 0 and at most {MAX_MINUTES} minutes, not {self.minutes:g}",
                remedy="Give a number of minutes such as 10, or leave the limit to the budget.",
            )
        counts = (self.held_out, self.wrong_keys, self.random_keys, self.search_images, self.evaluations, self.steps)
        if min(counts) < 1 or self.lower_tiers < 0:
            raise ApiMisuse("every count of a budget is at least 1, that of lower tiers at least 0")

    def within(self, minutes: float) -> "Budget":
        """Return the same budget with another time limit. Raises `ApiMisuse`."""
        return replace(self, minutes=minutes)


BUDGETS: Final[dict[str, Budget]] = {
    found.name: found
    for found in (
        Budget(
            name="quick", minutes=3, held_out=500, wrong_keys=100, random_keys=300, search_images=128,
            evaluations=1500, steps=200,
        ),
        Budget(
            name="standard", minutes=15, held_out=2000, wrong_keys=100, random_keys=2000, search_images=256,
            evaluations=12_000, steps=600,
        ),
        Budget(
            name="full", minutes=240, held_out=1_000_000, wrong_keys=100, random_keys=20_000, search_images=512,
            evaluations=200_000, steps=4000, lower_tiers=16,
        ),
    )
}  # fmt: skip
"""Every budget by name; `full` tries as many random keys as the papers do."""


def budget(name: str, minutes: float | None = None) -> Budget:
    """Return the budget called `name`, with another time limit where one is given. Raises `NotFound`, `ApiMisuse`."""
    found = BUDGETS.get(name)
    if found is None:
        raise NotFound(f"there is no budget {name!r}", remedy=f"Choose one of: {', '.join(BUDGETS)}.")
    return found if minutes is None else found.within(minutes)


class Meter:
    """Tells an attack when its time is up, and whoever watches how far it is.

    `clock` gives seconds, and only differences of it count.
    """

    def __init__(
        self, seconds: float, advance: Advance | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self._advance = clock, advance
        self._begun = clock()
        self._until = self._begun + seconds
        self._done = self._total = 0
        self._above: Meter | None = None

    def expect(self, work: int) -> None:
        """Say that `work` more is to come."""
        self._total += work
        self.did(0)

    def did(self, work: int = 1) -> None:
        """Say that `work` is done."""
        if self._above is not None:
            self._above.did(work)
        self._done += work
        if self._advance is not None:
            self._advance(min(self._done, self._total), self._total)

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self._clock() >= self._until

    @property
    def seconds(self) -> float:
        """Seconds since it was made."""
        return self._clock() - self._begun

    def part(self, left: int) -> "Meter":
        """Return the meter of one of `left` equal parts of what remains."""
        remaining = max(0.0, self._until - self._clock())
        child = Meter(remaining / max(1, left), None, self._clock)
        child._above = self
        return child
