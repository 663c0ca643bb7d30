"""The client's end of gRPC: channels, methods by path, and what a failed call looks like to a plan."""

import asyncio
import ipaddress
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from tessera.client._refusals import RpcFailed
from tessera.keystore.errors import ApiMisuse, Malformed, NotFound

MAX_ROOTS_BYTES: Final = 4 * 1024 * 1024
KEEPALIVE_TIMEOUT_S: Final = 20
"""How long a connection may leave bytes unacknowledged before it counts as broken (TCP_USER_TIMEOUT), and another is
made. Without it a server that vanished without a word takes every call with it until the kernel gives up, a quarter of
an hour later."""
KEEPALIVE_EVERY_S: Final = 330
"""How long a stream is silent before it is asked whether it still is one; gRPC servers allow that every 300 s."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect and how to know the server. `roots` None: the system's; `plaintext`: no TLS at all."""

    target: str
    roots: bytes | None
    plaintext: bool
    max_message_bytes: int

    def sync_channel(self) -> grpc.Channel:
        """Return a new blocking channel; it connects when first used."""
        if self.plaintext:
            return grpc.insecure_channel(self.target, options=self._options())
        return grpc.secure_channel(self.target, grpc.ssl_channel_credentials(self.roots), options=self._options())

    def aio_channel(self) -> grpc.aio.Channel:
        """Return a new asyncio channel of the running loop; it connects when first used."""
        if self.plaintext:
            return grpc.aio.insecure_channel(self.target, options=self._options())
        return grpc.aio.secure_channel(self.target, grpc.ssl_channel_credentials(self.roots), options=self._options())

    def _options(self) -> list[tuple[str, Any]]:
        # What is for this very machine does not go to the proxy of the environment, which gRPC would ask for loopback
        # addresses too: it could not reach them, and without TLS it would read everything.
        local = [("grpc.enable_http_proxy", 0)] if _is_loopback(self.target) else []
        # Retries are ours, with the request id; two layers of them would multiply. And the channel must be ready to
        # connect again when a retry comes: by default it sits out up to two minutes after a failure.
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.keepalive_time_ms", KEEPALIVE_EVERY_S * 1000),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
            *local,
        ]


def address(
    target: str, root_certificates: str | Path | bytes | None, *, danger_plaintext: bool, max_message_bytes: int
) -> Address:
    """Return the checked address. Raises `ApiMisuse`; `NotFound` or `Malformed` for the file of certificates."""
    if not target or re.match(r"(?:https?|grpcs?)://", target, re.IGNORECASE):
        raise ApiMisuse(f"the address {target!r:.80} is not host:port", remedy="Give host:port, such as node:8001.")
    if not danger_plaintext:
        return Address(target, _roots(root_certificates), False, max_message_bytes)
    if root_certificates is not None:
        raise ApiMisuse("root_certificates and danger_plaintext exclude each other")
    if not _is_loopback(target):
        raise ApiMisuse(
            "danger_plaintext reaches this very machine only: without TLS anybody on the way reads the session token",
            remedy="Use TLS with the node's ca.pem as root_certificates.",
        )
    return Address(target, None, True, max_message_bytes)


def _roots(given: str | Path | bytes | None) -> bytes | None:
    if given is None:
        return None
    if not isinstance(given, bytes):
        try:
            with Path(given).open("rb") as file:
                given = file.read(MAX_ROOTS_BYTES + 1)
        except OSError:
            raise NotFound(
                "the file of root certificates cannot be read", remedy="Ask the operator for the node's ca.pem."
            ) from None
    if len(given) > MAX_ROOTS_BYTES or not _holds_certificates(given):
        raise Malformed("root_certificates holds no certificate in PEM form", remedy="Give the node's ca.pem.")
    return given


def _holds_certificates(pem: bytes) -> bool:
    """Whether there are PEM certificates in `pem`, and all of them can be read; gRPC would try to connect for ever."""
    blocks = re.findall(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pem, re.DOTALL)
    try:
        ders = b"".join(ssl.PEM_cert_to_DER_cert(block.decode("ascii")) for block in blocks)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=ders)
    except (ValueError, ssl.SSLError):  # broken base64, no ASCII, or no certificate inside
        return False
    return bool(blocks)


def _is_loopback(target: str) -> bool:
    if target.startswith("unix:"):
        return True
    host = target.rpartition(":")[0].removeprefix("ipv4:").removeprefix("ipv6:").strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def failure(error: grpc.RpcError) -> RpcFailed:
    """Return what a plan is told of a failed call, sync or aio: both kinds of error are also the call."""
    call: Any = error
    code = call.code() if hasattr(call, "code") else None
    status = code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
    return RpcFailed(status, str(call.details() or ""), metadata(call.trailing_metadata()))


def being_cancelled() -> bool:
    """Whether somebody cancels the running task. If not, a `CancelledError` is how grpc.aio ends calls of a channel
    that is closed, and must not pass for the caller's own cancellation."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def channel_closed() -> RpcFailed:
    """Return what a plan is told of a call that was under way when the client was closed."""
    return RpcFailed("CANCELLED", "the client was closed while the call was under way")


def metadata(pairs: Iterable[tuple[str, str | bytes]] | None) -> Mapping[str, str]:
    """Return the textual pairs of some metadata by key."""
    return {key: value for key, value in pairs or () if isinstance(value, str)}
