"""The layout's price is one list written many times; these tests hold the copies together."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
CODE_ROOMS = ("client", "keystore", "transforms", "server", "protect", "cli")
ROOMS = ("proto", *CODE_ROOMS)


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    """The parsed pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_no_init_in_the_namespace() -> None:
    """An __init__.py directly in any */tessera/ would make every other room vanish."""
    assert [str(path) for room in ROOMS for path in (ROOT / room / "tessera").glob("__init__.py*")] == []


def test_every_room_is_typed() -> None:
    """Each room carries its own py.typed, or type checkers of our users see Any."""
    marked = [ROOT / room / "tessera" / room for room in CODE_ROOMS]
    marked += [ROOT / "proto/tessera/v1", ROOT / "proto/tessera/oip/v1"]
    assert [str(room) for room in marked if not (room / "py.typed").exists()] == []


def test_every_list_names_every_room(pyproject: dict[str, Any]) -> None:
    """dev-mode-dirs, wheel, sdist, mypy, pyright, ruff and import-linter all know all rooms."""
    tool = pyproject["tool"]
    hatch = tool["hatch"]["build"]
    rooms = set(ROOMS)
    assert set(hatch["dev-mode-dirs"]) == rooms
    assert {entry.removesuffix("/tessera") for entry in hatch["targets"]["wheel"]["packages"]} == rooms
    assert {f"/{room}" for room in rooms} <= set(hatch["targets"]["sdist"]["include"])
    assert set(tool["mypy"]["mypy_path"]) == rooms | {"tests"}
    assert {entry.split("/")[0] for entry in tool["mypy"]["files"]} >= rooms
    assert set(tool["pyright"]["include"]) >= set(CODE_ROOMS)
    assert set(tool["ruff"]["src"]) >= rooms
    assert set(tool["importlinter"]["root_packages"]) == {f"tessera.{room}" for room in CODE_ROOMS} | {
        "tessera.v1",
        "tessera.oip",
    }


@pytest.mark.slow
def test_the_client_is_light() -> None:
    """Importing the client pulls in neither torch nor any heavy room, in a fresh isolated interpreter."""
    code = (
        "import sys, tessera.client\n"
        "heavy = {'torch', 'sqlalchemy', 'cryptography', 'prometheus_client', 'typer', 'rich', 'scipy',"
        " 'tessera.server', 'tessera.protect', 'tessera.keystore.store', 'tessera.keystore.package'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_only_ffx_loads_cryptography() -> None:
    """A client whose models use no FFX never loads AES; one step of FFX does."""
    code = (
        "import sys, tessera.client\n"
        "from tessera.keystore.secrets import InputKey\n"
        "from tessera.transforms import Transform, TransformSpec\n"
        "for text in ('shf:4,np:4', 'shf:4,ffx:4'):\n"
        "    Transform(TransformSpec.parse_text(text), InputKey(bytes(32)), 3, 8, 8)\n"
        "    print(sorted({'cryptography', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['cryptography']"]


CODE = {".py", ".pyi", ".typed", ".proto", ".md", ".toml", ".json", ".txt", ".yaml", ".mako"}
METADATA = {"PKG-INFO", "METADATA", "RECORD", "WHEEL", ".gitignore"}
EXTENSION = "tessera/transforms/_kernel.abi3.so"


def _unexpected(names: list[str], more: set[str]) -> list[str]:
    return [name for name in names if Path(name).suffix not in CODE | more and Path(name).name not in METADATA]


@pytest.mark.slow
def test_built_archives_hold_code_only(tmp_path: Path) -> None:
    """Neither wheel nor sdist ships anything but code, stubs, protos and the readme: never a key or a deploy file."""
    strays = [ROOT / "keystore/tessera/keystore/stray.pem", ROOT / "server/stray.key", ROOT / "cli/tessera/stray.so"]
    for stray in strays:
        stray.write_text("canary")
    try:
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
        subprocess.run(command, capture_output=True, check=True)
    finally:
        for stray in strays:
            stray.unlink()
    wheel, sdist = _wheel_names(tmp_path), _sdist_names(tmp_path)
    assert _unexpected([name for name in wheel if name != EXTENSION], set()) == []
    assert _unexpected(sdist, {".c", ".h"}) == []
    names = [*wheel, *sdist]
    assert not [name for name in names if "/deploy/" in name or ".venv" in name]
    for room in ("client", "server/services", "server/engine", "keystore/store/migrations/versions", "cli", "v1"):
        assert [name for name in names if f"tessera/{room}/" in name and name.endswith(".py")], room
    sources = {path.name for path in _c_sources()}
    assert sources | {"hatch_build.py"} <= {Path(name).name for name in sdist}


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {"TESSERA_KERNEL": "skip"}, {"CC": "/no/such/compiler"}], ids=str)
def test_a_wheel_is_named_for_what_it_holds(tmp_path: Path, environment: dict[str, str]) -> None:
    """With the extension a wheel is for one platform and Python 3.11 and later; without, for any, and it says so."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=os.environ | environment)
    (wheel,) = tmp_path.glob("*.whl")
    held = EXTENSION in _wheel_names(tmp_path)
    reports = (done.stdout + done.stderr).count("without the compiled")
    assert (held, wheel.name.endswith("-py3-none-any.whl"), reports) in {(True, False, 0), (False, True, 1)}
    assert held == ("-cp311-abi3-" in wheel.name)
    assert not (held and environment)


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"TESSERA_KERNEL": "require"}, {"TESSERA_KERNEL": "maybe"}], ids=str)
def test_a_build_that_must_have_the_extension(tmp_path: Path, environment: dict[str, str]) -> None:
    """Whoever requires the extension, or asks for something unknown, gets an error and no wheel."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    missing = {"CC": "/no/such/compiler"} | environment
    done = subprocess.run(command, capture_output=True, check=False, text=True, env=os.environ | missing)
    assert done.returncode != 0
    assert "/no/such/compiler" in done.stderr or "'maybe'" in done.stderr
    assert list(tmp_path.glob("*")) == []


def test_make_builds_the_extension_again() -> None:
    """A change of any C source, or of what builds it, makes `make` install again."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (kernel,) = re.findall(r"^KERNEL := \$\(addprefix (\S+),(.+)\)$", makefile, re.MULTILINE)
    assert {f"{kernel[0]}{name}" for name in kernel[1].split()} == {
        str(path.relative_to(ROOT)) for path in _c_sources()
    }
    (inputs,) = re.findall(r"^INPUTS := (.+)$", makefile, re.MULTILINE)
    assert {"pyproject.toml", "hatch_build.py", "$(KERNEL)"} <= set(inputs.split())


def _c_sources() -> list[Path]:
    return [path for room in ROOMS for suffix in ("c", "h") for path in (ROOT / room).rglob(f"*.{suffix}")]


def _wheel_names(folder: Path) -> list[str]:
    import zipfile

    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def _sdist_names(folder: Path) -> list[str]:
    import tarfile

    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        return [member.name for member in archive.getmembers() if member.isfile()]
