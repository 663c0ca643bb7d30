"""The composition root: settings in, a running appliance out.

    async with Appliance(settings) as appliance:      # tests and embedding
        …appliance.port, appliance.metrics_port, appliance.admin_socket
    await serve(settings)                             # the process: until SIGTERM or SIGINT, then drained

Start: lock the store → open it → doors open, health NOT_SERVING → unseal if a passphrase is at hand → load → health
SERVING. Stop:  health NOT_SERVING → refuse what is new → wait for what was admitted → close the doors → flush the
ledger → close (W-29).
"""

import asyncio
import contextlib
import fcntl
import os
import resource
import signal
from collections.abc import Coroutine, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc
import structlog

from tessera.keystore.errors import ApiMisuse, Conflict, NotFound, Unavailable
from tessera.keystore.secrets import Passphrase
from tessera.keystore.store import Store
from tessera.keystore.store.store import DATABASE
from tessera.server.boundary import Boundary
from tessera.server.certificate import ServerCertificate
from tessera.server.clock import Clock, SystemClock
from tessera.server.config import Settings, unknown_environment
from tessera.server.logs import configure_logging
from tessera.server.master import read_master
from tessera.server.metrics import Metrics
from tessera.server.node import Node
from tessera.server.scrape import MetricsServer
from tessera.server.services.admin import AdminService
from tessera.server.services.health import Health
from tessera.server.services.inference import MEASURED, InferenceService, register
from tessera.server.services.licensing import LicensingService
from tessera.server.services.reflection import add_reflection
from tessera.v1 import admin_pb2_grpc, licensing_pb2_grpc

LOCK_FILE: Final = "serve.lock"
ADMIN_CLOSE_S: Final = 0.2
_log = structlog.get_logger("tessera.app")


def software_version() -> str:
    """Return the version of the installed distribution; "0" when it runs from a bare checkout."""
    try:
        return version("tessera-appliance")
    except PackageNotFoundError:
        return "0"


class Appliance:
    """A whole appliance as an async context manager; ports that were 0 in the settings are real once it is entered.

    `passphrase` unseals the store at once; without it, and without `settings.master`, the node starts sealed.
    """

    def __init__(self, settings: Settings, *, passphrase: Passphrase | None = None, clock: Clock | None = None) -> None:
        self.settings = settings
        self.port = settings.port
        """gRPC port."""
        self.metrics_port = settings.metrics_port
        """Prometheus port; 0 when there is none."""
        self.admin_socket: Path = settings.admin_path
        """The operator's socket."""
        self.metrics = Metrics(version=software_version())
        self.health = Health()
        self._passphrase = passphrase
        self._clock = clock or SystemClock()
        self._node: Node | None = None
        self._exits = contextlib.AsyncExitStack()
        self._draining = False

    @property
    def node(self) -> Node:
        """What is behind the doors. Raises `ApiMisuse` before the appliance is entered."""
        if self._node is None:
            raise ApiMisuse("the appliance has not been started")
        return self._node

    async def __aenter__(self) -> Self:
        """Start everything. Raises `NotFound`, `Conflict`, `WrongKey`, `Unavailable`; then nothing is left running."""
        try:
            await self._start()
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain()
        await self._exits.aclose()

    async def drain(self) -> None:
        """Show NOT_SERVING for good, refuse what is new, and wait for what was admitted; may be called twice."""
        if self._node is not None and not self._draining:
            self._draining = True
            await self.health.drain()
            await self._node.drain()

    async def _start(self) -> None:
        settings = self.settings
        passphrase = self._passphrase or (None if settings.master is None else read_master(settings.master))
        self._passphrase = None
        self._exits.enter_context(_exclusive(settings.directory, self.admin_socket))
        store = await asyncio.to_thread(Store.open, settings.directory)
        await self.health.show(serving=False)
        try:
            node = Node(store, settings, self._clock, self.metrics, announce=self._announce)
        except BaseException:
            store.close()
            raise
        self._node = node
        self._exits.push_async_callback(node.close)
        watcher = asyncio.create_task(node.watch_revocations())
        self._exits.push_async_callback(_cancel, watcher)
        await self._open_doors(node)
        if settings.metrics:
            self._serve_metrics()
        if passphrase is not None:
            await node.unseal(passphrase)
        _log.info("started", port=self.port, metrics_port=self.metrics_port, sealed=store.sealed)

    async def _open_doors(self, node: Node) -> None:
        settings, boundary = self.settings, self._boundary()
        server = grpc.aio.server(interceptors=(boundary,), options=_options(settings))
        inference = InferenceService(
            node.gate,
            node.models,
            clock=self._clock,
            limits=settings.limits,
            metrics=self.metrics,
            version=software_version(),
            ready=lambda: not node.store.sealed and not self._draining,
        )
        register(inference, server)
        licensing_pb2_grpc.add_LicensingServiceServicer_to_server(LicensingService(node, settings.limits), server)
        self.health.add_to(server)
        if settings.reflection:
            add_reflection(server)
        certificate = ServerCertificate(settings.directory)
        self.metrics.watch_certificate(lambda: certificate.ends_at_s)
        self.port = _bind(server, settings, certificate.credentials())
        await server.start()
        self._exits.push_async_callback(server.stop, settings.limits.close_grace_s)
        await self._open_admin(node, boundary)

    async def _open_admin(self, node: Node, boundary: Boundary) -> None:
        server = grpc.aio.server(interceptors=(boundary,), options=_options(self.settings))
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(node, version=software_version()), server)
        _bind_socket(server, self.admin_socket)
        await server.start()
        self._exits.callback(self.admin_socket.unlink, missing_ok=True)
        self._exits.push_async_callback(server.stop, ADMIN_CLOSE_S)

    def _boundary(self) -> Boundary:
        return Boundary(
            self.metrics,
            max_message_bytes=self.settings.limits.max_message_bytes,
            measured_elsewhere=MEASURED,
        )

    def _serve_metrics(self) -> None:
        server = MetricsServer(self.metrics.registry, host=self.settings.metrics_host, port=self.settings.metrics_port)
        self.metrics_port = server.port
        self._exits.push_async_callback(asyncio.to_thread, server.close)

    async def _announce(self, serving: bool) -> None:
        await self.health.show(serving=serving)


