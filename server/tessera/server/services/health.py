"""`grpc.health.v1`: SERVING while the store is unsealed and the server is not draining (rule W-30).

The well-kept servicer of grpcio-health-checking does the work; this only says what there is to watch and when it
changes. Health is answered without a session, sealed or not: a probe has no licence.
"""

from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tessera.oip.v1 import PUBLIC_SERVICE

LICENSING_SERVICE: Final = "tessera.v1.LicensingService"
SERVICES: Final = ("", PUBLIC_SERVICE, LICENSING_SERVICE)
"""Names that can be asked for; the empty one is the whole server."""


class Health:
    """The state that probes see. `drain` is final."""

    def __init__(self) -> None:
        self._servicer = health.aio.HealthServicer()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def show(self, *, serving: bool) -> None:
        """Set every service to SERVING or NOT_SERVING; without effect after `drain`."""
        known = health_pb2.HealthCheckResponse
        for service in SERVICES:
            await self._servicer.set(service, known.SERVING if serving else known.NOT_SERVING)

    async def drain(self) -> None:
        """Show NOT_SERVING from now on, whatever happens."""
        await self._servicer.enter_graceful_shutdown()
