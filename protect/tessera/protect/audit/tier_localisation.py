"""Where the encrypted units are, told by statistics over the weights that somebody already has.

A decoy that looks like no trained weight gives its place away, and a thief who knows the places trains those alone or
leaves them out. Somebody with a lower tier also knows which units that tier gave back, so these are not compared.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import torch

from tessera.keystore.errors import ApiMisuse
from tessera.protect.audit.budget import Budget, Meter
from tessera.protect.audit.cut import Cut
from tessera.protect.audit.result import NO_TIME, AttackResult, Row
from tessera.protect.audit.subject import Sample, Subject
from tessera.protect.audit.tier_use import cut_of
from tessera.protect.selective.localise import localise_units, weighted_auc
from tessera.protect.selective.suspicion import MEASURES
from tessera.protect.selective.units import Layer

NAME: Final = "tier-localisation"
BAR: Final = 0.60
"""Highest AUC of `BARRED` that our decoys may have; 0.5 tells nothing."""
BARRED: Final = ("smoothness", "residual")
"""The tests that the bar is for: those that find the decoys of the paper."""
TESTED: Final = "tests"
"""The detail with what each measured row is about: its test, its interval, its share of the encrypted units."""
_Z_95 = 1.96


def run(
    subject: Subject,
    sample: Sample,  # noqa: ARG001 - weights alone are looked at
    budget: Budget,  # noqa: ARG001 - the tests are few
    meter: Meter,
    *,
    seed: int,  # noqa: ARG001 - nothing is drawn
    device: torch.device,  # noqa: ARG001 - a few matrices on the CPU
) -> AttackResult:
    """Measure every test against the truth of the patches, for the file alone and for each lower tier."""
    cut = cut_of(subject)
    try:
        layers = cut.layers()
    except ApiMisuse as error:
        return AttackResult(name=NAME, skipped=error.public)
    meter.expect(len(cut.starts()))
    rows: list[Row] = []
    each: dict[str, Any] = {}
    tests: list[dict[str, Any]] = []
    for start in cut.starts():
        if meter.over and rows:
            rows.append(_not_run(cut.title(start)))
            continue
        found, each[cut.title(start)] = _located(cut, start, layers)
        rows += [test.row() for test in found]
        tests += [test.to_json() for test in found]
        meter.did()
    if not rows:
        return AttackResult(name=NAME, skipped="no layer has encrypted and plain units to compare")
    return AttackResult(name=NAME, rows=tuple(rows), details={"bar": BAR, "layers": each, TESTED: tests}, scale="auc")


@dataclass(frozen=True)
class _Located:
    """What one test tells somebody who starts from one tier."""

    title: str
    test: str
    score: float
    encrypted: int
    """Encrypted units in the layers that the test applies to."""
    of: int
    """Encrypted units in all layers."""
    compared: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of its AUC."""
        return auc_interval(self.score, self.encrypted, self.compared - self.encrypted)

    def row(self) -> Row:
        """Return its row."""
        low, high = self.interval
        some = f"{self.encrypted:,}" if self.encrypted == self.of else f"{self.encrypted:,} of {self.of:,}"
        return Row(
            label=f"{self.title}: {self.test}, {MEASURES[self.test]}",
            score=self.score,
            images=0,
            work=self.compared,
            unit="units",
            note=f"95 %: {low:.2f} to {high:.2f}; {some} encrypted",
            series=self.title,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what verdicts are made of."""
        return {"start": self.title, "test": self.test, "interval": self.interval, "share": self.encrypted / self.of}


def auc_interval(score: float, positives: int, negatives: int) -> tuple[float, float]:
    """Return the 95 % interval of an AUC (Hanley and McNeil 1982), cut to 0 … 1."""
    both = score / (2 - score), 2 * score**2 / (1 + score)
    spread = score * (1 - score) + (positives - 1) * (both[0] - score**2) + (negatives - 1) * (both[1] - score**2)
    half = _Z_95 * math.sqrt(max(0.0, spread) / (positives * negatives))
    return round(max(0.0, score - half), 4), round(min(1.0, score + half), 4)


def _located(cut: Cut, start: int, layers: tuple[Layer, ...]) -> tuple[list[_Located], dict[str, dict[str, float]]]:
    """Return every test over all layers that it applies to, and the AUCs of each layer."""
    hidden, known = cut.units(start), cut.units(0, start)
    found = localise_units(cut.state(start), layers, hidden, known)
    locked = {name: len(units) for name, units in hidden.items()}
    tests = []
    for test, score in weighted_auc(found, locked).items():
        there = [layer for layer in layers if test in found.get(layer.weight, ())]
        compared = sum(layer.count - len(known.get(layer.weight, ())) for layer in there)
        encrypted = sum(locked[layer.weight] for layer in there)
        tests.append(_Located(cut.title(start), test, score, encrypted, sum(locked.values()), compared))
    return tests, {name: {test: round(score, 4) for test, score in scores.items()} for name, scores in found.items()}


def _not_run(title: str) -> Row:
    return Row(label=title, score=None, images=0, work=0, unit="units", cut_short=True, note=NO_TIME)
