"""The operator's part: a key store, and the real server as a process of its own."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tessera.cli import console, health, node
from tessera.keystore.errors import Unavailable
from tessera.keystore.identity import PublicIdentity
from tessera.keystore.secrets import Passphrase
from tessera.keystore.store import Store

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 40.0
_POLL_S = 0.1


def initialise(keystore: Path, passphrase_file: Path, *, now_s: float) -> tuple[PublicIdentity, bytes]:
    """Make a key store under a fresh passphrase; return the node's public identity and the passphrase, to look for."""
    passphrase = secrets.token_urlsafe(24).encode()
    descriptor = os.open(passphrase_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(passphrase + b"\n")
    created = Store.create(keystore, master=Passphrase(passphrase), node_name="demo-node", now_s=now_s)
    try:
        return created.node, passphrase
    finally:
        created.close()


def furnish(keystore: Path, issuer: PublicIdentity, package: Path, licences: list[Path], *, now_s: float) -> None:
    """Trust the vendor, publish the package, install the licences."""
    with node.store(keystore) as opened:
        opened.trust_issuer(issuer)
    node.publish(keystore, package, now_s=now_s)
    for licence in licences:
        node.install_licence(keystore, licence, now_s=now_s)


class ServerProcess:
    """`tessera serve` on two free ports of this machine; leaving the block stops it, whatever happened inside."""

    def __init__(self, keystore: Path, passphrase_file: Path, log: Path) -> None:
        self.keystore = keystore
        self.address = f"localhost:{_free_port()}"
        self.metrics_address = f"127.0.0.1:{_free_port()}"
        self.ca = keystore / "ca.pem"
        self.log = log
        port = self.address.rpartition(":")[2]
        arguments = ["serve", str(keystore), "--listen", f"127.0.0.1:{port}", "--metrics-listen", self.metrics_address]
        # One thread: the digits network is so small that torch loses more by sharing it out than it wins.
        arguments += ["--threads", "1", "--passphrase-file", str(passphrase_file)]
        self._command = [sys.executable, "-m", "tessera.cli", *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # Nothing of ours in its environment: no secret, and no setting of the person who runs the demo.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TESSERA_")}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        try:
            self._wait_until_serving()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """Send SIGTERM, wait until the server has drained, return its exit status; again: the same status."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _wait_until_serving(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        with console.progress("starting the server") as advance:
            while (answer := self._status()) != "SERVING":
                if self._process is None or self._process.poll() is not None or time.monotonic() > deadline_s:
                    raise Unavailable(
                        f"the server did not come up (health: {answer}): {self._last_line()}",
                        remedy=f"read {self.log}, with --keep DIR",
                    )
                advance(0, 1)
                time.sleep(_POLL_S)

    def _status(self) -> str:
        try:
            return health.ask(self.address, ca=self.ca, timeout_s=2.0)
        except Unavailable:
            return "no answer"

    def _last_line(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "its log is empty"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
