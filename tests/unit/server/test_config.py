"""Settings: order of sources, refusals without echoes, where the passphrase comes from."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.keystore.errors import Denied, Malformed, NotFound, TesseraError, Unavailable
from tessera.server.config import ENV_PREFIX, Limits, Settings, load_settings, unknown_environment
from tessera.server.master import read_master
from tessera.server.node import torch_device


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


def write(tmp_path: Path, text: str) -> Path:
    """A settings file."""
    path = tmp_path / "appliance.toml"
    path.write_text(text)
    return path


def test_defaults_are_those_of_the_documentation(tmp_path: Path) -> None:
    """Ports are Triton's, everything listens on the loopback, reflection is off, messages end at gRPC's own limit."""
    found = load_settings(directory=tmp_path)
    assert (found.port, found.metrics_port, found.host, found.metrics_host) == (8001, 8002, "127.0.0.1", "127.0.0.1")
    assert (found.reflection, found.master) == (False, None)
    assert found.limits.max_message_bytes == 4 * 1024 * 1024
    assert found.admin_path == tmp_path / "admin.sock"
    assert type(found) is Settings


def test_flags_win_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TOML file < environment < flags, for nested names too."""
    file = write(tmp_path, 'directory = "/a"\nport = 1\nmetrics_port = 2\nhost = "h"\n[limits]\nmax_sessions = 7\n')
    monkeypatch.setenv("TESSERA_PORT", "10")
    monkeypatch.setenv("TESSERA_METRICS_PORT", "20")
    monkeypatch.setenv("TESSERA_LIMITS__MAX_CHALLENGES", "9")
    found = load_settings(file, port=100, host=None)
    assert (found.port, found.metrics_port, found.host) == (100, 20, "h")
    assert (found.limits.max_sessions, found.limits.max_challenges) == (7, 9)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("prot = 1", "prot"),
        ("port = 70000", "port"),
        ("[limits]\nmax_session = 1", "limits.max_session"),
        ("[limits]\nmax_sessions = 0", "limits.max_sessions"),
        ('log_level = "loud"', "log_level"),
        ('device = "gpu"', "device"),
        ('device = "cuda:x"', "device"),
        ("[limits]\nmax_message_bytes = 2147483647", "limits.max_message_bytes"),
        ("[limits]\nmax_answer_bytes = 4294967296", "limits.max_answer_bytes"),
        ("[limits]\nmax_metadata_bytes = 4294967296", "limits.max_metadata_bytes"),
        ("[limits]\nmax_streams = 4294967296", "limits.max_streams"),
        ("[limits]\nkeepalive_s = 1e9", "limits.keepalive_s"),
        ("[limits]\nclient_ping_s = 0.0001", "limits.client_ping_s"),
        ("[limits]\nchallenge_ttl_s = inf", "limits.challenge_ttl_s"),
        ("[limits]\nclock_tolerance_s = nan", "limits.clock_tolerance_s"),
    ],
)
def test_wrong_keys_are_named(tmp_path: Path, text: str, names: str) -> None:
    """An unknown name or a value out of range is refused with the name, without pydantic's pages."""
    with pytest.raises(Malformed) as caught:
        load_settings(write(tmp_path, f'directory = "/a"\n{text}'))
    assert names in caught.value.public
    assert "pydantic" not in caught.value.public


def test_values_are_not_echoed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody will put the passphrase itself into `master`; it comes back in no message."""
    attempts: list[dict[str, Any]] = [{"master": "CANARY"}, {"master": "CANARY", "prot": "CANARY"}]
    for how in attempts:
        with pytest.raises(Malformed) as caught:
            load_settings(directory=tmp_path, **how)
        assert "CANARY" not in f"{caught.value!r} {caught.value.remedy}"
    monkeypatch.setenv("TESSERA_LIMITS", "CANARY")
    with pytest.raises(Malformed) as caught:
        load_settings(directory=tmp_path)
    assert "CANARY" not in caught.value.public


def test_missing_and_broken_files(tmp_path: Path) -> None:
    """No file, no TOML, no UTF-8, no directory: typed errors."""
    with pytest.raises(NotFound):
        load_settings(tmp_path / "none.toml")
    with pytest.raises(Malformed):
        load_settings(write(tmp_path, "a = "))
    (tmp_path / "appliance.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(Malformed):
        load_settings(tmp_path / "appliance.toml")
    with pytest.raises(Malformed) as caught:
        load_settings()
    assert "directory" in caught.value.public


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_settings_file_or_malformed(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever stands in the file, only typed errors come of it."""
    file = tmp_path_factory.mktemp("config") / "a.toml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(TesseraError):
        load_settings(file)


