"""The law by which a trace judges."""

import math

import pytest

from tessera.protect.isnn.trace import student_tail


@pytest.mark.parametrize(
    ("value", "freedom", "chance"),
    [
        (0.0, 7, 0.5),
        (1.0, 1, 0.25),  # Cauchy's law: 1/2 - atan(1) / pi
        (1.0, 2, 0.5 - 0.5 / math.sqrt(3)),  # in closed form
        (2.093024, 19, 0.025),  # from printed tables of the law
        (3.579400, 19, 0.001),
        (3.883406, 19, 0.0005),
        (2.364606, 99, 0.01),
        (6.965, 2, 0.01),
    ],
)
def test_known_values(value: float, freedom: int, chance: float) -> None:
    """Tables and closed forms, and the other tail beside them."""
    assert student_tail(value, freedom) == pytest.approx(chance, rel=1e-3)
    assert student_tail(-value, freedom) == pytest.approx(1 - chance, rel=1e-3)


def test_it_tends_to_the_normal_law_and_to_zero() -> None:
    """Many keys give the normal law; far values give chances that fall and stay above zero."""
    assert student_tail(1.959964, 100_000) == pytest.approx(0.025, rel=1e-3)
    far = [student_tail(value, 19) for value in (5.0, 10.0, 40.0, 1000.0)]
    assert far == sorted(far, reverse=True)
    assert 0 < far[-1] < far[1] < 1e-8


def test_a_stranger_among_few_keys_is_not_named() -> None:
    """What was once measured: 20 keys reached 12.8 +- 1.98 %, a stranger's 20.3 %; by a normal law 1.5 in 10,000."""
    z = (0.2033 - 0.1283) / (0.0198 * math.sqrt(1 + 1 / 20))
    assert 2 * 0.5 * math.erfc(z / math.sqrt(2)) < 1e-3 < 2 * student_tail(z, 19)
