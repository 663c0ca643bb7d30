"""The Open Inference Protocol with Triton's stream, for callers who hold a session (rules W-40 to W-65).

Order for one request: session → model and version → tensors against the contract → admission → batcher. A request
refused on the way has reserved nothing. The handlers of ModelInfer and ModelStreamInfer take raw bytes, so that a
message that is too large or no message at all is answered in our words and, in a stream, costs only its own item.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, NamedTuple

import grpc
import structlog

from tessera.keystore.errors import NotFound, TesseraError
from tessera.oip.v1 import PUBLIC_SERVICE
from tessera.oip.v1 import inference_pb2 as pb
from tessera.oip.v1 import inference_pb2_grpc as pb_grpc
from tessera.server.admission import Gate, Session
from tessera.server.boundary import bearer_token
from tessera.server.clock import Clock
from tessera.server.config import Limits
from tessera.server.engine.batcher import Answer, Batcher, Job
from tessera.server.engine.models import ModelDirectory
from tessera.server.logs import frames
from tessera.server.metrics import Metrics
from tessera.server.services import convert, describe, sizes
from tessera.server.services.convert import Signature

SERVICE: Final = PUBLIC_SERVICE
MEASURED: Final = frozenset({f"/{SERVICE}/ModelInfer", f"/{SERVICE}/ModelStreamInfer"})
"""Methods that check the size of their messages themselves, to name the tensor; for the boundary."""

SERVER_NAME: Final = "tessera"

Context = grpc.aio.ServicerContext[Any, Any]
_log: Final = structlog.get_logger("tessera.inference")


class Caller(NamedTuple):
    """What the metadata of a call says."""

    token: str | None
    receipt: bool
    """Whether a receipt is asked for with every answer."""
    close_on_error: bool
    """Triton's `triton_grpc_error`: a refused item ends the stream with its status."""


class _Call(NamedTuple):
    """One request on its way: queued, with what its answer needs."""

    batcher: Batcher
    job: Job
    signature: Signature
    wanted: tuple[str, ...]


class _Item(NamedTuple):
    """One item of a stream, in the order of the requests: a call and its future, or the error that it met."""

    request_id: str
    call: _Call | None
    future: "asyncio.Future[Answer] | None"
    error: Exception | None


