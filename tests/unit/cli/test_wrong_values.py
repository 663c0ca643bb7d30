"""Every text and number that a command takes, given wrong: the option or value is named, and what would be right."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from support.cli import run_quickly
from support.zoo import Zoo, make_zoo
from tessera.cli.main import app

LONG = "x" * 300
ISSUE = (
    "licence issue --issuer {issuer.key} --package {package} --secrets {package.secrets} --buyer {buyer.key.pub} "
    "--node {node.pub} --out @new"
)
INFER = "infer {scans.npy} --ca {ca.pem} --identity {buyer.key} --licence {licence} --timeout 0.2"
BUILD = "package build {bundle} --issuer {issuer.key} --out @new"
TRAIN = "protect train --recipe digits --key {input.key} --out @new"
REVOKE = "licence revoke lic-1 --issuer {issuer.key} --list @new"
AUDIT = "protect audit {bundle} --out @new --samples {sample.npz}"
ENCRYPT = "protect encrypt {bundle} --out @new --samples {sample.npz}"
TRACE = "protect trace {bundle} --key {input.key} --buyers {buyers.json} --samples {sample.npz}"
LOCK = "protect lock {bundle} --key {input.key} --out @new"
FINGERPRINT = "protect fingerprint {bundle} --key {input.key} --record {record.json} --out @new"
INIT = "keystore init @new --passphrase-file {passphrase}"

WRONG = {
    "demo": [("--seed", "-1"), ("--seed", "4294967296")],
    "health": [("--server", "nonsense"), ("--server", ""), ("--server", "http://localhost:9"), ("--timeout", "0")],
    "identity new --out @new": [("--name", ""), ("--name", LONG), ("--name", "a\a"), ("--name", " a")],
    "keys new --kind issuer --out @new": [("--name", ""), ("--name", LONG), ("--kind", "node")],
    INFER + " --model digits": [
        ("--server", "nonsense"), ("--server", "localhost:99999"), ("--top", "0"), ("--timeout", "nan"),
        ("--max-message", "0"), ("--max-message", "2048"),
    ],
    INFER + " --server localhost:9": [("--model", "faces"), ("--model", "")],
    INIT: [("--name", LONG), ("--name", ""), ("--host", "not a host"), ("--host", "")],
    ISSUE: [
        ("--valid", "soon"), ("--valid", "0d"), ("--valid", "999999999w"), ("--valid", "-3d"),
        ("--not-before", "tomorrow"), ("--not-before", "1950-01-01"),
        ("--not-before", "9999-12-31"), ("--quota", "0"), ("--quota", "many"),
        ("--quota", "9" * 30), ("--quota-period", "year"), ("--rate", "0"), ("--rate", "9" * 30), ("--sessions", "-1"),
        ("--sessions", "9" * 30), ("--tier", "0"), ("--tier", "2"), ("--tier", "256"), ("--expiry-policy", "never"),
        ("--expiry-policy", "degrade"), ("--expiry-policy", "warn"), ("--grace", "a week"), ("--grace", "99999d"),
        ("--degrade-to", "1"), ("--degrade-to", "0"),
    ],
    ISSUE + " --expiry-policy degrade --grace 7d": [("--degrade-to", "2")],
    REVOKE: [("--reason", ""), ("--reason", LONG), ("--reason", "a\a")],
    "model load digits --keystore {node}": [("--version", "-1"), ("--version", "new"), ("--version", "9" * 30)],
    "model unload digits --keystore {node}": [("--version", "-1"), ("--version", "9" * 30)],
    BUILD: [("--model", "no good"), ("--model", ""), ("--model", "Digits"), ("--model", LONG)],
    BUILD + " --model m": [("--version", "0"), ("--version", "9" * 30), ("--licence-text", "a\a"),
                           ("--secrets", "@new")],
    "protect samples --out @new": [("--recipe", "none"), ("--recipe", "")],
    "protect samples --recipe digits --out @new": [("--count", "0"), ("--count", "few")],
    "keystore certificate {node} --passphrase-file {passphrase}": [("--host", "not a host"), ("--host", "")],
    LOCK: [("--transform", "zap:4"), ("--transform", ""), ("--wrong-keys", "-1"), ("--recipe", "none")],
    TRAIN: [
        ("--recipe", "none"), ("--transform", "zap:4"), ("--transform", "shf"), ("--transform", ""),
        ("--transform", "shf:99"), ("--seed", "-1"), ("--seed", "4294967296"), ("--epochs", "0"), ("--batch", "0"),
        ("--lr", "fast"), ("--precision", "fp8"), ("--wrong-keys", "-1"),
    ],
    AUDIT: [
        ("--budget", "huge"), ("--minutes", "0"), ("--minutes", "nan"), ("--attack", "magic"), ("--seed", "-1"),
        ("--recipe", "none"),
    ],
    ENCRYPT: [("--tiers", "a,b"), ("--tiers", "1,0"), ("--steps", "0"), ("--seed", "-1")],
    "protect train --recipe digits --out @new": [("--transform", "shf:4")],
    TRAIN + " --isnn {buyers.json}": [("--illegal", "nothing"), ("--transform", "shf:4"), ("--transform", "isnn:8")],
    TRACE: [("--transform", "zap:4"), ("--transform", "isnn:8:99"), ("--null-keys", "1"), ("--null-keys", "few")],
    FINGERPRINT: [("--strength", "0"), ("--strength", "0.2"), ("--strength", "nan"), ("--strength", "faint")],
    "serve {node}": [
        ("--listen", "8001"), ("--listen", "host:"), ("--listen", "host:99999"), ("--metrics-listen", "here"),
        ("--device", "gpu"), ("--threads", "-1"), ("--log-level", "loud"), ("--log-format", "xml"),
    ],
}  # fmt: skip
"""Calls that are right but for the option that is added, with values that it must refuse."""

CASES = [(call, option, value) for call, entries in WRONG.items() for option, value in entries]

FREE = {
    ("health", "--service"), ("protect train", "--device"), ("protect trace", "--device"),
    ("protect audit", "--device"), ("serve", "--arithmetic"),
    *(("protect encrypt", f"--{name}") for name in ("budget", "names", "layers", "scope", "scores", "decoys")),
    ("protect encrypt", "--recipe"),
}  # fmt: skip
"""Any text will do, or the error is another room's, which is asked only once there is a model, and tested there."""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Right files for the calls."""
    return make_zoo(tmp_path_factory.mktemp("zoo"))


