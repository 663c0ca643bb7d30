"""The same server with licensing and metering taken out, for this measurement only.

    python -m benchmarks.appliance.open_server FOLDER LICENCE_ID     prints its port, runs until stdin closes

Same gRPC server, TLS, boundary, tensors, batcher, engine; the gate admits everybody, the ledger forgets everything, no
receipts. There is no such switch in the product.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc

from benchmarks.appliance.market import PASSPHRASE
from tessera.keystore import grant as grants
from tessera.keystore.store import Store
from tessera.keystore.usage import UsageDraft, UsageRecord
from tessera.server.admission import Gate
from tessera.server.boundary import Boundary
from tessera.server.clock import SystemClock
from tessera.server.config import Limits
from tessera.server.engine import Executor, ModelDirectory, load_variant
from tessera.server.logs import configure_logging
from tessera.server.metering import Meter
from tessera.server.metrics import Metrics
from tessera.server.services import inference

NOWHERE = "0" * 64


class OpenPermit:
    """Settles nothing."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.tier = 1

    def charge(self) -> None:
        """Charge nobody."""

    def release(self) -> None:
        """Release nothing."""


class OpenGate:
    """Admits everybody to one session that is always there."""

    draining = False
    outstanding = 0

    def __init__(self, package_id: str, model: str) -> None:
        licence = SimpleNamespace(licence_id=NOWHERE[:32], buyer_id=NOWHERE[:43])
        self._permit = OpenPermit(
            SimpleNamespace(
                session_id="0" * 16, licence=licence, model=model, version=1, package_id=package_id, tier=1, notice=""
            )
        )

    def session(self, _token: str | None) -> Any:
        """Return the one session."""
        return self._permit.session

    def admit(
        self, _token: str | None, _model: str, _version: str, _samples: int, _request_id: str, *, tier: int | None
    ) -> OpenPermit:
        """Return the one permit."""
        del tier
        return self._permit


def forget(drafts: Sequence[UsageDraft]) -> list[Any]:
    """Pretend to have recorded `drafts`."""
    return [SimpleNamespace(record=_RECORD, fresh=True, conflict=False) for _ in drafts]


_RECORD = UsageRecord(
    sequence=1, time_us=0, licence_id=NOWHERE[:32], buyer_id=NOWHERE[:43], package_id=NOWHERE[:32], model="m",
    version=1, tier=1, samples=1, bytes_in=1, compute_us=1, request_id="r", payload_digest=NOWHERE,
    session_id=NOWHERE[:16], previous=NOWHERE,
)  # fmt: skip


async def serve(folder: Path) -> None:
    """Serve until standard input closes."""
    store = Store.open(folder / "node")
    store.unseal(PASSPHRASE)
    (package,) = store.packages()
    (installed,) = store.licences()
    content_key = grants.open_for_node(installed.grants[0], store.node_identity()).content_key
    metrics, limits, clock = Metrics(version="bench"), Limits(), SystemClock()
    executor = Executor("cpu")
    meter = Meter(forget, lambda _: "", metrics=metrics)
    models = ModelDirectory(
        packages=store.packages, issuers=store.issuers, content_key=lambda _: content_key,
        executor=executor, meter=meter, limits=limits, metrics=metrics, clock=clock,
        loader=partial(load_variant, arithmetic="fast"),
    )  # fmt: skip
    await models.ensure_loaded(package.package_id)
    gate = cast(Gate, OpenGate(package.package_id, package.model))
    service = inference.InferenceService(
        gate, models, clock=clock, limits=limits, metrics=metrics, version="bench", ready=lambda: True
    )
    boundary = Boundary(metrics, max_message_bytes=limits.max_message_bytes, measured_elsewhere=inference.MEASURED)
    server = grpc.aio.server(interceptors=[boundary])
    inference.register(service, server)
    tls = folder / "node" / "tls"
    credentials = grpc.ssl_server_credentials([((tls / "server.key").read_bytes(), (tls / "server.pem").read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(1.0)
    await models.drain()
    await asyncio.to_thread(executor.close)
    await asyncio.to_thread(meter.close)
    store.close()
    await asyncio.sleep(0)


def main() -> None:
    """Run under uvloop like the product."""
    import uvloop

    configure_logging("warning", "json")
    started_s = time.monotonic()
    uvloop.run(serve(Path(sys.argv[1])))
    print(f"open server ran {time.monotonic() - started_s:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
