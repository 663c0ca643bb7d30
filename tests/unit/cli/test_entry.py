"""What the script does before there is a command line: missing modules, Ctrl-C, output that goes nowhere."""

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tessera.cli.boundary import BROUGHT_BY, described

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
RUN = "from tessera.cli.entry import main; main()"


def script(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh interpreter, as the installed script runs its own."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


def brought_by(extra: str) -> set[str]:
    """Return the names of the distributions that an extra asks for itself."""
    declared = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return {str(canonicalize_name(Requirement(text).name)) for text in declared[extra]} - {"tessera-appliance"}


def distribution(module: str) -> str:
    """Return the name of the distribution that holds a module."""
    (name,) = importlib.metadata.packages_distributions().get(module) or (_NAMED[module],)
    return str(canonicalize_name(name))


@pytest.mark.slow
def test_the_base_install_says_which_extra_brings_the_command() -> None:
    """The script is there after `pip install tessera-appliance`, what it stands on is not; no traceback then."""
    done = script(f"import sys; sys.modules['typer'] = None; {RUN}", "--help")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[1] == "remedy: pip install 'tessera-appliance[cli]'"


@pytest.mark.slow
def test_an_interrupt_while_modules_load_exits_130() -> None:
    """Ctrl-C in the first half second is Ctrl-C too."""
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        f"sys.meta_path.insert(0, Interrupted()); {RUN}"
    )
    done = script(code, "version")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.slow
def test_a_closed_standard_output_is_no_fault() -> None:
    """Somebody who closes it does not want to read the answer."""
    done = script(f"import sys; sys.stdout = None; {RUN}", "version")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_json_is_told_in_words() -> None:
    """The document cannot be written; the sentence on standard error still is."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", RUN, "version", "--json"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode != 0
    assert done.stderr.startswith("error: No space left on device\nremedy: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", BROUGHT_BY)
def test_a_missing_module_is_answered_with_the_extra_that_declares_it(module: str) -> None:
    """What the remedy says to install does bring the module."""
    assert distribution(module) in brought_by(BROUGHT_BY[module])
    missing = ModuleNotFoundError(f"No module named {module!r}", name=f"{module}.inside")
    assert described(missing)["remedy"] == f"pip install 'tessera-appliance[{BROUGHT_BY[module]}]'"


def test_each_distribution_of_an_extra_has_its_answer() -> None:
    """A dependency that is added to an extra is added to the remedies as well."""
    assert set.union(*map(brought_by, ("cli", "server", "vendor", "demo"))) <= set(map(distribution, BROUGHT_BY))


@pytest.mark.slow
def test_a_buyer_s_install_can_ask_for_health() -> None:
    """`tessera health` runs with what the extra `cli` brings; it is in the panel of commands for everyone."""
    server_s = ("sqlalchemy", "pydantic_settings", "structlog", "prometheus_client", "torch", "grpc_reflection")
    hidden = f"import sys; sys.modules.update(dict.fromkeys({server_s!r})); "
    done = script(hidden + RUN, "health", "--server", "localhost:9", "--insecure-plaintext", "--json")
    assert json.loads(done.stdout)["error"]["reason"] == "unreachable"
    assert "grpcio-health-checking" in brought_by("cli")


_NAMED = {"google.rpc": "googleapis-common-protos"}
"""A namespace that several distributions share: which of them brings the part that we import."""
