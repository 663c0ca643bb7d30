"""What the demo expected and what it saw."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tessera.cli import console
from tessera.keystore.errors import TesseraError

NOTHING_RAISED = "nothing was refused"


@dataclass(frozen=True)
class Expectation:
    """One line of the closing table."""

    name: str
    expected: str
    observed: str
    ok: bool


@dataclass
class Findings:
    """Everything the demo reports; `to_json` is the document of `tessera demo --json`."""

    expectations: list[Expectation] = field(default_factory=list)
    accuracy: dict[str, float] = field(default_factory=dict)
    throughput_samples_per_s: float = 0.0
    usage: list[dict[str, Any]] = field(default_factory=list)

    def expect(self, name: str, expected: object, observed: object) -> None:
        """Record that `observed` should equal `expected`."""
        self.expectations.append(Expectation(name, _words(expected), _words(observed), expected == observed))

    def expect_at_least(self, name: str, bound: float, observed: float) -> None:
        """Record that a share in 0 … 1 should reach `bound`."""
        self.expectations.append(Expectation(name, f"at least {bound:.0%}", f"{observed:.1%}", observed >= bound))

    def expect_at_most(self, name: str, bound: float, observed: float) -> None:
        """Record that a share in 0 … 1 should stay below `bound`."""
        self.expectations.append(Expectation(name, f"at most {bound:.0%}", f"{observed:.1%}", observed <= bound))

    def expect_refusal(self, name: str, reason: str, attempt: Callable[[], object]) -> TesseraError | None:
        """Record that `attempt` should be refused for `reason`; return the refusal."""
        try:
            attempt()
        except TesseraError as error:
            self.expect(name, reason, error.reason)
            return error
        self.expect(name, reason, NOTHING_RAISED)
        return None

    @property
    def ok(self) -> bool:
        """Whether every expectation was met."""
        return all(expectation.ok for expectation in self.expectations)

    def to_json(self) -> dict[str, Any]:
        """Return the document that `--json` writes."""
        return {
            "expectations": [vars(expectation) for expectation in self.expectations],
            "accuracy": self.accuracy,
            "throughput_samples_per_s": round(self.throughput_samples_per_s, 1),
            "usage": self.usage,
        }


def _words(value: object) -> str:
    return "none" if value == [] else console.told(value)
