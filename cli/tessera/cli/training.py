"""A training run in the terminal: the recipe's task with the options of the command line, and a progress bar."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.cli import console

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from tessera.keystore.secrets import InputKey
    from tessera.protect import Progress, Pulse, Recipe, Trained, TrainingTask
    from tessera.transforms import TransformSpec

_STEPS = 1000
"""Parts of the bar."""

_WIDE = 120
"""Columns from which there is room for everything; in fewer the text keeps what matters most."""


def run_training(
    recipe: "Recipe",
    spec: "TransformSpec | None",
    key: "InputKey | None",
    *,
    seed: int,
    changes: Mapping[str, Any] | None = None,
    data: Path | None = None,
    epochs: int | None = None,
    device: str = "cpu",
    wrong_keys: int | None = None,
    checkpoint_dir: Path | None = None,
) -> "Trained":
    """Train with a progress bar on standard error; raises what `tessera.protect.train` raises.

    `changes` are fields of the recipe's task by name; those that are None are left as they are.
    """
    from tessera.protect import train

    with prepared_training(
        recipe, changes=changes, data=data, wrong_keys=wrong_keys, seed=seed, device=device, epochs=epochs,
        checkpoint_dir=checkpoint_dir,
    ) as (task, options):  # fmt: skip
        return train(task, transform=spec, key=key, **options)


@contextmanager
def prepared_training(
    recipe: "Recipe",
    *,
    changes: Mapping[str, Any] | None = None,
    data: Path | None = None,
    wrong_keys: int | None = None,
    **options: Any,
) -> Iterator["tuple[TrainingTask, dict[str, Any]]"]:
    """Yield the recipe's task with `changes`, and the options of a training function, with a bar that shows it."""
    from tessera.protect import WRONG_KEYS

    chosen = {name: value for name, value in (changes or {}).items() if value is not None}
    task = replace(recipe.task(data), **chosen)
    with shown_training(f"training {recipe.name}") as bar:
        options["wrong_keys"] = WRONG_KEYS if wrong_keys is None else wrong_keys
        yield task, {**options, "progress": bar.after_epoch, "pulses": bar.within_epoch}


class _TrainingLines:
    """A line after each epoch, where there is no terminal."""

    def __init__(self, label: str) -> None:
        self._label = label

    def within_epoch(self, at: "Pulse") -> None:
        """Say nothing."""

    def after_epoch(self, at: "Progress") -> None:
        """Tell an epoch's result."""
        reached = f"test {at.metric.replace('_', ' ')} {at.test_score:.1%}"
        console.note(
            f"{self._label}: epoch {at.epoch}/{at.epochs}  loss {at.loss:.3f}  {reached}  "
            f"{at.samples_per_s:,.0f} samples/s"
        )


class _TrainingBar:
    """One bar: how far the run is, and what the last epoch reached."""

    def __init__(self, bar: "Bar", task: "TaskID", *, wide: bool) -> None:
        self._bar, self._task, self._reached, self._wide = bar, task, "", wide

    def within_epoch(self, at: "Pulse") -> None:
        """Show a pulse."""
        self._show(at.done, f"{self._text(at)}  {format_remaining(at.remaining_s)} left")

    def after_epoch(self, at: "Progress") -> None:
        """Show an epoch's result."""
        self._reached = f"  test {at.metric.replace('_', ' ')} {at.test_score:.1%}"
        text = self._text(at)
        if at.epoch == at.epochs:
            text = f"{text if self._wide else self._reached.strip()}  trying wrong keys"
        self._show(at.epoch / at.epochs, text)

    def _text(self, at: "Pulse | Progress") -> str:
        epoch, loss = f"epoch {at.epoch}/{at.epochs}", f"  loss {at.loss:.3f}"
        if self._wide:
            return f"{epoch}{loss}{self._reached}  {at.samples_per_s:,.0f} samples/s"
        return f"{epoch}{self._reached or loss}"

    def _show(self, done: float, text: str) -> None:
        self._bar.update(self._task, completed=round(done * _STEPS), text=text)


def format_remaining(seconds: float) -> str:
    """Return a time to wait as `45 s`, `3 min` or `1 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def shown_training(label: str) -> Iterator[_TrainingBar | _TrainingLines]:
    """Yield what a training reports to: a bar in a terminal, elsewhere a line after each epoch."""
    if not sys.stderr.isatty():
        yield _TrainingLines(label)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    screen = console.err()
    wide = screen.width >= _WIDE
    columns = (
        TextColumn("{task.description}"),
        *((BarColumn(bar_width=20),) if wide else ()),
        TextColumn("{task.percentage:>3.0f}%"),
        *((TimeElapsedColumn(),) if wide else ()),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=screen) as bar:
        yield _TrainingBar(bar, bar.add_task(label, total=_STEPS, text=""), wide=wide)
