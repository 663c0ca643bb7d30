"""What the examples share: the commands that vendor, operator and buyer type, and a server while a block runs.

Each command is printed as it could be typed. Vendor, operator and buyer work in one folder here; in life they are three
machines, and only public files travel: `*.pub`, `*.tessera`, `*.licence`, `ca.pem`.
"""

import argparse
import contextlib
import io
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tessera.cli.main import app


def tessera(folder: Path, command: str) -> dict[str, Any]:
    """Run `tessera COMMAND` in `folder` and return what it reports; a refusal ends the program with its message."""
    print(f"  $ tessera {command}", flush=True)
    status, told = _run(folder, command)
    if status:
        raise SystemExit(status)
    found: dict[str, Any] = json.loads(told)
    return found


def _run(folder: Path, command: str) -> tuple[int, str]:
    """Return exit status and standard output of a command, run inside this process, which saves its start each time."""
    told = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(told):
        status = app([*shlex.split(command), "--json"], standalone_mode=False)
    return int(status or 0), told.getvalue()


def make_keys(folder: Path) -> None:
    """Vendor: a key that signs, and the secret key of the model's inputs. Buyer: an identity."""
    tessera(folder, "keys new --kind issuer --name 'Acme Vision' --out acme.key")
    tessera(folder, "keys new --kind input --out input.key")
    tessera(folder, "identity new --name 'Ada Ltd' --out ada.key")


def make_node(folder: Path) -> None:
    """Operator: a key store that trusts the vendor."""
    passphrase = folder / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text(secrets.token_urlsafe(24))
    tessera(folder, "keystore init node --name node-1 --passphrase-file passphrase")
    tessera(folder, "keystore trust node acme.key.pub")


def sell(folder: Path, model: str) -> None:
    """Seal the vendor's `bundle`, make the operator's node, publish there, and license the buyer for a month."""
    tessera(
        folder,
        f"package build bundle --issuer acme.key --input-key input.key --model {model} --out {model}.tessera",
    )
    make_node(folder)
    tessera(folder, f"model publish {model}.tessera --keystore node")
    tessera(
        folder,
        f"licence issue --issuer acme.key --package {model}.tessera --buyer ada.key.pub --node node/node.pub "
        "--valid 30d --quota 100000 --out ada.licence",
    )
    tessera(folder, "licence install ada.licence --keystore node")


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run the real server, TLS and all, as a process of its own on free ports; yield its address, drain it after."""
    address, metrics = f"localhost:{_free_port()}", f"127.0.0.1:{_free_port()}"
    command = f"serve node --listen {address} --metrics-listen {metrics} --threads 1 --passphrase-file passphrase"
    print(f"  $ tessera {command} &", flush=True)
    with (folder / "server.log").open("wb") as log:
        words = [sys.executable, "-m", "tessera.cli", *shlex.split(command)]
        server = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log)
    try:
        while not _serves(folder, address):
            if server.poll() is not None:
                raise SystemExit(f"the server did not start; see {folder / 'server.log'}")
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()  # SIGTERM: what is in flight is finished and recorded
        server.wait()


def _serves(folder: Path, address: str) -> bool:
    with contextlib.redirect_stderr(io.StringIO()):
        return _run(folder, f"health --server {address} --ca node/ca.pem")[0] == 0


def report_usage(folder: Path) -> None:
    """Show what the ledger has charged, and that its hash chain holds; the server is asked over a socket in `node`."""
    (used,) = tessera(folder, "usage report --keystore node")["usage"]
    tessera(folder, "usage export --keystore node --out usage.jsonl")
    proof = tessera(folder, "usage verify usage.jsonl --node node/node.pub")
    print(f"charged: {used['samples']} samples in {used['requests']} requests; {proof['records']} records, chain holds")


def recipe_options(description: str | None) -> argparse.Namespace:
    """Return the options of an example that trains a ready recipe."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits", help="any recipe of `tessera protect recipes`")
    parser.add_argument("--data", type=Path, help="folder of the recipe's data set, where it needs one")
    parser.add_argument("--transform", default="shf:4,np:4", help="steps KIND:BLOCK of shf, np and ffx")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--count", type=int, default=300, help="test pictures to stream")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave all files in this new folder")
    return parser.parse_args()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


os.environ.pop("TESSERA_KEYSTORE", None)  # nothing of the reader's own node gets mixed in
