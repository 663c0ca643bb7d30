"""`/metrics` for Prometheus: prometheus-client's own WSGI application in a thread of its own, so that a scrape never
waits for a batch, nor a batch for a scrape."""

import socket
import threading
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from tessera.keystore.errors import Unavailable

POLL_S = 0.05


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _ThreadingServer6(_ThreadingServer):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the name is the base class's
        """Say nothing: a scrape every few seconds is no event."""


class MetricsServer:
    """Serves one registry over HTTP until `close`. Raises `Unavailable` when the port cannot be bound."""

    def __init__(self, registry: CollectorRegistry, *, host: str, port: int) -> None:
        try:
            self._server = make_server(
                host,
                port,
                make_wsgi_app(registry),
                server_class=_ThreadingServer6 if ":" in host else _ThreadingServer,
                handler_class=_QuietHandler,
            )
        except (OSError, OverflowError):
            remedy = "stop what listens there, or choose another with --metrics-listen"
            raise Unavailable(f"the metrics port {port} cannot be bound", remedy=remedy) from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="tessera-metrics", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.server_port

    def close(self) -> None:
        """Stop listening and end the thread; blocks for a moment."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