def test_unknown_variables_are_told(tmp_path: Path) -> None:
    """A misspelt variable is found; known ones, nested ones and other people's are not."""
    names = {"TESSERA_PROT": "1", "TESSERA_PORT": "1", "TESSERA_LIMITS__MAX_SESSIONS": "1", "HOME": "/"}
    assert unknown_environment(names) == ["TESSERA_PROT"]


def test_links_of_kubernetes_are_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a Service named `tessera` every pod has TESSERA_PORT=tcp://…; the server starts, and says what it saw."""
    monkeypatch.setenv("TESSERA_PORT", "tcp://10.96.0.7:8001")
    monkeypatch.setenv("TESSERA_METRICS_PORT", "tcp://10.96.0.8:8002")
    monkeypatch.setenv("TESSERA_HOST", "0.0.0.0")
    found = load_settings(write(tmp_path, 'directory = "/a"\nport = 7'))
    assert (found.port, found.metrics_port, found.host) == (7, 8002, "0.0.0.0")
    assert unknown_environment() == ["TESSERA_METRICS_PORT", "TESSERA_PORT"]
    monkeypatch.setenv("TESSERA_PORT", "8001x")
    with pytest.raises(Malformed):
        load_settings(directory=tmp_path)


def test_every_limit_is_positive_and_frozen() -> None:
    """Limits are numbers above zero that nobody changes; the one that is left open follows another."""
    limits = Limits()
    numbers = {name: getattr(limits, name) for name in Limits.model_fields}
    assert [name for name, number in numbers.items() if number is None] == ["max_tensor_bytes"]
    assert all(number > 0 for number in numbers.values() if number is not None)
    assert limits.tensor_bytes == limits.max_message_bytes
    assert Limits(max_tensor_bytes=7).tensor_bytes == 7
    with pytest.raises(ValueError, match="frozen"):
        limits.max_sessions = 1


def test_every_setting_and_limit_is_described() -> None:
    """Each field has a description below it in the source."""
    source = Path(__file__).parents[3].joinpath("server/tessera/server/config.py").read_text()
    lines = source.splitlines()
    for name in (*Settings.model_fields, *Limits.model_fields):
        (at,) = [number for number, line in enumerate(lines) if line.startswith(f"    {name}: ")]
        assert lines[at + 1].startswith('    """'), name


def test_a_passphrase_comes_from_a_private_file(tmp_path: Path) -> None:
    """A file of mode 0600 is read without its line end; one that others may read is refused."""
    file = tmp_path / "pass"
    file.write_bytes(b"secret words\n")
    file.chmod(0o600)
    assert read_master(f"file:{file}").reveal() == b"secret words"
    file.chmod(0o640)
    with pytest.raises(Denied) as caught:
        read_master(f"file:{file}")
    assert caught.value.reason == "key-file-exposed"


def test_a_passphrase_from_the_environment_is_taken_out_of_it() -> None:
    """Once read, the variable is gone, so no child inherits it."""
    environment = {"P": "secret words"}
    assert read_master("env:P", environment=environment).reveal() == b"secret words"
    assert environment == {}
    with pytest.raises(NotFound):
        read_master("env:P", environment=environment)


def test_a_passphrase_from_a_descriptor() -> None:
    """A pipe's other end can hand the passphrase over."""
    reading, writing = os.pipe()
    os.write(writing, b"secret words")
    os.close(writing)
    assert read_master(f"fd:{reading}").reveal() == b"secret words"


@pytest.mark.parametrize("source", ["CANARY", "fd:CANARY", "fd:99999", "file:/CANARY", "env:CANARY", "", "fd:²"])
def test_other_sources_are_refused_without_an_echo(source: str) -> None:
    """What is no source, or names nothing, is refused; its text is not repeated."""
    with pytest.raises((Malformed, NotFound)) as caught:
        read_master(source, environment={})
    assert "CANARY" not in str(caught.value)


def test_an_empty_or_endless_passphrase_is_refused(tmp_path: Path) -> None:
    """Empty files and files beyond 4096 bytes hold no passphrase."""
    for raw in (b"", b"\n", b"x" * 5000):
        file = tmp_path / "pass"
        file.write_bytes(raw)
        file.chmod(0o600)
        with pytest.raises(Malformed):
            read_master(f"file:{file}")


def test_a_gpu_that_is_not_here_is_refused_at_the_start() -> None:
    """Asked for by name it must be there: else no model would load while health says SERVING."""
    assert torch_device("cpu") == "cpu"
    assert torch_device("auto") in ("cpu", "cuda")
    with pytest.raises(Unavailable) as caught:
        torch_device(f"cuda:{torch.cuda.device_count()}")
    assert "cuda" in caught.value.public
    assert "auto" in caught.value.remedy
