"""What a person reads: values in words, and tables whose ids stay in one piece."""

import io

import pytest
from rich.console import Console

from tessera.cli import console

LICENCE = "37c230e42ca9e15b781576cc98cf9987"
BUYER = "hzXKwu2jGfCKGx_bQLZwB0KGJobqBc6ME8rxKLWQ6B4"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        ("", "–"),
        ([], "–"),
        ({}, "–"),
        (0, "0"),
        (True, "yes"),
        (False, "no"),
        (["localhost", "::1"], "localhost, ::1"),
        ({"right_key": 0.988, "plain": 0.142}, "right_key 0.988, plain 0.142"),
    ],
)
def test_values_are_told_without_braces_and_quotes(value: object, words: str) -> None:
    """What a program wants to parse is in --json; nobody wants to read the notation of a programming language."""
    assert console.told(value) == words


def printed(width: int) -> list[str]:
    """Return the lines of a table of two licences in `width` columns."""
    stream = io.StringIO()
    rows = [[LICENCE, BUYER, 1, "2026-12-28 11:15:14 UTC"], [LICENCE[::-1], BUYER, 2, None]]
    made = console.table(("licence_id", "buyer_id", "tier", "expires"), rows, title="licences")
    Console(file=stream, width=width).print(made)
    return [line.strip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 95, 100, 110, 120, 160])
def test_ids_stay_in_one_piece_at_any_usual_width(width: int) -> None:
    """An id broken over several lines can be neither copied nor searched for."""
    text = "\n".join(printed(width))
    assert (text.count(LICENCE), text.count(LICENCE[::-1]), text.count(BUYER)) == (1, 1, 2)
    assert max(map(len, text.splitlines())) <= width


def test_a_table_without_room_becomes_listings() -> None:
    """Each row's values stand below each other under the names of the columns, rows apart by an empty line."""
    lines = printed(80)
    assert lines[0] == "licences"
    assert lines[1].split() == ["licence_id", LICENCE]
    assert lines[4].split(maxsplit=1) == ["expires", "2026-12-28 11:15:14 UTC"]
    assert lines[5] == ""
    assert lines[6].split() == ["licence_id", LICENCE[::-1]]
    assert lines[9].split() == ["expires", "–"]


def test_a_table_with_room_is_a_table() -> None:
    """One header, one line a row."""
    lines = [line for line in printed(160) if line]
    assert lines[1].split() == ["licence_id", "buyer_id", "tier", "expires"]
    assert len(lines) == 5
