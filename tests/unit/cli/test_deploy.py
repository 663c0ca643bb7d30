"""What lies in deploy/ fits the code, and the tools that would read it accept it."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tessera.keystore.errors import REASONS
from tessera.server.config import load_settings
from tessera.server.metrics import Metrics

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "tessera.rules.yml"
UNIT = DEPLOY / "systemd" / "tessera.service"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a tool and return what it said."""
    command = [str(argument) for argument in arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """No directive is misspelt or in the wrong section; the program is replaced by one that is here."""
    text = UNIT.read_text(encoding="utf-8").replace("/opt/tessera/bin/tessera", "/bin/true")
    unit = tmp_path / "tessera.service"
    unit.write_text(text, encoding="utf-8")
    done = run("systemd-analyze", "verify", unit)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_is_confined() -> None:
    """systemd's own scale, 0 best and 10 worst, stays below 2."""
    done = run("systemd-analyze", "security", "--offline=true", UNIT)
    match = re.search(r"Overall exposure level for tessera.service: ([0-9.]+)", done.stdout)
    if match is None:
        pytest.skip("this systemd-analyze cannot judge a unit offline")
    assert float(match[1]) < 2.0


def test_the_unit_keeps_the_promises_of_the_threat_model() -> None:
    """No core, no new privileges, a read-only system, and the passphrase as a credential."""
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    for line in ("LimitCORE=0", "NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateTmp=yes", "User=tessera"):
        assert line in lines
    assert any(line.startswith("LoadCredentialEncrypted=passphrase:") for line in lines)
    assert not any("TESSERA_PASSPHRASE" in line for line in lines)


def test_the_unit_lets_torch_see_the_cpu() -> None:
    """Without /proc/cpuinfo torch runs its scalar kernels: slower, and with other last bits than the vendor's."""
    for file in DEPLOY.glob("systemd/*"):
        assert not re.search(r"^ProcSubset=pid", file.read_text(encoding="utf-8"), re.MULTILINE), file


def test_the_settings_file_of_the_unit_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key in it is a setting."""
    monkeypatch.delenv("TESSERA_PORT", raising=False)
    path = DEPLOY / "systemd" / "tessera.toml"
    assert load_settings(path, directory=tmp_path).port == tomllib.loads(path.read_text(encoding="utf-8"))["port"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_accepts_rules_and_configuration() -> None:
    """`promtool check` finds nothing."""
    assert run("promtool", "check", "rules", RULES).returncode == 0
    assert run("promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml").returncode == 0


def test_the_alerts_speak_of_metrics_and_reasons_that_exist() -> None:
    """A renamed metric or reason would silence an alert without a word."""
    text = RULES.read_text(encoding="utf-8")
    page = Metrics().render()[0].decode()
    families = set(re.findall(r"^# TYPE (\w+)", page, re.MULTILINE))
    for name in set(re.findall(r"\btessera_\w+", text)) - {"tessera_phase_seconds"}:
        assert {name, name.removesuffix("_bucket"), name.removesuffix("_total")} & families, name
    for quoted in re.findall(r'reason=~?"([^"]+)"', text):
        assert set(quoted.split("|")) <= REASONS.keys()


def test_the_image_holds_every_room_and_no_key() -> None:
    """The build context lists what goes in; keys are excluded by suffix."""
    rooms = {path.parents[2].name for path in ROOT.glob("*/tessera/*/py.typed")} | {"proto"}
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert {line.split()[1] for line in dockerfile.splitlines() if re.fullmatch(r"COPY (\w+) \1", line)} == rooms
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{room}" for room in rooms} <= set(ignored)
    assert {"*", "**/*.key", "**/*.pem", "**/*.secrets"} <= set(ignored)


def test_the_image_runs_as_nobody_special() -> None:
    """A user of its own, and a health check that speaks TLS."""
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert "USER tessera" in lines
    assert any(line.startswith("HEALTHCHECK") and '"tessera", "health"' in line for line in lines)
