"""`tessera health`: the probe that containers and scripts use; asks `grpc.health.v1` over TLS."""

import re
from pathlib import Path
from typing import Annotated

import typer

from tessera.cli import console
from tessera.cli.loading import certificates
from tessera.cli.options import JsonFlag, parse_address
from tessera.keystore.errors import Unavailable

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_UNVERIFIED = re.compile(r"CERTIFICATE_VERIFY_FAILED|Hostname Verification Check")


def health(
    server: Annotated[
        str, typer.Option("--server", envvar="TESSERA_SERVER", metavar="HOST:PORT", help="Where the server listens.")
    ] = "localhost:8001",
    ca: Annotated[
        Path | None,
        typer.Option(envvar="TESSERA_CA", metavar="FILE", help="CA certificate (ca.pem); none: the system's roots."),
    ] = None,
    service: Annotated[str, typer.Option(help="gRPC service to ask about; empty: the server as a whole.")] = "",
    plaintext: Annotated[bool, typer.Option("--insecure-plaintext", help="Speak without TLS.")] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="Seconds to wait for the answer.")
    ] = 5.0,
    as_json: JsonFlag = False,
) -> None:
    """Ask a server whether it serves; exit status 0 only when it does."""
    parse_address(server, "--server")
    if ca is not None:
        certificates(ca)
    status = ask(server, ca=ca, service=service, plaintext=plaintext, timeout_s=timeout_s)
    document = {"server": server, "service": service, "status": status, "serving": status == "SERVING"}
    if status != "SERVING":
        raise Unavailable(f"{server} answers {status}", remedy="unseal its key store, or wait until it has started")
    console.emit(document, as_json=as_json, show=lambda: [f"{server}: {status}"])


def ask(server: str, *, ca: Path | None, service: str = "", plaintext: bool = False, timeout_s: float = 5.0) -> str:
    """Return the serving status, such as `SERVING`. Raises `Unavailable` (`unreachable`) when nobody answers."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    # The probe inside a container asks its own server: a proxy in the environment could only say no.
    options = [("grpc.enable_http_proxy", 0)] if server.rpartition(":")[0] in LOOPBACK else []
    channel = (
        grpc.insecure_channel(server, options)
        if plaintext
        else grpc.secure_channel(
            server, grpc.ssl_channel_credentials(ca.read_bytes() if ca is not None else None), options
        )
    )
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout_s
            )
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and _UNVERIFIED.search(error.details() or ""):
                raise Unavailable(
                    f"{server} answers, and its certificate does not prove that it is the server you asked for",
                    reason="server-unverified",
                    remedy="give --ca the ca.pem of this very node, and an address that its certificate names",
                ) from None
            code = error.code().name if isinstance(error, grpc.Call) else "no answer"
            raise Unavailable(
                f"{server} cannot be reached ({code})",
                reason="unreachable",
                remedy="check the address, the CA certificate and that the server runs",
            ) from None
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
