"""The one place where errors become statuses (rules W-7 to W-9).

`Boundary` is the outermost interceptor of both servers. It wraps all four kinds of call in either style (generator or
read/write), refuses what does not decode, and lets nothing out but the errors of `tessera.keystore.errors`: a
`TesseraError` by the table `STATUS`, anything else as INTERNAL "internal: internal error". The exception's text goes
nowhere, not even into the log, which gets its type and where it was raised.
"""

import inspect
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Protocol

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from tessera.keystore.errors import (
    ApiMisuse,
    Conflict,
    Denied,
    Exhausted,
    InvalidTensor,
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
from tessera.server.logs import frames

STATUS: Final[dict[type[TesseraError], grpc.StatusCode]] = {
    Malformed: grpc.StatusCode.INVALID_ARGUMENT,
    InvalidTensor: grpc.StatusCode.INVALID_ARGUMENT,
    Refused: grpc.StatusCode.PERMISSION_DENIED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Denied: grpc.StatusCode.PERMISSION_DENIED,
    Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Conflict: grpc.StatusCode.ALREADY_EXISTS,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Tampered: grpc.StatusCode.DATA_LOSS,
    WrongKey: grpc.StatusCode.FAILED_PRECONDITION,
    SealedError: grpc.StatusCode.UNAVAILABLE,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    ApiMisuse: grpc.StatusCode.INTERNAL,
}
"""Class of error → status (rule W-7); a test holds it complete over the tree."""

DOMAIN: Final = "tessera"
MAX_PUBLIC_CHARS: Final = 512
MAX_REQUEST_ID_CHARS: Final = 128
REQUEST_ID_KEY: Final = "x-request-id"

_INTERNAL: Final = TesseraError("internal error", reason="internal")
_log: Final = structlog.get_logger("tessera.boundary")

Metadata = tuple[tuple[str, str | bytes], ...]


class Observer(Protocol):
    """What counts calls and refusals; `tessera.server.metrics.Metrics` is one."""

    def request(self, rpc: str, code: str, seconds: float) -> None:
        """Count one finished call of a registered method."""
        ...

    def refusal(self, reason: str) -> None:
        """Count one refusal."""
        ...


def status_of(error: TesseraError) -> grpc.StatusCode:
    """Return the status of an error by its class, or by the nearest class above it that the table names."""
    for base in type(error).__mro__:
        if base in STATUS:
            return STATUS[base]
    return grpc.StatusCode.INTERNAL


def public_face(error: BaseException) -> TesseraError:
    """Return the error that a peer may see in place of `error`: itself, or one word for a fault of ours."""
    if isinstance(error, TesseraError) and status_of(error) is not grpc.StatusCode.INTERNAL:
        return error
    return _INTERNAL


def details_of(error: TesseraError) -> str:
    """Return the status message, `<reason>: <public sentence>`, of at most about 600 characters."""
    return f"{error.reason}: {error.public[:MAX_PUBLIC_CHARS]}"


def trailing_metadata(error: TesseraError, request_id: str) -> Metadata:
    """Return the machine-readable form of a refusal (rule W-9): reason, remedy, tensor, request id and rich status."""
    info = {"remedy": error.remedy} if error.remedy else {}
    pairs: list[tuple[str, str | bytes]] = [("tessera-reason", error.reason), (REQUEST_ID_KEY, request_id)]
    if error.remedy:
        pairs.append(("tessera-remedy", _ascii(error.remedy)))
    if isinstance(error, InvalidTensor):
        info["tensor"] = error.tensor[:MAX_PUBLIC_CHARS]
        pairs.append(("tessera-tensor", _ascii(error.tensor)))
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=info))
    status = status_pb2.Status(code=status_of(error).value[0], message=details_of(error), details=[detail])
    pairs.append(("grpc-status-details-bin", status.SerializeToString()))
    return tuple(pairs)


