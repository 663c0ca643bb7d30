"""Nearly right keys: how fast a lock stops working."""

from support.audits import CPU, SMALL, patient, sample, subject
from tessera.protect.audit import Meter, near


def test_quality_falls_with_the_share_that_is_wrong() -> None:
    """One wrong place of sixteen costs little, half of them nearly everything: there is no avalanche."""
    found = near.run(subject("np:4"), sample(), SMALL, patient(), seed=0, device=CPU)
    scores = [row.score or 0.0 for row in found.rows]
    assert [row.at for row in found.rows] == [0.01, 0.02, 0.1, 0.5]
    assert scores[0] > 0.9 > 0.6 > scores[3]
    assert scores[2] >= scores[3]
    assert all(row.work == near.DRAWS and not row.cut_short for row in found.rows)


def test_it_repeats_and_says_when_time_ran_out() -> None:
    """The same seed gives the same rows; with no time left each share is measured once, and says so."""
    first, second = (near.run(subject("shf:4"), sample(), SMALL, patient(), seed=3, device=CPU) for _ in range(2))
    assert first == second
    hurried = near.run(subject("shf:4"), sample(), SMALL, Meter(0), seed=3, device=CPU)
    assert [(row.work, row.cut_short) for row in hurried.rows] == [(1, True)] * 4
