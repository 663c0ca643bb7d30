"""What the commands say: one JSON document, or lines and tables, on standard output; progress on standard error."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table

WIDTH_WITHOUT_TERMINAL = 160
"""Columns assumed when output goes to a file or a pipe, so that key ids are not broken in two."""

_ANY_WIDTH: Final = 10_000
"""More columns than a table of ours needs."""

SECONDS_BETWEEN_LINES = 30
"""Of a long step, where there is no terminal for a bar."""

Advance = Callable[[int, int], None]
"""Progress callback: (steps done, steps in total)."""


def out() -> "Console":
    """Return a console on the standard output of this moment."""
    return _console(sys.stdout)


def err() -> "Console":
    """Return a console on the standard error of this moment; progress and notes go here."""
    return _console(sys.stderr)


def emit(document: Mapping[str, Any], *, as_json: bool, show: Callable[[], Iterable["RenderableType"]]) -> None:
    """Print `document` as one line of JSON, or what `show` yields for a person."""
    if as_json:
        print(json.dumps(document), flush=True)
        return
    console = out()
    for item in show():
        console.print(item, soft_wrap=isinstance(item, str), markup=False)


def fields(pairs: Mapping[str, object]) -> "Table":
    """Return a two-column listing of `pairs`, each value as `told` puts it."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs.items():
        grid.add_row(Text(name), Text(told(value)))
    return grid


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> "RenderableType":
    """Return a table of plain text cells; numbers are right-aligned, `None` prints as a dash.

    Where the columns have no room for their longest words, each row becomes a listing of its own: an id that is broken
    over several lines can be neither copied nor searched for.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[index], int | float) for row in cells)
        words = not any(" " in told(row[index]) for row in cells)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold", no_wrap=words)
    for row in cells:
        made.add_row(*(Text(told(cell)) for cell in row))
    return _Fitting(made, [fields(dict(zip(columns, row, strict=True))) for row in cells])


def told(value: object) -> str:
    """Return a value as a person reads it: no braces, no quotes, `None` and what is empty as a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{told(name)} {told(held)}" for name, held in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(told(held) for held in value) or "–"
    return str(value)


@dataclass(frozen=True)
class _Fitting:
    """A table where there is room for it, else its rows one below the other."""

    table: "Table"
    rows: Sequence["RenderableType"]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.measure import Measurement

        needed = Measurement.get(console, options.update(max_width=_ANY_WIDTH), self.table).minimum
        if needed <= options.max_width or not self.rows:
            yield self.table
            return
        if self.table.title:
            yield self.table.title
        for number, row in enumerate(self.rows):
            yield from ([""] if number else [])
            yield row


@contextmanager
def progress(label: str) -> Iterator[Advance]:
    """Show progress on standard error while the block runs; yields the callback that moves it.

    A bar in a terminal; elsewhere, where a bar would be a heap of lines or nothing, a line every half minute.
    """
    if not sys.stderr.isatty():
        yield _lines(label)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err()) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
        last = bar.tasks[0]
        bar.update(task, total=last.total or 1, completed=last.total or 1)


def _lines(label: str) -> Advance:
    begun_s = told_s = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal told_s
        now_s = time.monotonic()
        if now_s - told_s >= SECONDS_BETWEEN_LINES:
            told_s = now_s
            note(f"{label}: {done / max(total, 1):.0%} after {now_s - begun_s:.0f} s")

    return advance


def note(sentence: str) -> None:
    """Print one line for the person at the terminal, on standard error."""
    print(sentence, file=sys.stderr, flush=True)


def _console(stream: Any) -> "Console":
    from rich.console import Console

    return Console(file=stream, highlight=False, width=None if stream.isatty() else WIDTH_WITHOUT_TERMINAL)