def bearer_token(context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
    """Return the token of `authorization: Bearer TOKEN`; None when there is none of that form."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            scheme, _, token = (value if isinstance(value, str) else value.decode("ascii", "replace")).partition(" ")
            return token.strip() if scheme.lower() == "bearer" else None
    return None


class Boundary(grpc.aio.ServerInterceptor):
    """Outermost interceptor: decode, call, count, and turn whatever is raised into a status.

    Messages of more than `max_message_bytes` are `Malformed` `message-too-large`, except for the methods of
    `measured_elsewhere`, whose handlers name the tensor that is too large.
    """

    def __init__(
        self, observer: Observer, *, max_message_bytes: int, measured_elsewhere: frozenset[str] = frozenset()
    ) -> None:
        self._observer = observer
        self._max_message_bytes = max_message_bytes
        self._measured_elsewhere = measured_elsewhere
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the wrapped handler of a registered method, or None, which gRPC answers with UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        kept = self._wrapped.get(method)
        if kept is None or kept[0] is not handler:
            kept = self._wrapped[method] = (handler, self._wrap(handler, method))
        return kept[1]

    def _wrap(self, handler: Any, method: str) -> Any:
        rpc = method.lstrip("/")
        cap = None if method in self._measured_elsewhere else self._max_message_bytes
        decode, encode = handler.request_deserializer, handler.response_serializer
        if handler.request_streaming:
            kind = "stream_stream" if handler.response_streaming else "stream_unary"
            decode = _strict(decode, cap)
        else:
            kind = "unary_stream" if handler.response_streaming else "unary_unary"
            decode = _deferred(decode, cap)
        behaviour = getattr(handler, kind)
        if handler.response_streaming and inspect.isasyncgenfunction(behaviour):
            wrapped: Callable[..., Any] = self._generator(behaviour, rpc)
        else:
            wrapped = self._coroutine(behaviour, rpc)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(wrapped, request_deserializer=decode, response_serializer=encode)

    def _coroutine(self, behaviour: Callable[..., Any], rpc: str) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> Any:
            async with _Call(self._observer, context, rpc):
                _refuse_undecodable(request)
                return await behaviour(request, context)

        return call

    def _generator(self, behaviour: Callable[..., Any], rpc: str) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            async with _Call(self._observer, context, rpc):
                _refuse_undecodable(request)
                async for response in behaviour(request, context):
                    yield response

        return call


class _Call:
    """One call from its first byte to its status; a class, because a generator would cost every call twice as much."""

    __slots__ = ("_context", "_observer", "_rpc", "_sent_id", "_started_s")

    def __init__(self, observer: Observer, context: Any, rpc: str) -> None:
        self._observer = observer
        self._context = context
        self._rpc = rpc
        self._sent_id: str | None = None
        self._started_s = 0.0

    async def __aenter__(self) -> None:
        self._started_s = time.perf_counter()
        self._sent_id = _sent_request_id(self._context)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            if self._sent_id is not None:
                kept = self._context.trailing_metadata() or ()
                self._context.set_trailing_metadata((*kept, (REQUEST_ID_KEY, self._sent_id)))
            self._count("OK")
            if structlog.is_configured():  # left as it comes, structlog prints debug events to the embedder's stdout
                _log.debug("answered", rpc=self._rpc, request_id=self._sent_id)
        elif isinstance(error, grpc.aio.AbortError):
            self._count(_code_name(self._context))
        elif isinstance(error, Exception):
            await self._refuse(error)
        else:  # cancelled: the caller has gone away, or the server is stopping
            self._count("CANCELLED")

    async def _refuse(self, error: Exception) -> None:
        shown = public_face(error)
        status = status_of(shown)
        request_id = self._sent_id or uuid.uuid4().hex
        self._observer.refusal(shown.reason)
        self._count(status.name)
        _report(error, shown, self._rpc, status.name, request_id)
        await self._context.abort(status, details_of(shown), trailing_metadata(shown, request_id))

    def _count(self, code: str) -> None:
        self._observer.request(self._rpc, code, time.perf_counter() - self._started_s)


class _Undecodable:
    """Stands for a request that could not be decoded; a decoder that raised would be answered by gRPC in its own
    words."""

    def __init__(self, error: Malformed) -> None:
        self.error = error


def _refuse_undecodable(request: object) -> None:
    if isinstance(request, _Undecodable):
        raise request.error


def _strict(decode: Callable[[bytes], Any], max_bytes: int | None) -> Callable[[bytes], Any]:
    """Return a decoder that raises `Malformed`; inside a stream that reaches the handler, and so this boundary."""

    def strict(raw: bytes) -> Any:
        if max_bytes is not None and len(raw) > max_bytes:
            raise Malformed(f"a message has at most {max_bytes} bytes", reason="message-too-large")
        try:
            return decode(raw)
        except Exception:  # noqa: BLE001 -- protobuf's own words stay here
            raise Malformed("the message cannot be decoded") from None

    return strict


def _deferred(decode: Callable[[bytes], Any], max_bytes: int | None) -> Callable[[bytes], Any]:
    strict = _strict(decode, max_bytes)

    def deferred(raw: bytes) -> Any:
        try:
            return strict(raw)
        except Malformed as error:
            return _Undecodable(error)

    return deferred


def _sent_request_id(context: Any) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY:
            good = isinstance(value, str) and 0 < len(value) <= MAX_REQUEST_ID_CHARS and value.isprintable()
            return value if good and value.isascii() else None
    return None


def _code_name(context: Any) -> str:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((known.name for known in grpc.StatusCode if known.value[0] == code), "UNKNOWN")


def _report(error: Exception, shown: TesseraError, rpc: str, code: str, request_id: str) -> None:
    if shown is not _INTERNAL:
        _log.info("refused", rpc=rpc, code=code, reason=shown.reason, request_id=request_id)
        return
    _log.error("internal error", rpc=rpc, request_id=request_id, error=type(error).__name__, where=frames(error))


def _ascii(text: str) -> str:
    """Return `text` fit for a metadata value: printable ASCII, bounded."""
    return "".join(char if " " <= char <= "~" else "?" for char in text[:MAX_PUBLIC_CHARS])
