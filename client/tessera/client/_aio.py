"""The asyncio client: drives the same plans as `_sync` over a grpc.aio channel."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing, suppress
from copy import copy
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import grpc
import grpc.aio

from tessera.client import _plans
from tessera.client._aio_stream import AioStream
from tessera.client._channel import being_cancelled, channel_closed, failure, metadata
from tessera.client._credentials import Held
from tessera.client._effects import (
    MODEL_STREAM_INFER,
    UNARY,
    Effect,
    NeedSession,
    Pause,
    Plan,
    Reply,
    Rpc,
    call_metadata,
)
from tessera.client._pipeline import OnError, Outcome
from tessera.client._refusals import RpcFailed
from tessera.client._session import Session
from tessera.client._settings import (
    CLOSE_TIMEOUT_S,
    ClientSettings,
    StreamOptions,
    closed,
    interrupted,
    lanes_of,
    too_late,
)
from tessera.client._tensors import check
from tessera.client._types import Answer, Array, Inputs, ModelContract, SessionInfo, Usage
from tessera.client.errors import ClientError
from tessera.keystore.errors import ApiMisuse, TesseraError
from tessera.oip.v1 import inference_pb2 as oip

Frames = Iterable[Inputs] | AsyncIterable[Inputs]
T = TypeVar("T")


class _Opening:
    """One attempt to open or renew a session, in a task of its own, as in `_sync`: a caller who is cancelled leaves it
    to those who wait with him, or who come later."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Session]
        self.because: ClientError | None = None

    def note(self, error: ClientError) -> None:
        """Remember why it takes so long."""
        self.because = error


class _Slot:
    """The session of one licence, and the attempt to get it."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.opening: _Opening | None = None


class _Wire:
    """Channel and methods; made at the first call, because a grpc.aio channel belongs to the loop that makes it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel, self.loop = channel, asyncio.get_running_loop()
        self.methods: dict[str, Any] = {
            method.path: channel.unary_unary(
                method.path, lambda message: message.SerializeToString(), method.answer.FromString
            )
            for method in UNARY
        }
        self.stream_method: Any = channel.stream_stream(
            MODEL_STREAM_INFER.path, oip.ModelInferRequest.SerializeToString, MODEL_STREAM_INFER.answer.FromString
        )