def valued(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield (command, option) for every option that takes a text or a number."""
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from valued(child, (*path, name))
            continue
        for one in child.params:
            file = one.metavar in {"FILE", "DIR", "KEY", "PUB", "PATH"}
            if one.opts[0].startswith("--") and not (one.is_flag or one.is_bool_flag or file):
                yield " ".join((*path, name)), one.opts[0]


def test_every_option_with_a_value_is_in_the_table() -> None:
    """A new option is tried with wrong values too."""
    tried = {(" ".join(call.split()[:words]), option) for call, option, _ in CASES for words in (1, 2)}
    assert set(valued(get_command(app))) - tried - FREE == set()


@pytest.mark.parametrize(("call", "option", "value"), CASES, ids=[f"{c[:16]} {o} {v[:9]!r}" for c, o, v in CASES])
def test_a_wrong_value_is_refused_with_its_name(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, option: str, value: str
) -> None:
    """Usage errors end with 2, what only a room can judge with 1; nothing is made and nothing is an internal error."""
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr("tessera.cli.serve.keep_out_of_core_dumps", lambda: None)
    words = [
        str(zoo[w.strip("{}")]) if w[0] == "{" else str(tmp_path / w[1:]) if w[0] == "@" else w
        for w in shlex.split(call)
    ]
    value = str(tmp_path / value[1:]) if value.startswith("@") else value
    status, told = run_quickly(*words, f"{option}={value}")
    assert status in (1, 2), told
    assert "unexpected" not in told
    assert "Traceback" not in told
    assert option in told or (value and value[:100] in told) or option[2:].replace("-", "_") in told, told
    assert status == 2 or "\nremedy: " in told, told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["no id", "../lic-1", "x" * 5000, ""])
def test_what_is_neither_a_licence_nor_its_id_is_told(zoo: Zoo, tmp_path: Path, given: str) -> None:
    """A mistyped path must not be revoked as if it were an id."""
    status, told = run_quickly("licence", "revoke", given, "--issuer", zoo["issuer.key"], "--list", tmp_path / "list")
    assert status == 1
    assert repr(given[:200]) in told or "is a folder" in told
    assert "remedy: give" in told
    assert not list(tmp_path.iterdir())
