"""The real server as a process that a test may kill.

`kill -9` needs a process, and fifty of them need a quick start: a fork server has the imports done already, and nothing
else (no thread, no socket, no key), so each child is a server started from the beginning.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support.appliance import PASSPHRASE, Site
from tessera.server.config import Settings

START_TIMEOUT_S = 60.0

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tessera.server.app", "torch.export"])


def start_fork_server() -> None:
    """Let the fork server run, if it does not: its socket is put into the temporary folder of that moment, and a test
    that sets one of its own, with a long path, is no place for a socket.
    """
    multiprocessing.forkserver.ensure_running()


class ServerProcess:
    """`serve` of a prepared site in a process of its own; its output goes to `log`."""

    def __init__(self, site: Site, log: Path, *, log_level: str = "info") -> None:
        self._site = site
        self._settings = site.settings(port=free_port(), metrics_port=free_port(), log_level=log_level)
        self._log = log
        self._process: BaseProcess | None = None

    @property
    def target(self) -> str:
        """Where buyers connect."""
        return f"localhost:{self._settings.port}"

    @property
    def metrics_port(self) -> int:
        """Where Prometheus scrapes."""
        return self._settings.metrics_port

    def __enter__(self) -> Self:
        self._process = _context.Process(target=_serve, args=(self._settings, self._log, dict(os.environ)))
        self._process.start()
        try:
            self._await_serving()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.join(START_TIMEOUT_S)
            self.kill()

    @property
    def exit_code(self) -> int | None:
        """How it ended; minus nine for a kill; None before the end."""
        return None if self._process is None else self._process.exitcode

    def ask_to_stop(self) -> None:
        """Send SIGTERM and go on."""
        assert self._process is not None
        self._process.terminate()

    def terminate(self) -> int | None:
        """Send SIGTERM and return the exit code after the drain."""
        assert self._process is not None
        self._process.terminate()
        self._process.join(START_TIMEOUT_S)
        return self._process.exitcode

    def kill(self) -> None:
        """Send SIGKILL: no handler, no flush, no goodbye."""
        if self._process is not None and self._process.is_alive():
            self._process.kill()
            self._process.join(START_TIMEOUT_S)

    def _await_serving(self) -> None:
        """Watch the health service until it says SERVING; the call itself waits for the port to open."""
        credentials = grpc.ssl_channel_credentials(self._site.root_certificates)
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
        with grpc.secure_channel(self.target, credentials, options=options) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=START_TIMEOUT_S
            )
            for answer in watch:
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    watch.cancel()
                    return


def free_port() -> int:
    """Return a port of the loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _serve(settings: Settings, log: Path, environment: dict[str, str]) -> None:
    from tessera.server.__main__ import run

    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    run(settings, passphrase=PASSPHRASE)
