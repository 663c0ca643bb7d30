"""What both clients are made of: checked settings, credentials, and a representation without secrets."""

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

from tessera.client import _plans
from tessera.client._channel import address
from tessera.client._credentials import Held, IdentitySource, InputKeySource, LicenceSource, PassphraseSource, load
from tessera.client._effects import NeedSession, Plan
from tessera.client._handshake import Clocks
from tessera.client._pipeline import MAX_STREAMS, OnError, Pipeline
from tessera.client._plans import Core
from tessera.client._retry import RetryPolicy
from tessera.client._session import Session
from tessera.client._types import DEFAULT_MAX_MESSAGE_BYTES, Answer, Inputs, WhoAmI
from tessera.client.errors import Cancelled, DeadlineExceeded
from tessera.keystore.errors import ApiMisuse

Receipts = Literal["verify", "off"]
CLOSE_TIMEOUT_S: Final = 2.0
DEFAULT_WINDOW: Final = 32


class StreamOptions(TypedDict, total=False):
    """How a stream is run."""

    window: int
    """Most requests on their way at a time; 32."""
    streams: int
    """Parallel gRPC streams, 1 to 64; more than one pays when frames are small and many. 1."""
    pack: int
    """Single samples joined into one request; answers are split again. The stream waits until it has as many. 1."""
    timeout_s: float | None
    """Longest wait for the answer to a frame that was sent; the client's `timeout_s`."""


class ClientSettings(ABC):
    """The constructor that `Client` and `AsyncClient` share.

    `target` is `host:port`. `identity` is an `Identity` or the path of its file; `licence` a path, a token, a
    `LicenceFile`, or several of them for several models. `root_certificates` (path or PEM bytes, normally the node's
    `ca.pem`) verifies the server, host name included; left out, gRPC's own roots do. `input_key` overrides the key in
    the grants. `passphrase` is called when a key file is locked. With `receipts="verify"` every answer comes with a
    checked receipt, or `ReceiptInvalid` is raised; with `"off"` none is asked for. `timeout_s` bounds each call,
    retries included; in a stream it bounds each answer. `retries` counts repetitions of what is safe to repeat;
    `retry` replaces the whole policy. `danger_plaintext` switches TLS off, towards this very machine only.
    `max_message_bytes` bounds what is sent and received in one message; batches are split so that they keep to it and
    to the server's limits.

    Raises the errors of `tessera.keystore` for files that do not open, and `ApiMisuse` for settings that make no sense.
    Nothing is sent before the first call.
    """

    def __init__(
        self,
        target: str,
        *,
        identity: IdentitySource,
        licence: LicenceSource | Sequence[LicenceSource],
        root_certificates: str | Path | bytes | None = None,
        input_key: InputKeySource | None = None,
        passphrase: PassphraseSource | None = None,
        receipts: Receipts = "verify",
        timeout_s: float = 30.0,
        retries: int = 3,
        retry: RetryPolicy | None = None,
        danger_plaintext: bool = False,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        if receipts not in ("verify", "off"):
            raise ApiMisuse("receipts is 'verify' or 'off'")
        self._timeout_s = _positive(timeout_s, "timeout_s")
        self._address = address(
            target, root_certificates, danger_plaintext=danger_plaintext, max_message_bytes=max_message_bytes
        )
        self._core = Core(
            credentials=load(identity, licence, input_key, passphrase),
            policy=retry or RetryPolicy(retries),
            clocks=Clocks(time.time, time.monotonic),
            chance=random.random,
            receipts=receipts == "verify",
            max_message_bytes=max_message_bytes,
        )
        self._connect()

    def __repr__(self) -> str:
        who = self._core.credentials.identity.public
        return f"<{type(self).__name__} of {who.name!r} ({who.key_id}) at {self._address.target!r}>"

    def whoami(self) -> WhoAmI:
        """Return the buyer that this client speaks for, and its licences as they state themselves; asks no server."""
        return self._core.credentials.whoami()

    @abstractmethod
    def _connect(self) -> None:
        """Make the channel, without connecting it; the subclass knows which kind."""

    def _held(self, model: str) -> Held:
        return self._core.credentials.for_model(model)

    def _deadline_s(self, timeout_s: float | None) -> float:
        return self._core.clocks.monotonic_s() + self._patience_s(timeout_s)

    def _patience_s(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else _positive(timeout_s, "timeout_s")

    def _infer_plan(self, model: str, x: Inputs, request_id: str | None, *, sole: bool) -> Plan[Answer]:
        return _plans.infer(self._core, self._held(model), x, request_id, sole=sole)

    def _stream_plan(self, model: str, on_error: OnError, options: StreamOptions, *, sole: bool) -> Plan[Pipeline]:
        """Open a session, and return the machine of a stream within it. Raises `ApiMisuse` for numbers out of range."""
        session: Session = yield NeedSession(self._held(model))
        if sole:
            _plans.check_sole_output(session)
        return Pipeline(
            self._core,
            session,
            window=options.get("window", DEFAULT_WINDOW),
            pack=options.get("pack", 1),
            on_error=on_error,
            timeout_s=self._patience_s(options.get("timeout_s")),
        )


def lanes_of(options: StreamOptions) -> int:
    """Return how many gRPC streams are wanted. Raises `ApiMisuse` unless it is 1 to 64."""
    streams = options.get("streams", 1)
    if not 1 <= streams <= MAX_STREAMS:
        raise ApiMisuse(f"streams is 1 to {MAX_STREAMS}")
    return streams


def closed() -> ApiMisuse:
    """Return the error of a call on a client that was closed."""
    return ApiMisuse("the client is closed", remedy="Make another one; it is meant to be kept for many calls.")


def interrupted() -> Cancelled:
    """Return the error of a call that was under way when the client was closed."""
    return Cancelled("the client was closed while the call was under way")


def too_late() -> DeadlineExceeded:
    """Return the error of a deadline that passed on this side."""
    return DeadlineExceeded("no answer came before the deadline", remedy="Give a longer timeout_s.")


def _positive(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ApiMisuse(f"{name} is a number of seconds above zero")
    return float(value)
