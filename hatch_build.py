"""Builds the compiled transforms where there is a C compiler (docs/adr/0014); hatch runs this for every wheel.

An editable install gets the extension beside its source, any other wheel inside, with a tag of its own. Installing
never fails for want of a compiler: the transforms are then NumPy's, slower with the same bits. The environment variable
TESSERA_KERNEL says otherwise: `require` makes a failure an error, `skip` builds nothing. CC, CFLAGS and LDFLAGS count.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "transforms/tessera/transforms"
SOURCE = "_kernel.c"
BUILT = "_kernel.abi3.so"
MODES = ("auto", "require", "skip")


class NotBuiltError(Exception):
    """The extension cannot be built here; the message says why in one line."""


class KernelHook(BuildHookInterface[Any]):
    """Compiles `_kernel` before a wheel is put together."""

    _made: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the extension to the wheel, or say in one line why there is none."""
        mode = os.environ.get("TESSERA_KERNEL") or "auto"
        if mode not in MODES:
            raise ValueError(f"TESSERA_KERNEL is {mode!r}, not one of {', '.join(MODES)}")
        beside = Path(self.root, FOLDER)
        if version == "editable":
            beside.joinpath(BUILT).unlink(missing_ok=True)  # never an old one
        try:
            if mode == "skip":
                raise NotBuiltError("TESSERA_KERNEL=skip")
            built = compiled(beside / SOURCE, self._temporary())
        except NotBuiltError as error:
            self.finalize(version, build_data, "")
            if mode == "require":
                raise
            self.app.display_warning(f"tessera: transforms without the compiled extension, slower: {error}")
            return
        if version == "editable":
            shutil.move(built, beside / BUILT)
            return
        build_data["force_include"][str(built)] = f"tessera/transforms/{BUILT}"
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"cp311-abi3-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was built, once the wheel holds it."""
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)

    def _temporary(self) -> Path:
        self._made = Path(tempfile.mkdtemp(prefix="tessera-kernel-"))
        return self._made


def compiled(source: Path, folder: Path) -> Path:
    """Return the extension, built from `source` into `folder`. Raises `NotBuiltError`."""
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        raise NotBuiltError("this interpreter has no limited C API")
    linker = shlex.split(sysconfig.get_config_var("LDSHARED") or "")  # such as: gcc -shared
    if os.environ.get("CC"):
        linker = [*shlex.split(os.environ["CC"]), *linker[1:]]
    if not linker:
        raise NotBuiltError("no C compiler is known to this Python")
    built = folder / BUILT
    flags = ["-O3", "-fPIC", f"-I{sysconfig.get_path('include')}", *shlex.split(os.environ.get("CFLAGS", ""))]
    command = [*linker, *flags, str(source), "-o", str(built), *shlex.split(os.environ.get("LDFLAGS", ""))]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except OSError as error:
        raise NotBuiltError(f"{linker[0]}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if "error" in line] or [f"exit status {error.returncode}"]
        raise NotBuiltError(f"{linker[0]}: {said[0].strip()}") from error
    return built