class InferenceService(pb_grpc.GRPCInferenceServiceServicer):
    """Every RPC of the inference service. `ready` tells whether the node is unsealed and not draining."""

    def __init__(
        self,
        gate: Gate,
        models: ModelDirectory,
        *,
        clock: Clock,
        limits: Limits,
        metrics: Metrics,
        version: str,
        ready: Callable[[], bool],
    ) -> None:
        self._gate = gate
        self._models = models
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._version = version
        self._ready = ready
        self._signatures: dict[str, Signature] = {}

    # -- inference -------------------------------------------------------------------------------------------------

    async def infer_raw(self, raw: bytes, context: Context) -> pb.ModelInferResponse:
        """Answer a serialised ModelInferRequest. Raises `TesseraError`, which the boundary turns into a status."""
        caller = _caller(context)
        self._gate.session(caller.token)
        started_s = time.perf_counter()
        request = convert.parse_infer(raw, self._limits)
        return await self._infer(request, caller, context, started_s)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:  # noqa: N802
        """Answer one request (rules W-40 to W-53). Raises `TesseraError`."""
        return await self._infer(request, _caller(context), context, time.perf_counter())

    async def _infer(
        self, request: pb.ModelInferRequest, caller: Caller, context: Context, started_s: float
    ) -> pb.ModelInferResponse:
        call = await self._begin(request, caller, self._deadline_s(context), started_s)
        try:
            answer = await call.job.future  # `_begin` has queued it; `submit` would queue it a second time
        except asyncio.CancelledError:
            call.batcher.withdraw(call.job)
            raise
        response = self._respond(call, answer)
        if answer.receipt is not None:
            context.set_trailing_metadata((("tessera-receipt", answer.receipt),))
        return response

    def ModelStreamInfer(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer a stream of decoded requests; see `stream_raw`, which the wire uses."""

        async def serialised() -> AsyncIterator[bytes]:
            async for request in request_iterator:
                yield request.SerializeToString()

        return self.stream_raw(serialised(), context)

    async def stream_raw(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer a stream of serialised requests in their order, up to a window of them in flight (rules W-60 to W-64).

        Raises `Unauthenticated` when the stream begins without a session; later errors are items of their own, unless
        the caller asked for `triton_grpc_error`.
        """
        caller = _caller(context)
        self._gate.session(caller.token)
        items: asyncio.Queue[_Item | None] = asyncio.Queue(self._limits.max_stream_window)
        reader = asyncio.create_task(self._read(requests, caller, self._deadline_s(context), items))
        item: _Item | None = None
        try:
            while (item := await items.get()) is not None:
                yield await self._finish(item, caller)
            await reader
        finally:
            reader.cancel()
            _withdraw(item)
            while not items.empty():
                _withdraw(items.get_nowait())

    async def _read(
        self,
        requests: AsyncIterator[bytes],
        caller: Caller,
        deadline_s: float | None,
        items: "asyncio.Queue[_Item | None]",
    ) -> None:
        """Queue each request as soon as it is read; the bounded queue of items is what holds a fast sender back."""
        item: _Item | None = None
        try:
            async for raw in requests:
                item = await self._begin_item(raw, caller, deadline_s)
                await items.put(item)
                item = None
        finally:
            _withdraw(item)  # cancelled between queueing the job and handing it on
        await items.put(None)

    async def _begin_item(self, raw: bytes, caller: Caller, deadline_s: float | None) -> _Item:
        started_s = time.perf_counter()
        request_id = ""
        try:
            request = convert.parse_infer(raw, self._limits)
            request_id = convert.shown(request.id)
            call = await self._begin(request, caller, deadline_s, started_s)
        except Exception as error:  # noqa: BLE001 -- the boundary of one item; `_refused` shows nothing of it
            return _Item(request_id, None, None, error)
        return _Item(call.job.request_id, call, call.job.future, None)

    async def _finish(self, item: _Item, caller: Caller) -> pb.ModelStreamInferResponse:
        error = item.error
        if item.call is not None and item.future is not None:
            try:
                answer = await item.future
                return convert.stream_answer(self._respond(item.call, answer), answer.receipt)
            except Exception as failure:  # noqa: BLE001 -- the boundary of one item
                error = failure
        if error is None:
            error = TesseraError("internal error")
        if caller.close_on_error:
            raise error
        return self._refused(error, item.request_id)

    def _refused(self, error: Exception, request_id: str) -> pb.ModelStreamInferResponse:
        reason = convert.reason_of(error)
        self._metrics.refusal(reason)
        if reason == "internal":
            _log.error(
                "internal error in a stream", error=type(error).__name__, request_id=request_id, where=frames(error)
            )
        return convert.stream_error(error, request_id)

    async def _begin(
        self, request: pb.ModelInferRequest, caller: Caller, deadline_s: float | None, started_s: float
    ) -> _Call:
        """Check, admit and queue one request; whatever raises has released what was reserved.

        Waits for nothing but the weights of a tier that is used for the first time.
        """
        session = self._gate.session(caller.token)
        _check_model(session, request.model_name, request.model_version)
        signature = self._signature(session.package_id)
        inputs = signature.decode(request)
        wanted = signature.wanted(request)
        signature.check_answer(inputs.samples, wanted)
        request_id = convert.request_id(request, self._limits) or str(uuid.uuid4())
        parsed_s = time.perf_counter()
        tier = convert.wanted_tier(request)
        permit = self._gate.admit(
            caller.token, request.model_name, request.model_version, inputs.samples, request_id, tier=tier
        )
        try:
            batcher = await self._models.variant(session.package_id, permit.tier)
            job = Job(
                permit=permit,
                inputs=inputs.arrays,
                samples=inputs.samples,
                request_id=request_id,
                payload_digest=signature.digest(inputs),
                bytes_in=inputs.bytes_in,
                deadline_s=deadline_s,
                receipt=caller.receipt or convert.wants_receipt(request),
            )
        except BaseException:
            permit.release()
            raise
        batcher.enqueue(job)
        self._metrics.parse.observe(parsed_s - started_s)
        self._metrics.admit.observe(time.perf_counter() - parsed_s)
        return _Call(batcher, job, signature, wanted)

    def _respond(self, call: _Call, answer: Answer) -> pb.ModelInferResponse:
        started_s = time.perf_counter()
        response = call.signature.response(answer, call.job.request_id, call.wanted)
        self._metrics.respond.observe(time.perf_counter() - started_s)
        return response

    def _signature(self, package_id: str) -> Signature:
        found = self._signatures.get(package_id)
        if found is None:
            found = self._signatures[package_id] = Signature(self._models.manifest(package_id), self._limits)
        return found

    def _deadline_s(self, context: Context) -> float | None:
        remaining_s = context.time_remaining()
        return None if remaining_s is None else self._clock.monotonic_s() + remaining_s

    # -- about the server and its models ---------------------------------------------------------------------------

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:  # noqa: N802
        """Answer true: whoever can answer is alive. Needs no session."""
        del request, context
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        """Answer whether the store is unsealed and the server is not draining. Needs no session."""
        del request, context
        return pb.ServerReadyResponse(ready=self._ready())

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        """Answer the server's name, version and extensions. Needs no session."""
        del request, context
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=self._version, extensions=describe.EXTENSIONS)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:  # noqa: N802
        """Answer whether the session's model can be called. Raises `Unauthenticated` or `NotFound`."""
        session = self._covered(context, request.name, request.version)
        return pb.ModelReadyResponse(ready=self._models.state(session.package_id) == "ready")

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        """Answer the contract of the session's model. Raises `Unauthenticated` or `NotFound`."""
        session = self._covered(context, request.name, request.version)
        return describe.metadata(self._models.manifest(session.package_id))

    async def ModelConfig(  # noqa: N802
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        """Answer the session's model in Triton's configuration form. Raises `Unauthenticated` or `NotFound`."""
        session = self._covered(context, request.name, request.version)
        manifest = self._models.manifest(session.package_id)
        return describe.config(manifest, sizes.largest_batch(manifest, self._limits))

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """Answer the counts of the session's model; an empty name means it. Raises `Unauthenticated` or `NotFound`."""
        session = self._covered(context, request.name, request.version, optional=True)
        return describe.statistics(
            self._models.manifest(session.package_id),
            self._models.statistics(session.package_id),
            self._models.weight_bytes(session.package_id),
        )

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        """Answer the models that the caller's licence covers. Raises `Unauthenticated`."""
        licence = self._gate.session(_caller(context).token).licence
        covered = [entry for entry in self._models.entries() if licence.covers(entry.offer.model, entry.offer.version)]
        return describe.index(covered, ready_only=request.ready)

    def _covered(self, context: Context, name: str, version: str, *, optional: bool = False) -> Session:
        session = self._gate.session(bearer_token(context))
        if name or not optional:
            _check_model(session, name, version)
        return session


def register(service: InferenceService, server: grpc.aio.Server) -> None:
    """Add the handlers under the protocol's public name, `/inference.GRPCInferenceService/`."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(
            service.infer_raw,
            request_deserializer=_as_bytes,
            response_serializer=pb.ModelInferResponse.SerializeToString,
        ),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
            service.stream_raw,
            request_deserializer=_as_bytes,
            response_serializer=pb.ModelStreamInferResponse.SerializeToString,
        ),
    }
    for name in (
        "ServerLive",
        "ServerReady",
        "ServerMetadata",
        "ModelReady",
        "ModelMetadata",
        "ModelConfig",
        "ModelStatistics",
        "RepositoryIndex",
    ):
        handlers[name] = grpc.unary_unary_rpc_method_handler(
            getattr(service, name),
            request_deserializer=getattr(pb, f"{name}Request").FromString,
            response_serializer=getattr(pb, f"{name}Response").SerializeToString,
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _as_bytes(raw: bytes) -> bytes:
    """Leave decoding to the handler, which can then say what is wrong in our words."""
    return raw


def _check_model(session: Session, name: str, version: str) -> None:
    """Raise `NotFound` unless the session is for this model and version (rule W-40); before any tensor is looked at."""
    number = convert.model_version(version)
    if name != session.model or number not in (0, session.version):
        raise NotFound(
            "the session is for another model or version",
            reason="model-unknown",
            remedy="name the model that the session's contract names, or open a session with another licence",
        )


def _caller(context: Context) -> Caller:
    receipt = close_on_error = False
    for key, value in context.invocation_metadata() or ():
        if key == "tessera-receipt":
            receipt = value == "1"
        elif key == "triton_grpc_error":
            close_on_error = str(value).lower() == "true"
    return Caller(bearer_token(context), receipt, close_on_error)


def _withdraw(item: _Item | None) -> None:
    if item is not None and item.call is not None:
        item.call.batcher.withdraw(item.call.job)
