"""What a plan may ask of its driver. Plans are generators without I/O; the sync and asyncio drivers run the same ones.

A plan yields one of these, and is sent the answer, or has `RpcFailed` or a `TesseraError` thrown into it:

    Rpc           → Reply           one unary call
    Pause         → None            wait
    NeedSession   → Session         an open session of that slot; `stale` is the one that the server refused
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from tessera.client._credentials import Held
from tessera.client._session import Session
from tessera.client.errors import ClientError
from tessera.keystore.secrets import SecretBytes
from tessera.oip.v1 import PUBLIC_SERVICE
from tessera.oip.v1 import inference_pb2 as oip
from tessera.v1 import licensing_pb2 as pb

_LICENSING = "tessera.v1.LicensingService"


@dataclass(frozen=True, slots=True)
class Method:
    """A gRPC method: its path and the message it answers with."""

    path: str
    answer: type[Message]


CREATE_CHALLENGE: Final = Method(f"/{_LICENSING}/CreateChallenge", pb.CreateChallengeResponse)
FETCH_GRANT: Final = Method(f"/{_LICENSING}/FetchGrant", pb.FetchGrantResponse)
OPEN_SESSION: Final = Method(f"/{_LICENSING}/OpenSession", pb.OpenSessionResponse)
RENEW_SESSION: Final = Method(f"/{_LICENSING}/RenewSession", pb.RenewSessionResponse)
CLOSE_SESSION: Final = Method(f"/{_LICENSING}/CloseSession", pb.CloseSessionResponse)
USAGE: Final = Method(f"/{_LICENSING}/GetUsage", pb.GetUsageResponse)
MODEL_INFER: Final = Method(f"/{PUBLIC_SERVICE}/ModelInfer", oip.ModelInferResponse)
MODEL_STREAM_INFER: Final = Method(f"/{PUBLIC_SERVICE}/ModelStreamInfer", oip.ModelStreamInferResponse)
UNARY: Final = (CREATE_CHALLENGE, FETCH_GRANT, OPEN_SESSION, RENEW_SESSION, CLOSE_SESSION, USAGE, MODEL_INFER)


@dataclass(frozen=True, slots=True)
class Rpc:
    """Make one unary call, as the session of `token` when there is one; `receipt` asks for a signed receipt."""

    method: Method
    message: Message
    token: SecretBytes | None = None
    receipt: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of a call and its trailing metadata."""

    message: Any
    trailing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait before the next attempt; when the deadline does not allow it, `because` is thrown in."""

    seconds: float
    because: ClientError


@dataclass(frozen=True, slots=True)
class NeedSession:
    """Give a session under `held`'s licence that is open, and is not `stale`."""

    held: Held
    stale: Session | None = None


Effect = Rpc | Pause | NeedSession
T = TypeVar("T")
Plan = Generator[Effect, Any, T]
"""A generator that yields effects and returns a T."""


def call_metadata(token: SecretBytes | None, *, receipt: bool) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call: the bearer token, and the wish for a receipt."""
    bearer = () if token is None else (("authorization", f"Bearer {token.reveal().decode('ascii')}"),)
    return bearer + ((("tessera-receipt", "1"),) if receipt else ())