class AsyncClient(ClientSettings):
    """An asyncio client with the methods of `Client`; one may be shared by all tasks of one event loop.

        async with AsyncClient("node:8001", identity="me.key", licence="digits.licence", root_certificates="ca.pem") as
        c:
            scores = await c.infer("digits", image)
            async for scores in c.stream("digits", frames): ...

    The settings are those of `ClientSettings`; making one does not need a running loop, closing one does.
    """

    def _connect(self) -> None:
        self._open_wire: _Wire | None = None
        self._slots = {held.licence.licence_id: _Slot() for held in self._core.credentials.held}
        self._closing = asyncio.Event()

    @property
    def _wire(self) -> _Wire:
        if self._open_wire is None:
            self._open_wire = _Wire(self._address.aio_channel())
        return self._open_wire

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the sessions on the server, as far as it answers, and the channel. May be called more than once."""
        if self._closing.is_set():
            return
        self._check_loop()
        self._closing.set()
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        openings = [slot.opening.task for slot in self._slots.values() if slot.opening is not None]
        if openings:
            await asyncio.wait(openings, timeout=CLOSE_TIMEOUT_S)
        for slot in self._slots.values():
            if slot.session is not None:
                await self._drive(_plans.close_session(slot.session), deadline_s)
                slot.session = None
        if self._open_wire is not None:
            await self._open_wire.channel.close()
        if openings:
            await asyncio.wait(openings)  # what was under way has ended with the channel

    async def infer(
        self, model: str, x: Inputs, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> Array:
        """Return the model's output, as `Client.infer` does."""
        return (await self._run(self._infer_plan(model, x, request_id, sole=True), timeout_s)).output

    async def infer_detailed(
        self, model: str, x: Inputs, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> Answer:
        """As `infer`, with all outputs, the verified receipts, the time and the number of attempts."""
        return await self._run(self._infer_plan(model, x, request_id, sole=False), timeout_s)

    @overload
    def stream(
        self,
        model: str,
        frames: Frames,
        *,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[StreamOptions],
    ) -> AsyncGenerator[Array, None]: ...

    @overload
    def stream(
        self, model: str, frames: Frames, *, on_error: OnError, **options: Unpack[StreamOptions]
    ) -> AsyncGenerator[Array | ClientError, None]: ...

    async def stream(
        self, model: str, frames: Frames, *, on_error: OnError = "raise", **options: Unpack[StreamOptions]
    ) -> AsyncGenerator[Any, None]:
        """Yield one output a frame, in order, as `Client.stream` does.

        `frames` may be asynchronous; a plain iterable is read in the event loop and should not block. When the loop is
        left early, the stream ends as soon as the generator is closed: `contextlib.aclosing` makes that at once.
        """
        async with aclosing(self._outcomes(model, frames, on_error, options, sole=True)) as outcomes:
            async for outcome in outcomes:
                yield outcome if isinstance(outcome, ClientError) else outcome.output

    @overload
    def stream_detailed(
        self,
        model: str,
        frames: Frames,
        *,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[StreamOptions],
    ) -> AsyncGenerator[Answer, None]: ...

    @overload
    def stream_detailed(
        self, model: str, frames: Frames, *, on_error: OnError, **options: Unpack[StreamOptions]
    ) -> AsyncGenerator[Outcome, None]: ...

    def stream_detailed(
        self, model: str, frames: Frames, *, on_error: OnError = "raise", **options: Unpack[StreamOptions]
    ) -> AsyncGenerator[Any, None]:
        """As `stream`, yielding an `Answer` a frame."""
        return self._outcomes(model, frames, on_error, options, sole=False)

    async def contract(self, model: str) -> ModelContract:
        """Return what the model takes and gives under the licence; opens a session when there is none."""
        return (await self._session_of(model)).contract

    async def usage(self, model: str) -> Usage:
        """Return what the licence for `model` has used, from the node's ledger."""
        return await self._run(_plans.usage(self._core, self._held(model)), None)

    async def session_info(self, model: str) -> SessionInfo:
        """Return the session for `model`, without its token; opens it when there is none."""
        return (await self._session_of(model)).info()

    async def session_metadata(self, model: str) -> tuple[tuple[str, str], ...]:
        """Return the call metadata with which another Open Inference Protocol client works in this session: secret."""
        return call_metadata((await self._session_of(model)).token, receipt=False)

    async def transformed(self, model: str, x: Inputs) -> dict[str, Array]:
        """Return the checked and keyed inputs, with batch axis, as they would be sent: for other clients, and tests."""
        session = await self._session_of(model)
        return session.keying(check(session.contract, x).arrays)

    async def _session_of(self, model: str) -> Session:
        return await self._run(_plans.session_of(self._held(model)), None)

    async def _outcomes(
        self, model: str, frames: Frames, on_error: OnError, options: StreamOptions, *, sole: bool
    ) -> AsyncGenerator[Any, None]:
        lanes, held = lanes_of(options), self._held(model)
        pipeline = await self._run(self._stream_plan(model, on_error, options, sole=sole), options.get("timeout_s"))
        running = AioStream(
            pipeline,
            frames,
            lanes=lanes,
            method=self._wire.stream_method,
            sessions=lambda stale: self._session(held, stale, self._deadline_s(None)),
            proven=lambda session: self._drive(_plans.proven_session(held, session), self._deadline_s(None)),
            receipt=self._core.receipts,
        )
        async with aclosing(running.outcomes()) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def _run(self, plan: Plan[T], timeout_s: float | None) -> T:
        if self._closing.is_set():
            raise closed()
        self._check_loop()
        return await self._drive(plan, self._deadline_s(timeout_s))

    def _check_loop(self) -> None:
        if self._open_wire is not None and self._open_wire.loop is not asyncio.get_running_loop():
            raise ApiMisuse(
                "this client belongs to the event loop of its first call, and another one is running",
                remedy="Make one client in each event loop; each asyncio.run is another one.",
            )

    async def _drive(self, plan: Plan[T], deadline_s: float) -> T:
        """Run a plan to its end: perform its effects, send the answers or throw the failures."""
        try:
            effect = next(plan)
            while True:
                failed: Exception | None = None
                result: Any = None
                try:
                    result = await self._perform(effect, deadline_s)
                except (RpcFailed, TesseraError) as error:
                    failed = error
                # Thrown outside the handler, so that what the plan raises does not drag the transport's error along.
                effect = plan.send(result) if failed is None else plan.throw(failed)
        except StopIteration as stop:
            done: T = stop.value
            return done

    async def _perform(self, effect: Effect, deadline_s: float) -> Reply | Session | None:
        match effect:
            case Rpc():
                return await self._call(effect, deadline_s)
            case NeedSession(held, stale):
                return await self._session(held, stale, deadline_s)
            case Pause(seconds, because):
                if time.monotonic() + seconds >= deadline_s:
                    raise because
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._closing.wait()
                        raise interrupted()
                return None

    async def _call(self, rpc: Rpc, deadline_s: float) -> Reply:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise RpcFailed("DEADLINE_EXCEEDED")
        pairs = call_metadata(rpc.token, receipt=rpc.receipt)
        try:
            call = self._wire.methods[rpc.method.path](rpc.message, timeout=left_s, metadata=pairs)
            return Reply(await call, metadata(await call.trailing_metadata()))
        except grpc.RpcError as error:
            raise failure(error) from None
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            raise channel_closed() from None
        except grpc.aio.UsageError:  # how grpc.aio says that the channel was closed
            raise channel_closed() from None

    async def _session(self, held: Held, stale: Session | None, deadline_s: float) -> Session:
        slot = self._slots[held.licence.licence_id]
        current = slot.session
        if current is not None and stale is None and not current.due(time.monotonic()):
            return current
        while True:
            opening = self._opening(slot, held, stale, deadline_s)
            done, _ = await asyncio.wait([opening.task], timeout=max(deadline_s - time.monotonic(), 0.0))
            if not done:
                raise copy(opening.because or too_late())
            try:
                session = opening.task.result()
            except TesseraError as error:
                raise copy(error) from None  # others raise it too
            if stale is None or session.token != stale.token:
                return session

    def _opening(self, slot: _Slot, held: Held, stale: Session | None, deadline_s: float) -> _Opening:
        """Return the attempt that is under way, or a new one."""
        if self._closing.is_set():
            raise interrupted()  # close() has seen every session that it will close
        if slot.opening is None:
            opening = slot.opening = _Opening()
            until_s = max(deadline_s, self._deadline_s(None))
            opening.task = asyncio.create_task(
                self._open(slot, opening, held, stale, until_s), name="tessera-client-session"
            )
            opening.task.add_done_callback(_heard)
        return slot.opening

    async def _open(
        self, slot: _Slot, opening: _Opening, held: Held, stale: Session | None, deadline_s: float
    ) -> Session:
        try:
            plan = _plans.fresh_session(self._core, held, slot.session, stale, opening.note)
            slot.session = await self._drive(plan, deadline_s)
            return slot.session
        finally:
            slot.opening = None


def _heard(opening: asyncio.Task[Session]) -> None:
    """Take note of a failure that nobody waits for any more, which asyncio would report as forgotten."""
    if not opening.cancelled():
        opening.exception()
