"""`tessera demo`, as `make demo` runs it: everything once, in a process of its own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.cli import need_usual_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

REFUSALS = {
    "no licence, so no session": "session-missing",
    "somebody else's licence": "licence-not-yours",
    "wrong input key": "wrong-input-key",
    "expired licence": "licence-expired",
    "quota used up": "quota-exhausted",
    "one byte of the package changed": "package-tampered",
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one demo run; `findings.json` and `output.txt` lie beside it."""
    folder = tmp_path_factory.mktemp("demo")
    command = [
        sys.executable,
        "-m",
        "tessera.cli",
        "demo",
        "--keep",
        folder / "kept",
        "--json",
        folder / "findings.json",
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=240)
    (folder / "output.txt").write_text(done.stdout, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "kept"


def test_every_expectation_is_met_and_the_json_has_its_keys(kept: Path) -> None:
    """The document is what the CI of a fork would read."""
    findings = json.loads((kept.parent / "findings.json").read_text(encoding="utf-8"))
    assert list(findings) == ["expectations", "accuracy", "throughput_samples_per_s", "usage"]
    assert all(list(entry) == ["name", "expected", "observed", "ok"] for entry in findings["expectations"])
    assert [entry["name"] for entry in findings["expectations"] if not entry["ok"]] == []
    assert findings["accuracy"].keys() == {"right_key", "wrong_key", "plain"}
    assert findings["accuracy"]["right_key"] > 0.9 > 0.35 > max(findings["accuracy"]["wrong_key"], 0.0)
    assert findings["throughput_samples_per_s"] > 0
    assert {entry["buyer"] for entry in findings["usage"]} == {"Ada", "Bo"}


def test_every_refusal_shows_its_reason(kept: Path) -> None:
    """Six things do not work, each for its own machine-readable reason."""
    findings = json.loads((kept.parent / "findings.json").read_text(encoding="utf-8"))
    observed = {entry["name"]: entry["observed"] for entry in findings["expectations"]}
    assert {name: observed[name] for name in REFUSALS} == REFUSALS
    assert observed["samples charged for all these refusals"] == "0"
    assert observed["files that contain the passphrase"] == "none"


def test_nothing_kept_is_open_to_others(kept: Path) -> None:
    """Key files, package secrets, the store and the passphrase are the owner's alone."""
    private = [*kept.rglob("*.key"), *kept.rglob("*.secrets"), kept / "passphrase", kept / "node" / "keystore.db"]
    assert len(private) >= 6
    assert [path.name for path in private if path.stat().st_mode & 0o077] == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_printed_commands_work_when_pasted(kept: Path) -> None:
    """What `--keep` prints goes on where the demo stopped, down to a clean stop of the server."""
    need_usual_ports()
    lines = (kept.parent / "output.txt").read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("# To go on by hand"))
    script = "set -eE\ntrap 'kill %1' ERR\n" + "\n".join(lines[first:]) + "\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, cwd=kept)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified" in done.stdout
    assert list((kept / "ada" / "receipts").iterdir())
