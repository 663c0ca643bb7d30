"""The blocking driver of a stream: one thread for the frames, one for each gRPC stream, the caller for the answers.

All of them share the pipeline under one condition. Leaving the iterator, in whichever way, cancels the calls and joins
the threads; only a `frames` iterator that is itself blocked can outlive that, by as long as it blocks.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import grpc

from tessera.client._channel import channel_closed, failure
from tessera.client._effects import call_metadata
from tessera.client._pipeline import Outcome, Pipeline, Reconnect
from tessera.client._refusals import refusal
from tessera.client._session import Session
from tessera.client._types import Inputs
from tessera.oip.v1 import inference_pb2 as oip

JOIN_S = 2.0
_NO_MORE: Any = object()

SessionSource = Callable[[Session | None], Session]
"""Returns an open session other than the given, stale one."""

SessionProof = Callable[[Session], Session]
"""Returns the given session if the server knows it, else another one."""


class SyncStream:
    """One running stream. `outcomes()` is to be iterated once, by one thread."""

    def __init__(
        self,
        pipeline: Pipeline,
        frames: Iterable[Inputs],
        *,
        lanes: int,
        method: Any,
        sessions: SessionSource,
        proven: SessionProof,
        receipt: bool,
    ) -> None:
        self._pipeline, self._frames, self._method = pipeline, frames, method
        self._sessions, self._proven, self._receipt = sessions, proven, receipt
        self._changed = threading.Condition()
        self._stopping = False
        self._calls: dict[int, Any] = {}
        self._epochs = [0] * lanes
        self._lanes = [
            threading.Thread(target=self._run_lane, args=(lane,), name=f"tessera-client-lane-{lane}", daemon=True)
            for lane in range(lanes)
        ]
        self._feeder = threading.Thread(target=self._feed, name="tessera-client-frames", daemon=True)

    def outcomes(self) -> Generator[Outcome, None, None]:
        """Yield one outcome a frame, in order; raise what the pipeline raises."""
        try:
            self._feeder.start()
            for lane in self._lanes:
                lane.start()
            while (outcome := self._next()) is not None:
                yield outcome
        finally:
            self._close()

    def _next(self) -> Outcome | None:
        with self._changed:
            while True:
                outcome = self._pipeline.pop()
                if outcome is not None:
                    self._changed.notify_all()
                    return outcome
                if self._pipeline.exhausted:
                    return None
                left_s = self._pipeline.patience_s(time.monotonic())
                if left_s == 0:
                    self._pipeline.give_up()
                else:
                    self._changed.wait(left_s)

    def _close(self) -> None:
        with self._changed:
            graceful = self._pipeline.complete
            self._changed.notify_all()
        if graceful:
            self._join(self._lanes)
        with self._changed:
            self._stopping = True
            for call in self._calls.values():
                call.cancel()
            self._changed.notify_all()
        self._join([*self._lanes, self._feeder])

    def _join(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(JOIN_S)

    def _feed(self) -> None:
        error: BaseException | None = None
        try:
            frames = iter(self._frames)
            while self._await_room():
                frame = next(frames, _NO_MORE)
                if frame is _NO_MORE:
                    break
                self._sessions(None)  # renews the session when it is time
                with self._changed:
                    self._pipeline.offer(frame)
                    self._changed.notify_all()
        except BaseException as raised:  # noqa: BLE001  what the caller's iterator raises is the caller's
            error = raised
        with self._changed:
            self._pipeline.end(error)
            self._changed.notify_all()

    def _await_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._over() or self._pipeline.room)
            return not self._over()

    def _over(self) -> bool:
        return self._stopping or not self._pipeline.wants_frames

    def _run_lane(self, lane: int) -> None:
        try:
            stale: Session | None = None
            while not self._stopping:
                session = self._sessions(stale)
                again = self._converse(lane, session)
                if again is None:
                    return
                stale = session if again.session_lost else None
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, again.pause_s)
                if again.session_doubtful and not self._stopping:
                    self._proven(session)
        except BaseException as raised:  # noqa: BLE001  else the caller would wait for ever
            with self._changed:
                self._pipeline.fail(raised)
                self._changed.notify_all()

    def _converse(self, lane: int, session: Session) -> Reconnect | None:
        """Run one call of `lane` to its end; return how to go on."""
        with self._changed:
            if self._stopping or self._pipeline.complete:
                return None
            self._epochs[lane] += 1
            metadata = call_metadata(session.token, receipt=self._receipt)
            try:
                call = self._method(self._requests(lane, self._epochs[lane]), metadata=metadata)
            except ValueError:  # how gRPC says that the channel was closed
                raise refusal(channel_closed()) from None
            self._calls[lane] = call
        failed = None
        again: Reconnect | None = None
        try:
            for response in call:
                with self._changed:
                    again = self._pipeline.receive(lane, response, time.monotonic())
                    self._changed.notify_all()
                if again is not None:
                    break
        except grpc.RpcError as error:
            failed = failure(error)
        with self._changed:
            self._epochs[lane] += 1
            call.cancel()
            self._pipeline.release(lane)  # also what was taken between the decision to reconnect and this moment
            if again is None and not self._stopping:
                again = self._pipeline.broken(lane, failed)
            self._changed.notify_all()
        return again

    def _requests(self, lane: int, epoch: int) -> Iterator[oip.ModelInferRequest]:
        """Yield what `lane` sends; gRPC iterates it in a thread of its own, and it must end when the call does."""
        while True:
            with self._changed:
                while True:
                    if self._stopping or self._epochs[lane] != epoch or self._pipeline.complete:
                        return
                    now_s = time.monotonic()
                    sent = self._pipeline.take(lane, now_s)
                    if sent is not None:
                        break
                    self._changed.wait(self._pipeline.hold_s(now_s))
                self._changed.notify_all()
            yield sent.message