async def serve(settings: Settings, *, passphrase: Passphrase | None = None) -> None:
    """Run an appliance until SIGTERM or SIGINT, then drain it and return; a second signal ends the wait for the drain.

    While it is still starting, a signal ends the start: the model that is being loaded is finished, no other begun.

    Raises what `Appliance.__aenter__` raises. Core dumps are switched off for the process: it holds keys and weights.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    configure_logging(settings.log_level, settings.log_format)
    for name in unknown_environment():
        _log.warning("environment variable names no setting", name=name)
    loop = asyncio.get_running_loop()
    asked, again = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (again if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        appliance = Appliance(settings, passphrase=passphrase)
        async with contextlib.AsyncExitStack() as stack:
            # Loading large models takes minutes, and whoever stops the process in them means it.
            if await _unless(asked, stack.enter_async_context(appliance)):
                await asked.wait()
                _log.info("draining")
                await _unless(again, appliance.drain())
        _log.info("stopped")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _unless(told: asyncio.Event, work: Coroutine[Any, Any, object]) -> bool:
    """Do `work`, but cancel it once `told`; return whether it was done. Raises what it raises."""
    task, waiting = asyncio.ensure_future(work), asyncio.ensure_future(told.wait())
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        done = task.done()
        if not done:
            task.cancel()
        with contextlib.nullcontext() if done else contextlib.suppress(asyncio.CancelledError):
            await task
        return done
    finally:
        waiting.cancel()


def _options(settings: Settings) -> list[tuple[str, int]]:
    limits = settings.limits
    return [
        ("grpc.max_receive_message_length", limits.max_message_bytes + limits.message_headroom_bytes),
        ("grpc.max_send_message_length", limits.max_answer_bytes),
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
        ("grpc.max_concurrent_streams", limits.max_streams),
        # gRPC's own limit on pings is one in five minutes, too few to keep a stream alive through routers.
        ("grpc.http2.min_ping_interval_without_data_ms", int(limits.client_ping_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", int(limits.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(limits.keepalive_timeout_s * 1000)),
        ("grpc.so_reuseport", 0),
    ]


def _bind(server: grpc.aio.Server, settings: Settings, credentials: grpc.ServerCredentials) -> int:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_secure_port(f"{host}:{settings.port}", credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise Unavailable(
            f"the port {settings.port} cannot be bound",
            remedy="stop what listens there, or choose another with --listen",
        )
    return port


def _bind_socket(server: grpc.aio.Server, path: Path) -> None:
    """Bind the operator's socket with mode 0600 from its first moment."""
    umask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
        path.chmod(0o600)
    except (RuntimeError, OSError):
        raise Unavailable(
            "the operator's socket cannot be bound", remedy="a socket's path has at most 107 bytes; set admin_socket"
        ) from None
    finally:
        os.umask(umask)


@contextlib.contextmanager
def _exclusive(directory: Path, admin_socket: Path) -> Iterator[None]:
    """Hold the store's lock: two servers on one store would each count a licence's samples for themselves.

    The lock's file says where the operator's socket is, because the commands know the store's directory only.
    """
    if not (directory / DATABASE).is_file():
        raise NotFound("there is no key store here", reason="not-initialised", remedy="run: tessera keystore init")
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        remedy = "check that it belongs to whoever runs the server, and that its disk has room"
        raise Unavailable("the key store's directory cannot be written", remedy=remedy) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict("another server is running on this key store") from None
        with contextlib.suppress(OSError):  # a full disk: the commands then look in the usual place
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, os.fsencode(admin_socket.absolute()), 0)
        yield
    finally:
        os.close(descriptor)


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
