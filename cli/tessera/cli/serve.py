"""`tessera serve`: run the appliance in the foreground until SIGTERM."""

import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from tessera.cli import console, kinds
from tessera.cli.options import KeystoreArgument, parse_address
from tessera.cli.reading import reading
from tessera.keystore.errors import NotFound

_READ_HERE = ("TESSERA_KEYSTORE", "TESSERA_PASSPHRASE", "TESSERA_PASSPHRASE_FILE", "TESSERA_SERVER", "TESSERA_CA")
"""Variables of the commands: no settings of the server, which warns of those that it does not know, and nothing that a
child should inherit."""

_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?", re.ASCII)

PR_SET_DUMPABLE = 4
"""Linux: with 0, the kernel writes no core of this process and no other process of the user may read its memory."""


def serve(
    keystore: KeystoreArgument,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings as TOML; TESSERA_* variables and flags go before it.")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where buyers connect; default 127.0.0.1:8001."),
    ] = None,
    metrics_listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where Prometheus scrapes; default 127.0.0.1:8002.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Torch device: auto, cpu, cuda or cuda:N.")] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="Torch threads for one batch; 0: torch's choice.")] = None,
    arithmetic: Annotated[
        str | None,
        typer.Option(
            metavar="fast|exact",
            help="fast: convolutions and batch norms run as one on a CPU, checked at load; exact: the vendor's bits.",
        ),
    ] = None,
    reflection: Annotated[
        bool | None, typer.Option("--reflection/--no-reflection", help="Serve gRPC reflection; default: off.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error; default: info.")] = None,
    log_format: Annotated[str | None, typer.Option(help="json or console; default: json.")] = None,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="TESSERA_PASSPHRASE_FILE",
            help="Unseal at the start with the passphrase in FILE, else with $TESSERA_PASSPHRASE; else start sealed.",
        ),
    ] = None,
) -> None:
    """Serve licensed buyers from a key store, over TLS, until SIGTERM: then finish what is in flight and exit 0."""
    keep_out_of_core_dumps()
    from tessera.cli import passphrases
    from tessera.server.config import load_settings

    _check_keystore(keystore)
    if device is not None and _DEVICE.fullmatch(device) is None:
        raise typer.BadParameter(f"{device!r} is not auto, cpu, cuda or cuda:N", param_hint="--device")
    flags: dict[str, Any] = {"directory": keystore, "device": device, "threads": threads, "reflection": reflection}
    flags |= {"log_level": log_level, "log_format": log_format, "arithmetic": arithmetic}
    flags["host"], flags["port"] = _address(listen, "--listen")
    flags["metrics_host"], flags["metrics_port"] = _address(metrics_listen, "--metrics-listen")
    with reading(config, kinds.SETTINGS) if config is not None else nullcontext():
        settings = load_settings(config, **flags)
    passphrase = passphrases.given(passphrase_file)
    if passphrase is None and settings.master is None:
        console.note(f"starting sealed; to unseal: tessera keystore unseal {keystore}")
    for name in _READ_HERE:
        os.environ.pop(name, None)
    from tessera.server.__main__ import run

    run(settings, passphrase=passphrase)


def _check_keystore(keystore: Path) -> None:
    with reading(keystore, kinds.KEYSTORE):
        if not (keystore / "keystore.db").is_file():
            raise NotFound(
                "there is no key store here", reason="not-initialised", remedy=f"run: tessera keystore init {keystore}"
            )


def keep_out_of_core_dumps() -> None:
    """Set RLIMIT_CORE to 0 and, on Linux, mark the process as not dumpable: keys in memory must not reach a disk."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.uname().sysname != "Linux":
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        console.note("warning: this process stays dumpable (prctl refused); core dumps are off by RLIMIT_CORE")


def _address(text: str | None, option: str) -> tuple[str | None, int | None]:
    if text is None:
        return None, None
    return parse_address(text, option, "0.0.0.0:8001")
