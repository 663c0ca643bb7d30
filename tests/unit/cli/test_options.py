"""How the text of an option becomes a value."""

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.cli.options import format_duration, format_moment, parse_duration, parse_moment


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 2_592_000), ("12h", 43_200), ("90m", 5400), ("45s", 45), ("2w", 1_209_600), ("0s", 0)]
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    """Days, hours, minutes, seconds and weeks are what people write."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5h", "1 d", "1y", "٣d", "99999999999d"])
def test_anything_else_is_a_usage_error(text: str) -> None:
    """A number without a unit is ambiguous, so it is refused like nonsense."""
    with pytest.raises(typer.BadParameter):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=10**8))
@settings(max_examples=100, deadline=None)
def test_a_printed_duration_reads_back(seconds: int) -> None:
    """What `inspect` prints can be pasted into `issue`."""
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_no_text_ends_in_anything_but_a_usage_error(text: str) -> None:
    """Whatever is typed, a value or `typer.BadParameter` comes out."""
    for parse in (parse_duration, parse_moment):
        try:
            assert parse(text) >= -(10**12)
        except typer.BadParameter:
            continue


def test_a_date_without_an_offset_is_utc() -> None:
    """The zone of the vendor's machine must not change what a licence says."""
    assert parse_moment("1970-01-02") == 86_400
    assert parse_moment("1970-01-01T01:00:00+01:00") == 0
    assert parse_moment("1800000000") == 1_800_000_000
    assert format_moment(86_400) == "1970-01-02 00:00:00 UTC"
