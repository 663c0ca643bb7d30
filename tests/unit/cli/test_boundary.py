"""One place turns exceptions into an exit status and words."""

import json

import pytest
import typer
from typer.testing import CliRunner, Result

from tessera.cli.boundary import BoundaryGroup, described
from tessera.cli.options import JsonFlag
from tessera.keystore.errors import Denied

SECRET = "the text of a library's exception"


def run(error: BaseException, *flags: str, debug: str | None = None) -> Result:
    """Run a command that raises `error`."""
    app = typer.Typer(cls=BoundaryGroup, pretty_exceptions_enable=False)

    @app.command("fail")
    def fail(as_json: JsonFlag = False) -> None:
        raise error

    @app.command("other")
    def other() -> None:
        """Keep `fail` a sub-command."""

    return CliRunner().invoke(app, ["fail", *flags], env={"TESSERA_DEBUG": debug})


def test_our_errors_show_sentence_and_remedy_and_exit_1() -> None:
    """A refusal is told in two lines on standard error, nothing on standard output."""
    result = run(Denied("not for you", remedy="ask the vendor"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: not for you\nremedy: ask the vendor\n"


def test_json_prints_one_document_with_the_reason() -> None:
    """With --json a program finds the machine-readable reason on standard output."""
    result = run(Denied("not for you", reason="licence-not-yours", remedy="ask"), "--json")
    assert result.exit_code == 1
    told = {"reason": "licence-not-yours", "message": "not for you", "remedy": "ask"}
    assert json.loads(result.stdout) == {"error": told}


def test_an_unexpected_exception_shows_its_class_only() -> None:
    """The text of a foreign exception may hold a secret, so it stays inside."""
    result = run(ValueError(SECRET))
    assert result.exit_code == 1
    assert "unexpected ValueError" in result.stderr
    assert SECRET not in result.output


def test_debug_shows_the_traceback() -> None:
    """The person at the keyboard can ask for everything."""
    result = run(ValueError(SECRET), debug="1")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert SECRET in result.stderr


def test_an_interrupt_exits_130_and_says_nothing() -> None:
    """Ctrl-C is no failure to be explained."""
    result = run(KeyboardInterrupt())
    assert (result.exit_code, result.output) == (130, "")


def test_usage_errors_exit_2() -> None:
    """A wrong flag is the caller's, and says so with another status."""
    assert run(ValueError(SECRET), "--no-such-flag").exit_code == 2


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(2, "No such file or directory", "x.npy"), "No such file or directory: x.npy"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "torch"),
    ],
)
def test_known_foreign_errors_are_told_in_words(error: Exception, expected: str) -> None:
    """A missing file or extra is named, because that is what the reader must mend."""
    assert expected in described(error)["message"]
