"""Every command explains itself, and asking for it is quick."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from support.cli import document, invoke
from tessera.cli.main import app

HEAVY = ("torch", "numpy", "grpc", "cryptography", "sqlalchemy", "rich", "nacl", "tessera.server", "tessera.protect")


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command below `command` with its path."""
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from commands(child, (*path, name))
        else:
            yield (*path, name), child


COMMANDS = dict(commands(get_command(app)))


def test_the_commands_of_the_walk_throughs_exist() -> None:
    """These names are in the README; renaming one is a breaking change."""
    named = {
        "keys new", "keys buyer", "identity new", "identity show", "protect train", "protect recipes",
        "protect samples", "protect encrypt", "protect audit", "protect trace", "protect lock",
        "protect fingerprint", "protect identify",
        "package build", "package inspect", "package verify", "licence issue", "licence inspect", "licence revoke",
        "licence install", "licence list", "keystore init", "keystore status", "keystore unseal", "keystore seal",
        "keystore trust", "keystore rotate", "keystore passphrase", "keystore certificate", "serve", "model publish",
        "model list", "model load", "model unload", "infer", "usage report", "usage export", "usage verify", "health",
        "demo", "version",
    }  # fmt: skip
    assert {" ".join(path) for path in COMMANDS} == named


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_each_command_has_help_an_example_and_documented_options(path: tuple[str, ...]) -> None:
    """--help says what the command does, shows one call of it, and explains each option."""
    command = COMMANDS[path]
    assert command.help
    assert command.epilog.startswith(f"Example: tessera {' '.join(path)}")
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{parameter.name} has no help"


@pytest.mark.parametrize("path", [path for path in COMMANDS if path not in {("serve",), ("demo",)}], ids=" ".join)
def test_each_reporting_command_takes_json(path: tuple[str, ...]) -> None:
    """Whatever a command reports can be had by a program."""
    assert "--json" in [option for parameter in COMMANDS[path].params for option in parameter.opts]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_no_command_takes_a_passphrase_on_its_command_line(path: tuple[str, ...]) -> None:
    """A command line is visible to every process of the machine."""
    options = [option for parameter in COMMANDS[path].params for option in parameter.opts]
    assert not {"--passphrase", "--password", "--secret-key"} & set(options)


@pytest.mark.slow
def test_help_loads_no_room() -> None:
    """The module of the command imports nothing that takes time; rooms are loaded when a sub-command runs."""
    code = f"import sys, tessera.cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_python_m_is_the_command() -> None:
    """`python -m tessera.cli` works where no script is installed."""
    arguments = [sys.executable, "-m", "tessera.cli", "version", "--json"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout)["tessera"]


def test_version_names_the_distribution() -> None:
    """`tessera version` is what a bug report begins with."""
    from tessera.client._version import __version__

    assert document("version")["tessera"] == __version__


def test_the_usual_flag_prints_the_version() -> None:
    """What one types first at an unknown command."""
    from tessera.client._version import __version__

    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"tessera {__version__}\n")


def test_bash_completes_commands_and_options() -> None:
    """The shell's script asks the command itself, so that what it offers is what there is."""
    asked = {"_TESSERA_COMPLETE": "complete_bash", "COMP_CWORD": "3"}
    result = CliRunner().invoke(app, [], prog_name="tessera", env=asked | {"COMP_WORDS": "tessera licence issue --exp"})
    assert result.stdout.split() == ["--expiry-policy"]


def test_a_mistyped_command_is_a_usage_error_with_a_suggestion() -> None:
    """Exit status 2, and the nearest command is named."""
    result = invoke("licence", "isue")
    assert result.exit_code == 2
    assert "issue" in result.stderr
