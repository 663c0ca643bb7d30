"""The buyer's client: call licensed models; the input key never leaves this process.

    from tessera.client import Client

    with Client("node:8001", identity="me.key", licence="digits.licence", root_certificates="ca.pem") as client:
        scores = client.infer("digits", image)                   # uint8 (C, H, W), or (N, C, H, W)
        for scores in client.stream("digits", frames, streams=4):
            ...

`AsyncClient` has the same methods for asyncio. What calls raise is drawn in `tessera.client.errors`. Needs NumPy,
PyNaCl, grpcio and protobuf; no torch. What is not in `__all__` may change without notice.
"""

from tessera.client import errors
from tessera.client._aio import AsyncClient
from tessera.client._retry import RetryPolicy
from tessera.client._settings import ClientSettings, StreamOptions
from tessera.client._sync import Client
from tessera.client._types import (
    Answer,
    LicenceInfo,
    ModelContract,
    SessionInfo,
    TensorContract,
    Usage,
    WhoAmI,
)
from tessera.client._version import __version__
from tessera.client.errors import (
    Cancelled,
    ClientError,
    DeadlineExceeded,
    GrantInvalid,
    InvalidRequest,
    InvalidTensor,
    LicenceError,
    LicenceExpired,
    LicenceInvalid,
    LicenceMissing,
    LicenceNotYetValid,
    LicenceOtherNode,
    LicenceRevoked,
    LicenceUnknown,
    LimitReached,
    MessageTooLarge,
    ModelError,
    ModelNotReady,
    ModelUnknown,
    NotYourLicence,
    PermissionRefused,
    ProofRefused,
    ProtocolError,
    QuotaExhausted,
    RateLimited,
    ReceiptInvalid,
    RequestConflict,
    SeatsFull,
    ServerBusy,
    ServerFault,
    ServerUnavailable,
    ServerUnverified,
    SessionError,
    SessionExpired,
    SessionMissing,
    SessionUnknown,
    TierUnavailable,
    Unreachable,
    WrongInputKey,
)

__all__ = [
    "Answer",
    "AsyncClient",
    "Cancelled",
    "Client",
    "ClientError",
    "ClientSettings",
    "DeadlineExceeded",
    "GrantInvalid",
    "InvalidRequest",
    "InvalidTensor",
    "LicenceError",
    "LicenceExpired",
    "LicenceInfo",
    "LicenceInvalid",
    "LicenceMissing",
    "LicenceNotYetValid",
    "LicenceOtherNode",
    "LicenceRevoked",
    "LicenceUnknown",
    "LimitReached",
    "MessageTooLarge",
    "ModelContract",
    "ModelError",
    "ModelNotReady",
    "ModelUnknown",
    "NotYourLicence",
    "PermissionRefused",
    "ProofRefused",
    "ProtocolError",
    "QuotaExhausted",
    "RateLimited",
    "ReceiptInvalid",
    "RequestConflict",
    "RetryPolicy",
    "SeatsFull",
    "ServerBusy",
    "ServerFault",
    "ServerUnavailable",
    "ServerUnverified",
    "SessionError",
    "SessionExpired",
    "SessionInfo",
    "SessionMissing",
    "SessionUnknown",
    "StreamOptions",
    "TensorContract",
    "TierUnavailable",
    "Unreachable",
    "Usage",
    "WhoAmI",
    "WrongInputKey",
    "__version__",
    "errors",
]
