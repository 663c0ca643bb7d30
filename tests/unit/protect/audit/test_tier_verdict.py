"""Verdicts on tiers follow from numbers by the written rules, and nothing else."""

from dataclasses import replace
from typing import Any

import pytest

from tessera.protect.audit.result import Row
from tessera.protect.audit.tier_verdict import Located, TiersMeasured, gained, tier_verdicts

SAFE = TiersMeasured(full=0.9, floor=0.1, alone=0.15)


def _trained(before: float, best: float, beside: float) -> Row:
    return Row(label="x", score=best, before=before, best=best, beside=beside, images=10, work=1, unit="training steps")


def _test(name: str, score: float, low: float, share: float = 1.0) -> Located:
    return Located(label=name, test=name, score=score, low=low, share=share)


@pytest.mark.parametrize(
    ("changes", "attacker", "level"),
    [
        ({}, "T0", "holds"),
        ({"alone": 0.21}, "T0", "weak"),
        ({"alone": 0.51}, "T0", "falls"),
        ({}, "T1", "not measured"),
        ({"located": (_test("smoothness", 0.60, 0.58),)}, "T1", "holds"),
        ({"located": (_test("smoothness", 0.65, 0.55),)}, "T1", "weak"),
        ({"located": (_test("smoothness", 0.80, 0.59),)}, "T1", "weak"),
        ({"located": (_test("residual", 0.76, 0.70),)}, "T1", "falls"),
        ({"located": (_test("smoothness", 0.5, 0.5), _test("neighbour", 0.9, 0.8))}, "T1", "falls"),
        ({"located": (_test("smoothness", 0.5, 0.5), _test("neighbour", 0.9, 0.8, 0.1))}, "T1", "weak"),
        ({}, "T2", "not measured"),
        ({"retrained": (_trained(0.5, 0.52, 0.3),)}, "T2", "holds"),
        ({"retrained": (_trained(0.5, 0.6, 0.55),)}, "T2", "weak"),
        ({"retrained": (_trained(0.1, 0.6, 0.45),)}, "T2", "falls"),
        ({"retrained": (_trained(0.1, 0.6, 0.6),)}, "T2", "holds"),
        ({"opened": 0, "attempts": 5, "controlled": True}, "T3", "holds"),
        ({"opened": 1, "attempts": 5, "controlled": True}, "T3", "falls"),
        ({"opened": 0, "attempts": 5, "controlled": False}, "T3", "not measured"),
        ({}, "T3", "not measured"),
    ],
)
def test_each_rule_has_its_threshold(changes: dict[str, Any], attacker: str, level: str) -> None:
    """One number over its line changes one verdict."""
    found = {verdict.attacker: verdict.level for verdict in tier_verdicts(replace(SAFE, **changes))}
    assert found[attacker] == level


def test_a_gain_is_what_neither_the_tier_nor_the_images_gave() -> None:
    """A tier that was good stays out of it, and so does what the images alone teach."""
    assert gained(_trained(0.6, 0.6, 0.2)) == 0.0
    assert gained(_trained(0.1, 0.8, 0.7)) == pytest.approx(0.1)
