"""Running the `tessera` command inside the test's process, and small files for it to work on."""

import functools
import io
import json
import socket
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from tessera.cli.main import app

PASSPHRASE = "correct horse battery staple"


def invoke(*arguments: object, text: str | None = None, **environment: str) -> Result:
    """Run `tessera ARGUMENTS` with `text` on standard input; no TESSERA_* variable but those given reaches it."""
    clean: dict[str, str | None] = dict.fromkeys(_OURS)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=text, env=clean | environment)


def run_quickly(*arguments: object) -> tuple[int, str]:
    """Run a command that ends at once; return exit status and standard error.

    For thousands of calls: `invoke` builds the tree of commands anew for each, which takes longer than most of them.
    """
    told = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(told):
        try:
            _tree().main([str(argument) for argument in arguments], prog_name="tessera")
        except SystemExit as end:
            return int(end.code or 0), told.getvalue()
    return 0, told.getvalue()


@functools.cache
def _tree() -> Any:
    return get_command(app)


def document(*arguments: object, **environment: str) -> dict[str, Any]:
    """Run a command with `--json`, hold that it succeeds and prints one JSON document, and return that."""
    result = invoke(*arguments, "--json", **environment)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def refusal(*arguments: object, **environment: str) -> dict[str, str]:
    """Run a command with `--json`, hold that it is refused with one JSON document, and return the error in it."""
    result = invoke(*arguments, "--json", **environment)
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert list(found) == ["error"]
    error: dict[str, str] = found["error"]
    assert f"error: {error['message']}" in result.stderr
    return error


def passphrase_file(folder: Path, text: str = PASSPHRASE) -> Path:
    """Write a passphrase file of mode 0600 and return its path."""
    path = folder / "passphrase"
    path.touch(mode=0o600)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def need_usual_ports() -> None:
    """Skip the test, visibly, where another program holds the ports that a server takes when it is told none."""
    for port in (8001, 8002):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                pytest.skip(f"port {port} of this machine is taken")


_OURS = (
    "TESSERA_PASSPHRASE",
    "TESSERA_PASSPHRASE_FILE",
    "TESSERA_KEYSTORE",
    "TESSERA_SERVER",
    "TESSERA_CA",
    "TESSERA_DEBUG",
    "TESSERA_DATA",
)
