"""`tessera protect`: recipes and samples, options that change a run, and refusals that name what to do."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from support.cli import document, invoke, refusal
from tessera.cli import console
from tessera.cli.training import format_remaining, shown_training
from tessera.protect import Progress, Pulse


def test_recipes_say_what_they_need() -> None:
    """The listing names data and duration of each, for a program and for a person."""
    found = {entry["name"]: entry for entry in document("protect", "recipes")["recipes"]}
    assert found["digits"]["needs"] is None
    assert "CIFAR-10" in found["cifar10-fast"]["needs"]
    assert all(entry["duration"] for entry in found.values())
    shown = invoke("protect", "recipes").stdout
    assert "needs" in shown
    assert "duration" in shown


def test_samples_are_spread_over_the_test_set(tmp_path: Path) -> None:
    """As many as asked for, evenly; more than there are gives all."""
    told = document("protect", "samples", "--recipe", "digits", "--count", 25, "--out", tmp_path / "some.npy")
    images = np.load(tmp_path / "some.npy")
    assert images.shape == (25, 1, 8, 8)
    assert images.dtype == np.uint8
    assert len(told["labels"]) == 25
    document("protect", "samples", "--recipe", "digits", "--count", 5000, "--out", tmp_path / "all.npy")
    assert len(np.load(tmp_path / "all.npy")) == 500


@pytest.mark.slow
def test_options_change_the_run(tmp_path: Path) -> None:
    """Batch, rate, precision, compile and wrong keys of the command line stand in the report."""
    told = document(
        "protect", "train", "--recipe", "digits", "--epochs", 1, "--batch", 128, "--lr", 0.001,
        "--precision", "fp32", "--no-compile", "--wrong-keys", 0, "--out", tmp_path / "bundle",
    )  # fmt: skip
    report = json.loads((tmp_path / "bundle" / "report.json").read_text())
    assert [report[name] for name in ("batch", "learning_rate", "precision", "compile")] == [128, 0.001, "fp32", False]
    assert told["accuracy"]["wrong_keys"] == 0
    assert (tmp_path / "bundle" / "curves.png").stat().st_size > 1000


@pytest.mark.slow
def test_without_a_terminal_each_epoch_is_a_line(tmp_path: Path) -> None:
    """What a log file holds of a training: where it stands, and nothing else but the table at the end."""
    told = invoke("protect", "train", "--recipe", "digits", "--epochs", 2, "--wrong-keys", 0, "--out", tmp_path / "b")
    lines = [line for line in told.stderr.splitlines() if line.startswith("training digits: ")]
    assert [line.split("  ")[0] for line in lines] == ["training digits: epoch 1/2", "training digits: epoch 2/2"]
    assert all("test accuracy " in line and "samples/s" in line for line in lines)


def test_without_a_terminal_long_steps_tell_where_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line every half minute, here every time; a step that ends sooner says nothing."""
    with console.progress("sealing") as advance:
        advance(1, 4)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0)
    with console.progress("sealing") as advance:
        advance(1, 4)
        advance(4, 4)
    assert [line.split(" after ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "sealing: 25%",
        "sealing: 100%",
    ]


@pytest.mark.parametrize(("width", "rate"), [(80, False), (140, True)])
def test_results_stay_readable_in_a_narrow_terminal(width: int, rate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 80 columns bar, loss and rate give way; epoch, score and the time left are there whole."""
    written = io.StringIO()
    screen = Console(file=written, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(console, "err", lambda: screen)
    monkeypatch.setattr(sys, "stderr", _Terminal())
    with shown_training("training cifar10-fast") as shown:
        shown.after_epoch(Progress(3, 30, 0.626, 0.934, "accuracy", 1.0, 7428.0))
        shown.within_epoch(Pulse(4, 30, 0.12, 0.512, 7428.0, 4000.0))
    last = written.getvalue().replace("\x1b[?25h", "").splitlines()[-1]
    assert "training cifar10-fast" in last
    assert "epoch 4/30" in last
    assert "test accuracy 93.4%" in last
    assert last.rstrip().endswith("1 h 7 min left")
    assert ("loss 0.512" in last, "samples/s" in last, "━" in last) == (rate, rate, rate)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--recipe", "cifar10-fast"), "--data"),
        (("--recipe", "digits", "--precision", "fp8"), "fp32, bf16, fp16-amp"),
        (("--recipe", "digits", "--precision", "fp16-amp"), "fp16-amp is for CUDA"),
        (("--recipe", "digits", "--device", "cuda:77"), "CUDA devices"),
        (("--recipe", "digits", "--device", "abacus"), "is no device"),
        (("--recipe", "digits", "--lr", "-1"), "learning_rate"),
        (("--recipe", "letters"), "Choose one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[2:]) or value[1],
)
def test_refusals_say_what_to_do(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """Missing data, a precision or device that is not there, and bad numbers are refused before any training."""
    error = refusal("protect", "train", *options, "--out", tmp_path / "bundle")
    assert said in f"{error['message']} {error['remedy']}"
    assert not (tmp_path / "bundle").exists()


def test_times_to_wait() -> None:
    """Seconds, minutes, hours."""
    assert [format_remaining(seconds) for seconds in (4.2, 200, 4800)] == ["4 s", "3 min", "1 h 20 min"]
