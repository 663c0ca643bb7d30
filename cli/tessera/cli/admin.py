"""The operator's link to a running server: gRPC over the Unix socket in the key store's folder."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.keystore.errors import (
    Conflict,
    Denied,
    Exhausted,
    Malformed,
    NotFound,
    Refused,
    SealedError,
    Tampered,
    TesseraError,
    Unauthenticated,
    Unavailable,
    WrongKey,
)

if TYPE_CHECKING:
    import grpc

    from tessera.cli.wire import Service

SOCKET_NAME = "admin.sock"
LOCK_NAME = "serve.lock"
"""The file in which a server says where its socket is, if the operator's settings put it elsewhere."""
MAX_PATH_BYTES = 4096
SERVICE = "tessera.v1.AdminService"
TIMEOUT_S = 120.0
"""For one administrative call; loading a large model is the longest."""

_CLASS_OF_STATUS: dict[str, type[TesseraError]] = {
    "INVALID_ARGUMENT": Malformed,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": Denied,
    "RESOURCE_EXHAUSTED": Exhausted,
    "ALREADY_EXISTS": Conflict,
    "NOT_FOUND": NotFound,
    "DATA_LOSS": Tampered,
    "FAILED_PRECONDITION": WrongKey,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": Unavailable,
}


def socket_path(keystore: Path) -> Path:
    """Return where the server on this key store listens for its operator, or listened last."""
    try:
        with (keystore / LOCK_NAME).open("rb") as file:
            told = file.read(MAX_PATH_BYTES)
    except OSError:
        told = b""
    path = Path(os.fsdecode(told))
    return path if path.is_absolute() and b"\0" not in told else (keystore / SOCKET_NAME).absolute()


def server_is_running(keystore: Path) -> bool:
    """Tell whether a server answers on the key store's socket; a socket left by a killed server does not count."""
    path = socket_path(keystore)
    if not path.exists():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def demand_no_server(keystore: Path) -> None:
    """Raise `Unavailable` while a server runs on the key store: it would go on with the old keys."""
    if server_is_running(keystore):
        raise Unavailable(f"a server is running on {keystore}", remedy="stop it, run this again, then start it")


def demand_server(keystore: Path) -> None:
    """Raise `Unavailable` when no server runs on the key store."""
    if not server_is_running(keystore):
        raise Unavailable(f"no server is running on {keystore}", remedy=f"start one: tessera serve {keystore}")


@contextmanager
def link(keystore: Path) -> Iterator["Service"]:
    """Yield the link to the server on this key store; what the server refuses is raised as the error it names."""
    import grpc

    from tessera.cli.wire import Service

    target = f"unix:{socket_path(keystore)}"
    with grpc.insecure_channel(target, options=(("grpc.default_authority", "localhost"),)) as channel:
        try:
            yield Service(channel, SERVICE, timeout_s=TIMEOUT_S)
        except grpc.RpcError as error:
            raise refusal(error) from None


def refusal(error: "grpc.RpcError") -> TesseraError:
    """Return what a failed call means: by its status, and by `tessera-reason` and `tessera-remedy` in its trailer."""
    call: Any = error
    trailing = {key: value for key, value in call.trailing_metadata() or () if isinstance(value, str)}
    reason = trailing.get("tessera-reason")
    kind = SealedError if reason == "store-sealed" else _CLASS_OF_STATUS.get(call.code().name, Refused)
    details = call.details() or call.code().name
    public = details.removeprefix(f"{reason}: ") if reason else details
    return kind(public, reason=reason, remedy=trailing.get("tessera-remedy", ""))
