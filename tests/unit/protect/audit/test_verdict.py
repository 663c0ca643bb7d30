"""Verdicts follow from numbers by the written rules, and nothing else."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.protect.audit import AttackResult, Measured, Row, measured, verdicts
from tessera.protect.audit.searching import GIVEN

SAFE = Measured(
    right=0.9, floor=0.1, plain=0.12, wrong_mean=0.11, wrong_best=0.2, searched=0.2, adapter_few=0.2, adapter_many=0.3,
    tuned=((0.01, 0.4, 0.39), (0.1, 0.7, 0.71)), pairs=((1, 0.2),),
)  # fmt: skip
"""A lock that holds against everybody who was measured."""
shares = st.floats(0, 1)


def levels(found: Measured) -> dict[str, str]:
    """Return attacker to level."""
    return {verdict.attacker: verdict.level for verdict in verdicts(found)}


def test_a_lock_that_gives_nothing_away_holds() -> None:
    """Every attacker of the ladder has a verdict; who was not measured is called that."""
    assert levels(SAFE) == {"A0": "holds", "A1": "holds", "A2": "holds", "A3": "not measured", "A4": "holds"}


@pytest.mark.parametrize(
    ("changes", "attacker", "level"),
    [
        ({"plain": 0.21}, "A0", "weak"),
        ({"plain": 0.51}, "A0", "falls"),
        ({"wrong_mean": 0.51}, "A0", "falls"),
        ({"adapter_few": 0.27}, "A1", "weak"),
        ({"searched": 0.51}, "A1", "falls"),
        ({"tuned": ((0.01, 0.45, 0.39), (0.1, 0.7, 0.71))}, "A2", "weak"),
        ({"tuned": ((0.01, 0.60, 0.39),)}, "A2", "falls"),
        ({"adapted": ((100, 0.5, 0.45),)}, "A2", "weak"),
        ({"adapted": ((100, 0.5, 0.39), (10, 0.2, 0.2))}, "A2", "falls"),
        ({"pairs": ((1, 0.2), (5, 0.9))}, "A4", "falls"),
        ({"pairs": ()}, "A4", "not measured"),
        ({"tuned": ()}, "A2", "not measured"),
        ({"searched": None, "adapter_few": None}, "A1", "not measured"),
        ({"plain": None, "wrong_mean": None}, "A0", "not measured"),
    ],
)
def test_each_rule_has_its_threshold(changes: dict[str, object], attacker: str, level: str) -> None:
    """One number over its line changes one verdict, and only that."""
    found = levels(replace(SAFE, **changes))  # type: ignore[arg-type]
    assert found == levels(SAFE) | {attacker: level}


@given(shares, shares, shares, shares)
def test_a_better_attack_never_improves_a_verdict(right: float, floor: float, first: float, second: float) -> None:
    """Whatever the model, levels fall as an attacker's score rises."""
    order = ["holds", "weak", "falls"]
    low, high = sorted((first, second))
    base = replace(SAFE, right=right, floor=floor)
    for attacker, name in (("A0", "plain"), ("A1", "searched"), ("A1", "adapter_few")):
        less, more = (levels(replace(base, **{name: value}))[attacker] for value in (low, high))  # type: ignore[arg-type]
        assert order.index(less) <= order.index(more)


def test_no_sentence_counts_keys() -> None:
    """The number of keys is never offered as a reason to feel safe."""
    for found in (SAFE, replace(SAFE, plain=0.9, searched=0.9, adapter_few=0.9, tuned=((0.01, 0.9, 0.1),))):
        said = " ".join(f"{verdict.says} {verdict.advice}" for verdict in verdicts(found)).lower()
        assert not any(word in said for word in ("bits", "factorial", "possible keys", "2^", "l!"))


def result(name: str, *rows: tuple[str, float, float | None], **details: object) -> AttackResult:
    """Return a result with rows (label, score, at)."""
    made = tuple(Row(label=label, score=score, at=at, images=0, work=1, unit="") for label, score, at in rows)
    return AttackResult(name=name, rows=made, details=details)


BASE = result(
    "no-key", ("right key", 0.9, None), ("plain images, no key", 0.2, None), ("random wrong keys, mean", 0.1, None),
    ("the luckiest of them", 0.3, None), chance=0.1,
)  # fmt: skip


def test_what_a_verdict_needs_is_read_from_the_results() -> None:
    """Few and many images of the adapter are told apart; the best search counts."""
    adapter = result("adapter", ("10", 0.3, 10), ("100", 0.4, 100), ("1000", 0.8, 1000))
    searches = (result("random-search", ("", 0.2, None)), result("greedy-search", ("", 0.25, None), ("", 0.5, None)))
    found = measured([BASE, adapter, *searches])
    assert found is not None
    assert (found.right, found.plain, found.floor, found.wrong_best) == (0.9, 0.2, 0.1, 0.3)
    assert (found.adapter_few, found.adapter_many, found.searched) == (0.4, 0.8, 0.5)


def test_a_search_that_was_given_part_of_the_key_is_not_held_against_the_lock() -> None:
    """Finding an NP mask with the permutation in hand is not what somebody without the key can do."""
    given = measured([BASE, result("mask-search", ("", 0.9, None), **{GIVEN: "the shf part"})])
    alone = measured([BASE, result("mask-search", ("", 0.9, None))])
    assert given is not None
    assert alone is not None
    assert (given.searched, alone.searched) == (None, 0.9)


def test_an_adapter_stands_beside_training_from_scratch_with_no_less_data() -> None:
    """With 10 images beside the 13 of 1 %, with 1,000 beside nothing: there the thief had more than was compared."""
    adapter = AttackResult(
        name="adapter", rows=tuple(Row(label="", score=0.5, images=n, at=n, work=1, unit="") for n in (10, 100, 1000))
    )
    shares = ((0.01, 13, 0.2), (0.05, 65, 0.3), (0.1, 130, 0.4))
    tuning = AttackResult(
        name="fine-tuning",
        rows=tuple(Row(label="", score=0.2, beside=b, images=n, at=at, work=1, unit="") for at, n, b in shares),
    )
    found = measured([BASE, adapter, tuning])
    assert found is not None
    assert found.adapted == ((10, 0.5, 0.2), (100, 0.5, 0.4))
    assert levels(found)["A2"] == "falls"


def test_without_the_right_key_there_is_no_verdict() -> None:
    """Nothing can be said of an attack when it is not known what the model is worth."""
    assert measured([result("adapter", ("10", 0.3, 10))]) is None
