"""The inference half of an appliance in one process: real gate, engine, meter and gRPC server; the ledger is in memory.

async with rig(seal(tmp_path)) as node:
    token = node.open_session()
    …node.target…
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc

from support import keys
from support.ledger import MemoryLedger
from support.models import Sealed
from tessera.keystore import grant as grants
from tessera.keystore import proof as proofs
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.identity import Identity
from tessera.keystore.licence import Terms
from tessera.keystore.usage import UsageRecord, sign_receipt
from tessera.server.admission import Gate, Session
from tessera.server.boundary import Boundary
from tessera.server.clock import Clock, SystemClock
from tessera.server.config import Limits
from tessera.server.engine import Executor, ModelDirectory
from tessera.server.metering import Meter
from tessera.server.metrics import Metrics
from tessera.server.services import inference


class FixedClock:
    """Wall time near the licences of `support.keys`; monotonic time as the test sets it."""

    def __init__(self) -> None:
        self.wall_s = float(keys.NOW_S)
        self.steady_s = 1000.0

    def now_s(self) -> float:
        """The wall time."""
        return self.wall_s

    def monotonic_s(self) -> float:
        """The monotonic time."""
        return self.steady_s


class LicenceClock(SystemClock):
    """The machine's monotonic clock; wall time near the licences of `support.keys`."""

    def now_s(self) -> float:
        """A moment at which they are valid."""
        return float(keys.NOW_S)


class Rig:
    """Everything between the wire and the ledger. Made in a running event loop."""

    def __init__(
        self,
        packages: Sequence[Sealed],
        *,
        limits: Limits | None = None,
        clock: Clock | None = None,
        threads: int = 1,
    ) -> None:
        self.packages = list(packages)
        self.limits = limits or Limits()
        self.clock = clock or LicenceClock()
        self.metrics = Metrics(version="test")
        self.ledger = MemoryLedger(keys.NODE.key_id)
        self.executor = Executor("cpu", threads=threads)
        self.meter = Meter(self.ledger.append_usage, self._sign, metrics=self.metrics)
        self.models = ModelDirectory(
            packages=lambda: self.packages,
            issuers=lambda: keys.ISSUERS,
            content_key=lambda _: keys.CONTENT_KEY,
            executor=self.executor,
            meter=self.meter,
            limits=self.limits,
            metrics=self.metrics,
            clock=self.clock,
        )
        self.gate = Gate(
            self.clock,
            self.limits,
            node_id=keys.NODE.key_id,
            issuers=lambda: keys.ISSUERS,
            models=self.models,
            ledger=self.ledger,
            revoked=dict,
            open_grant=lambda grant: grants.open_for_node(grant, keys.NODE),
            installed=lambda _: (),
        )
        self.service = inference.InferenceService(
            self.gate,
            self.models,
            clock=self.clock,
            limits=self.limits,
            metrics=self.metrics,
            version="test",
            ready=lambda: not self.gate.draining,
        )
        self.server: grpc.aio.Server | None = None
        self.target = ""

    def session(self, terms: Terms | None = None, *, buyer: Identity = keys.BUYER, package: int = 0) -> Session:
        """Open a session of `buyer` for one of the packages (plain inputs)."""
        manifest = self.packages[package].manifest
        licence = keys.licence(terms or Terms(manifest.model), buyer=buyer)
        secrets = PackageSecrets(manifest.package_id, keys.CONTENT_KEY, None)
        grant = keys.grant(licence, secrets=secrets, buyer=buyer)
        nonce, _ = self.gate.challenge()
        signature = proofs.sign_proof(buyer, "open-session", nonce, keys.NODE.key_id, licence.digest)
        return self.gate.open_session(licence.token, grant.token, nonce, buyer.public.verify_key, signature, b"")

    def open_session(self, terms: Terms | None = None, *, package: int = 0) -> str:
        """Open a session and return its bearer token."""
        return self.session(terms, package=package).token.reveal().decode()

    def headers(self, terms: Terms | None = None, *, package: int = 0) -> dict[str, str]:
        """Return the metadata of a fresh session."""
        return {"authorization": "Bearer " + self.open_session(terms, package=package)}

    async def serve(self) -> None:
        """Start the real server on a free port of the loopback."""
        boundary = Boundary(
            self.metrics, max_message_bytes=self.limits.max_message_bytes, measured_elsewhere=inference.MEASURED
        )
        cap = self.limits.max_message_bytes + self.limits.message_headroom_bytes
        self.server = grpc.aio.server(
            interceptors=[boundary],
            options=[
                ("grpc.max_receive_message_length", cap),
                ("grpc.max_send_message_length", self.limits.max_answer_bytes),
            ],
        )
        inference.register(self.service, self.server)
        self.target = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()

    async def close(self) -> None:
        """Stop everything in the order of the appliance."""
        self.ledger.gate.set()
        if self.server is not None:
            await self.server.stop(1.0)
        await self.models.drain()
        await asyncio.to_thread(self.executor.close)
        await asyncio.to_thread(self.meter.close)

    def _sign(self, record: UsageRecord) -> str:
        return sign_receipt(record, keys.NODE)


@asynccontextmanager
async def rig(
    *packages: Sealed, limits: Limits | None = None, clock: Clock | None = None, serve: bool = True, threads: int = 1
) -> AsyncIterator[Rig]:
    """Load every package, serve when asked, and close everything at the end."""
    node = Rig(packages, limits=limits, clock=clock, threads=threads)
    try:
        for package in packages:
            await node.models.ensure_loaded(package.manifest.package_id)
        if serve:
            await node.serve()
        yield node
    finally:
        await node.close()
