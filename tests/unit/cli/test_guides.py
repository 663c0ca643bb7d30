"""The walk-throughs of docs/guides work as they are printed."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.cli import invoke, need_usual_ports
from support.process import free_port
from tessera.protect.data import digits

GUIDES = Path(__file__).parents[3] / "docs" / "guides"
ORDER = (
    *(("vendor", 0), ("operator", 0), ("buyer", 0), ("vendor", 1), ("operator", 1), ("buyer", 1)),
    *(("operator", 2), ("vendor", 2), ("vendor", 3), ("operator", 3)),
)
"""Who acts when: vendor and operator wait for what the others send them."""
LONGEST_S = 400
"""A walk-through takes a minute of an idle machine."""


def blocks(guide: str) -> list[str]:
    """Return the shell blocks of a guide."""
    return re.findall(r"```sh\n(.*?)```", (GUIDES / f"{guide}.md").read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[list[str]]:
    """Return every `tessera` command line in the guides, split into words."""
    text = "\n".join(
        block for guide in ("vendor", "operator", "buyer", "isnn", "tiers", "leaks") for block in blocks(guide)
    )
    lines = re.findall(r"^(?:until )?(tessera .*)$", text.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(re.split(r"\s2?>", line)[0]) for line in lines]


def pasted(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `script` in `folder` with nothing of this shell's environment, hold that every command succeeds, and return
    what was printed. A server that the script left in the background is stopped when one fails.
    """
    with subprocess.Popen(
        ["bash", "-c", f"set -eE\ntrap 'kill %1 2> /dev/null' ERR\n{script}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(folder), **environment},
        start_new_session=True,
    ) as running:
        try:
            output, errors = running.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)  # bash alone would leave its server, and the ports taken
            raise
    done = subprocess.CompletedProcess(running.args, running.returncode, output, errors)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[1:3]))
def test_each_command_of_the_guides_exists_with_its_options(words: list[str]) -> None:
    """A renamed option would strand whoever follows the guide."""
    path = words[1:2] if words[1] in {"serve", "infer", "health"} else words[1:3]
    shown = invoke(*path, "--help", COLUMNS="200").stdout
    for option in (word for word in words if word.startswith("--")):
        assert option in shown


def test_every_shell_block_has_its_turn() -> None:
    """No block of the three guides is left out below."""
    assert sorted(ORDER) == sorted(
        (guide, at) for guide in ("vendor", "operator", "buyer") for at in range(_count(guide))
    )


@pytest.mark.slow
@pytest.mark.timeout(LONGEST_S + 20)
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_three_walk_throughs_work_when_pasted(tmp_path: Path) -> None:
    """Vendor, operator and buyer in one folder, in the order in which they need each other, on the usual ports."""
    need_usual_ports()
    quick = {"train --recipe digits": "train --epochs 3 --recipe digits", "serve node": "serve node --threads 1"}
    script = "\n".join(blocks(guide)[at] for guide, at in ORDER)
    for old, new in quick.items():
        script = script.replace(old, new)
    done = pasted(script, tmp_path)
    assert "contract ended" not in done.stderr
    assert len(list((tmp_path / "receipts").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.timeout(LONGEST_S + 20)
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_walk_through_for_buyers_by_name(tmp_path: Path) -> None:
    """From records to a trace in one folder, with fewer epochs; a passphrase and labelled images are there already."""
    (tmp_path / "pass.txt").touch(mode=0o600)
    (tmp_path / "pass.txt").write_text("correct horse battery staple")
    test = digits().test
    np.savez(tmp_path / "held.npz", images=test.images[:60].numpy(), labels=test.labels[:60].numpy())
    script = "\n".join(blocks("isnn")).replace("train --recipe digits", "train --epochs 2 --recipe digits")
    done = pasted(script, tmp_path)
    assert "Globex (L-17)" in done.stdout
    assert "unlocked by:" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(LONGEST_S + 20)
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_walk_through_for_licence_tiers(tmp_path: Path) -> None:
    """From a plain bundle to a faded licence and an audit, with less training and auditing and ports of its own."""
    script = "\n".join(blocks("tiers"))
    for old, new in _QUICK.items():
        assert old in script
        script = script.replace(old, new)
    port = str(free_port())
    ports = {"TESSERA_PORT": port, "TESSERA_METRICS_PORT": str(free_port()), "TESSERA_SERVER": f"localhost:{port}"}
    done = pasted(script, tmp_path, OMP_NUM_THREADS="1", **ports)
    assert re.findall(r'^"tier":(\d+)$', done.stdout, re.MULTILINE) == ["3", "4", "2"]
    told = json.loads((tmp_path / "digits-tiers" / "report.json").read_text(encoding="utf-8"))["selective"]
    assert [(tier["tier"], tier["name"]) for tier in told["tiers"]] == list(enumerate(_NAMES, start=1))
    assert (tmp_path / "digits-audit" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_walk_through_for_leaks(tmp_path: Path) -> None:
    """From a plain bundle to a name, with less training."""
    script = "\n".join(blocks("leaks"))
    assert "train --recipe digits" in script
    script = script.replace("train --recipe digits", "train --epochs 1 --wrong-keys 0 --recipe digits")
    done = pasted(script, tmp_path, OMP_NUM_THREADS="1")
    assert "whose copy: Globex (L-17)\n" in done.stdout


_QUICK = {
    "train --recipe": "train --epochs 5 --recipe",
    "audit digits-tiers": "audit --attack tier-keys digits-tiers",
    "valid 10s": "valid 2s",
    "sleep 10": "sleep 2",
}
_NAMES = ("tier-1", "tier-2", "tier-3", "full")
"""What the guide says that tiers 1 to 4 are called."""


def _count(guide: str) -> int:
    return len(blocks(guide))
