"""The blocking client: drives the plans over a gRPC channel."""

import threading
import time
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from contextlib import closing
from copy import copy
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import grpc

from tessera.client import _plans
from tessera.client._channel import channel_closed, failure, metadata
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
from tessera.client._sync_stream import SyncStream
from tessera.client._tensors import check
from tessera.client._types import Answer, Array, Inputs, ModelContract, SessionInfo, Usage
from tessera.client.errors import ClientError
from tessera.keystore.errors import TesseraError
from tessera.oip.v1 import inference_pb2 as oip

T = TypeVar("T")


class _Opening:
    """One attempt to open or renew a session, in a thread of its own: whoever needs the session waits for it, as long
    as they have time, and shares its success or failure. Nobody's deadline cuts it short, for a session that is opened
    on the server and forgotten here holds a seat until it lapses."""

    def __init__(self) -> None:
        self.result: Future[Session] = Future()
        self.because: ClientError | None = None

    def note(self, error: ClientError) -> None:
        """Remember why it takes so long."""
        self.because = error


class _Slot:
    """The session of one licence, and the attempt to get it; `lock` guards the latter."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.session: Session | None = None
        self.opening: _Opening | None = None
        self.thread: threading.Thread | None = None


class Client(ClientSettings):
    """A blocking client; one may be shared by many threads.

        with Client("node:8001", identity="me.key", licence="digits.licence", root_certificates="ca.pem") as client:
            scores = client.infer("digits", image)
            for scores in client.stream("digits", frames): ...

    The settings are those of `ClientSettings`. A session is opened at the first call under each licence, renewed
    before it ends, and closed with the client. What calls raise is drawn in `tessera.client.errors`. gRPC does not
    survive `os.fork`: make the client in the child, or start processes by spawning.
    """

    def _connect(self) -> None:
        self._channel = self._address.sync_channel()
        self._methods: dict[str, Any] = {
            method.path: self._channel.unary_unary(
                method.path, lambda message: message.SerializeToString(), method.answer.FromString
            )
            for method in UNARY
        }
        self._stream_method: Any = self._channel.stream_stream(
            MODEL_STREAM_INFER.path, oip.ModelInferRequest.SerializeToString, MODEL_STREAM_INFER.answer.FromString
        )
        self._slots = {held.licence.licence_id: _Slot() for held in self._core.credentials.held}
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sessions on the server, as far as it answers, and the channel. May be called more than once."""
        if self._closing.is_set():
            return
        self._closing.set()
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S
        for slot in self._slots.values():
            with slot.lock:
                thread = slot.thread
            if thread is not None:
                thread.join(max(deadline_s - time.monotonic(), 0.0))
            if slot.session is not None:
                self._drive(_plans.close_session(slot.session), deadline_s)
                slot.session = None
        self._channel.close()

    def infer(self, model: str, x: Inputs, *, request_id: str | None = None, timeout_s: float | None = None) -> Array:
        """Return the model's output for one sample or a batch; the output has a batch axis when the input has.

        A batch beyond the model's largest is sent in several requests. `request_id` makes the call repeatable: the same
        id with the same inputs is charged once. Raises what `tessera.client.errors` draws.
        """
        return self._run(self._infer_plan(model, x, request_id, sole=True), timeout_s).output

    def infer_detailed(
        self, model: str, x: Inputs, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> Answer:
        """As `infer`, with all outputs, the verified receipts, the time and the number of attempts."""
        return self._run(self._infer_plan(model, x, request_id, sole=False), timeout_s)

    @overload
    def stream(
        self,
        model: str,
        frames: Iterable[Inputs],
        *,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[StreamOptions],
    ) -> Generator[Array, None, None]: ...

    @overload
    def stream(
        self, model: str, frames: Iterable[Inputs], *, on_error: OnError, **options: Unpack[StreamOptions]
    ) -> Generator[Array | ClientError, None, None]: ...

    def stream(
        self, model: str, frames: Iterable[Inputs], *, on_error: OnError = "raise", **options: Unpack[StreamOptions]
    ) -> Generator[Array, None, None] | Generator[Array | ClientError, None, None]:
        """Yield one output a frame, in the order of the frames, with a window of requests on their way.

        `frames` is read in a thread of its own; `options` are those of `StreamOptions`. A frame that is refused raises
        at its place, or is yielded as the error with `on_error="yield"`. A broken stream is reopened, and what is
        unanswered is sent again under the same ids. Leaving the loop ends the stream.
        """
        with closing(self._outcomes(model, frames, on_error, options, sole=True)) as outcomes:
            for outcome in outcomes:
                yield outcome if isinstance(outcome, ClientError) else outcome.output

    @overload
    def stream_detailed(
        self,
        model: str,
        frames: Iterable[Inputs],
        *,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[StreamOptions],
    ) -> Generator[Answer, None, None]: ...

    @overload
    def stream_detailed(
        self, model: str, frames: Iterable[Inputs], *, on_error: OnError, **options: Unpack[StreamOptions]
    ) -> Generator[Outcome, None, None]: ...

    def stream_detailed(
        self, model: str, frames: Iterable[Inputs], *, on_error: OnError = "raise", **options: Unpack[StreamOptions]
    ) -> Generator[Answer, None, None] | Generator[Outcome, None, None]:
        """As `stream`, yielding an `Answer` a frame."""
        return self._outcomes(model, frames, on_error, options, sole=False)

    def contract(self, model: str) -> ModelContract:
        """Return what the model takes and gives under the licence; opens a session when there is none."""
        return self._session_of(model).contract

    def usage(self, model: str) -> Usage:
        """Return what the licence for `model` has used, from the node's ledger."""
        return self._run(_plans.usage(self._core, self._held(model)), None)

    def session_info(self, model: str) -> SessionInfo:
        """Return the session for `model`, without its token; opens it when there is none."""
        return self._session_of(model).info()

    def session_metadata(self, model: str) -> tuple[tuple[str, str], ...]:
        """Return the call metadata with which another Open Inference Protocol client works in this session: secret."""
        return call_metadata(self._session_of(model).token, receipt=False)

    def transformed(self, model: str, x: Inputs) -> dict[str, Array]:
        """Return the checked and keyed inputs, with batch axis, as they would be sent: for other clients, and tests."""
        session = self._session_of(model)
        return session.keying(check(session.contract, x).arrays)

    def _session_of(self, model: str) -> Session:
        return self._run(_plans.session_of(self._held(model)), None)

    def _outcomes(
        self, model: str, frames: Iterable[Inputs], on_error: OnError, options: StreamOptions, *, sole: bool
    ) -> Generator[Any, None, None]:
        lanes, held = lanes_of(options), self._held(model)
        pipeline = self._run(self._stream_plan(model, on_error, options, sole=sole), options.get("timeout_s"))
        running = SyncStream(
            pipeline,
            frames,
            lanes=lanes,
            method=self._stream_method,
            sessions=lambda stale: self._session(held, stale, self._deadline_s(None)),
            proven=lambda session: self._drive(_plans.proven_session(held, session), self._deadline_s(None)),
            receipt=self._core.receipts,
        )
        yield from running.outcomes()

    def _run(self, plan: Plan[T], timeout_s: float | None) -> T:
        if self._closing.is_set():
            raise closed()
        return self._drive(plan, self._deadline_s(timeout_s))

    def _drive(self, plan: Plan[T], deadline_s: float) -> T:
        """Run a plan to its end: perform its effects, send the answers or throw the failures."""
        try:
            effect = next(plan)
            while True:
                failed: Exception | None = None
                result: Any = None
                try:
                    result = self._perform(effect, deadline_s)
                except (RpcFailed, TesseraError) as error:
                    failed = error
                # Thrown outside the handler, so that what the plan raises does not drag the transport's error along.
                effect = plan.send(result) if failed is None else plan.throw(failed)
        except StopIteration as stop:
            done: T = stop.value
            return done

    def _perform(self, effect: Effect, deadline_s: float) -> Reply | Session | None:
        match effect:
            case Rpc():
                return self._call(effect, deadline_s)
            case NeedSession(held, stale):
                return self._session(held, stale, deadline_s)
            case Pause(seconds, because):
                if time.monotonic() + seconds >= deadline_s:
                    raise because
                if self._closing.wait(seconds):
                    raise interrupted()
                return None

    def _call(self, rpc: Rpc, deadline_s: float) -> Reply:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise RpcFailed("DEADLINE_EXCEEDED")
        pairs = call_metadata(rpc.token, receipt=rpc.receipt)
        try:
            message, call = self._methods[rpc.method.path].with_call(rpc.message, timeout=left_s, metadata=pairs)
        except grpc.RpcError as error:
            raise failure(error) from None
        except ValueError:  # how gRPC says that the channel was closed
            raise channel_closed() from None
        return Reply(message, metadata(call.trailing_metadata()))

    def _session(self, held: Held, stale: Session | None, deadline_s: float) -> Session:
        slot = self._slots[held.licence.licence_id]
        current = slot.session
        if current is not None and stale is None and not current.due(time.monotonic()):
            return current
        while True:
            opening = self._opening(slot, held, stale, deadline_s)
            try:
                session = opening.result.result(max(deadline_s - time.monotonic(), 0.0))
            except TimeoutError:
                raise copy(opening.because or too_late()) from None
            except TesseraError as error:
                raise copy(error) from None  # others raise it too
            if stale is None or session.token != stale.token:
                return session

    def _opening(self, slot: _Slot, held: Held, stale: Session | None, deadline_s: float) -> _Opening:
        """Return the attempt that is under way, or a new one."""
        with slot.lock:
            if self._closing.is_set():
                raise interrupted()  # close() has seen every session that it will close
            if slot.opening is None:
                opening = _Opening()
                work = (slot, opening, held, stale, max(deadline_s, self._deadline_s(None)))
                thread = threading.Thread(target=self._open, args=work, name="tessera-client-session", daemon=True)
                thread.start()
                slot.thread, slot.opening = thread, opening
            return slot.opening

    def _open(self, slot: _Slot, opening: _Opening, held: Held, stale: Session | None, deadline_s: float) -> None:
        failed: BaseException | None = None
        session = slot.session
        try:
            plan = _plans.fresh_session(self._core, held, session, stale, opening.note)
            session = self._drive(plan, deadline_s)
        except BaseException as error:  # noqa: BLE001  it belongs to those who wait
            failed = error
        with slot.lock:
            slot.session, slot.opening = session, None
        if failed is None and session is not None:
            opening.result.set_result(session)
        else:
            opening.result.set_exception(failed or interrupted())
