"""The scripts in examples/ run; with next to no training, so that what is judged is the way and not the quality."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def run(script: str, *arguments: object) -> str:
    """Run an example and return what it printed."""
    words = [sys.executable, str(EXAMPLES / script), *(str(argument) for argument in arguments)]
    # One thread: on networks as small as these, several only wait for each other.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=220, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def figure(told: str, label: str) -> float:
    """Return the number that stands after a label."""
    match = re.search(rf"^{label}: +(?:mIoU )?([0-9.]+)", told, re.MULTILINE)
    assert match is not None, told
    return float(match[1])


def test_classification_from_training_to_usage(tmp_path: Path) -> None:
    """Right key, wrong key and plain input are all tried through the server, and the ledger has counted them."""
    told = run("classification.py", "--epochs", 4, "--count", 100, "--keep", tmp_path / "kept")
    right, wrong, plain = (figure(told, label) for label in ("right key", "wrong key", "plain input"))
    assert right > 2 * max(wrong, plain)
    assert "another key: refused, wrong-input-key" in told
    assert "charged: 300 samples in" in told
    assert (tmp_path / "kept" / "model.tessera").is_file()


def test_segmentation_from_training_to_usage(tmp_path: Path) -> None:
    """The same for a network with a map of scores as its answer, under FFX; `tessera infer` sums one map up."""
    told = run(
        "segmentation.py", "--transform", "ffx:4", "--epochs", 1, "--pictures", 32, "--count", 6,
        "--keep", tmp_path / "kept",
    )  # fmt: skip
    assert all(0 <= figure(told, label) <= 1 for label in ("right key", "wrong key", "plain input"))
    assert "another key: refused, wrong-input-key" in told
    assert "'shape': [4, 48, 48], 'shares': [{'class': " in told
    assert "charged: 19 samples in" in told
    assert (tmp_path / "kept" / "map.npy").stat().st_size > 4 * 48 * 48 * 4


def test_copies_from_training_to_the_leak(tmp_path: Path) -> None:
    """Each copy answers its own buyer's key, and the leaked one is traced to its buyer alone."""
    told = run("copies.py", "--epochs", 4, "--count", 100, "--keep", tmp_path / "kept")
    worth = {
        (owner, buyer): figure(told, f"{owner}'s copy under {buyer}'s key")
        for owner in ("ada", "bob")
        for buyer in ("ada", "bob")
    }
    assert min(worth["ada", "ada"], worth["bob", "bob"]) > 2 * max(worth["ada", "bob"], worth["bob", "ada"])
    assert re.search(r"^bob: z = [0-9]{2,}\.[0-9], is named$", told, re.MULTILINE)
    assert re.search(r"^ada: z = -?[0-9]\.[0-9], is not named$", told, re.MULTILINE)


def test_every_script_is_in_the_readme_and_takes_help() -> None:
    """Whoever opens the folder finds each of them explained."""
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for script in sorted(path.name for path in EXAMPLES.glob("*.py")):
        assert script in readme
