"""The asyncio driver of a stream: one task for the frames, one for each gRPC stream, the caller for the answers.

The same machine as in `_sync_stream`, with tasks for threads. Leaving the iterator, in whichever way, cancels and
awaits every task.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing, suppress
from typing import Any

import grpc

from tessera.client._channel import being_cancelled, channel_closed, failure
from tessera.client._effects import call_metadata
from tessera.client._pipeline import Outcome, Pipeline, Reconnect
from tessera.client._session import Session
from tessera.client._types import Inputs
from tessera.oip.v1 import inference_pb2 as oip

GRACE_S = 2.0
LATE_S = 0.5
"""How long a free event loop may take to bring an answer that has arrived."""

AsyncSessionSource = Callable[[Session | None], Awaitable[Session]]
"""Returns an open session other than the given, stale one."""

AsyncSessionProof = Callable[[Session], Awaitable[Session]]
"""Returns the given session if the server knows it, else another one."""


class AioStream:
    """One running stream. `outcomes()` is to be iterated once."""

    def __init__(
        self,
        pipeline: Pipeline,
        frames: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        lanes: int,
        method: Any,
        sessions: AsyncSessionSource,
        proven: AsyncSessionProof,
        receipt: bool,
    ) -> None:
        self._pipeline, self._frames, self._method = pipeline, frames, method
        self._sessions, self._proven, self._receipt, self._lanes = sessions, proven, receipt, lanes
        self._epochs = [0] * lanes
        self._waiting: set[asyncio.Future[None]] = set()

    async def outcomes(self) -> AsyncGenerator[Outcome, None]:
        """Yield one outcome a frame, in order; raise what the pipeline raises."""
        feeder = asyncio.create_task(self._feed(), name="tessera-client-frames")
        lanes = [
            asyncio.create_task(self._guarded(self._run_lane(lane)), name=f"tessera-client-lane-{lane}")
            for lane in range(self._lanes)
        ]
        try:
            while (outcome := await self._next()) is not None:
                yield outcome
            await asyncio.wait(lanes, timeout=GRACE_S)
        finally:
            for task in (feeder, *lanes):
                task.cancel()
            await asyncio.gather(feeder, *lanes, return_exceptions=True)

    async def _next(self) -> Outcome | None:
        grace_until_s: float | None = None
        while True:
            outcome = self._pipeline.pop()
            if outcome is not None:
                self._notify()
                return outcome
            if self._pipeline.exhausted:
                return None
            now_s = time.monotonic()
            left_s = self._pipeline.patience_s(now_s)
            if left_s == 0:
                # A caller who works between two answers without awaiting holds up the loop, and with it answers that
                # have long arrived. Only what does not come while the loop is free to fetch it is late.
                grace_until_s = grace_until_s or now_s + LATE_S
                left_s = grace_until_s - now_s
                if left_s <= 0:
                    self._pipeline.give_up()
                    continue
            await self._change(left_s)

    async def _feed(self) -> None:
        error: BaseException | None = None
        try:
            async with aclosing(_each(self._frames)) as frames:
                while await self._has_room():
                    try:
                        frame = await anext(frames)
                    except StopAsyncIteration:
                        break
                    await self._sessions(None)  # renews the session when it is time
                    self._pipeline.offer(frame)
                    self._notify()
        except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001  what the caller's iterator raises is theirs
            error = raised  # a source may be cancelled by itself; when this task is, nobody waits for the end any more
        self._pipeline.end(error)
        self._notify()

    async def _has_room(self) -> bool:
        while self._pipeline.wants_frames and not self._pipeline.room:
            await self._change(None)
        return self._pipeline.wants_frames

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001  else the caller would wait for ever
            self._pipeline.fail(raised)
            self._notify()

    async def _run_lane(self, lane: int) -> None:
        stale: Session | None = None
        while True:
            session = await self._sessions(stale)
            again = await self._converse(lane, session)
            if again is None:
                return
            stale = session if again.session_lost else None
            await asyncio.sleep(again.pause_s)
            if again.session_doubtful:
                await self._proven(session)

    async def _converse(self, lane: int, session: Session) -> Reconnect | None:
        """Run one call of `lane` to its end; return how to go on."""
        if self._pipeline.complete:
            return None
        metadata = call_metadata(session.token, receipt=self._receipt)
        self._epochs[lane] += 1
        call = self._method(self._requests(lane, self._epochs[lane]), metadata=metadata)
        failed = None
        again: Reconnect | None = None
        try:
            async for response in call:
                again = self._pipeline.receive(lane, response, time.monotonic())
                self._notify()
                if again is not None:
                    break
        except grpc.RpcError as error:
            failed = failure(error)
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            failed = channel_closed()
        finally:
            self._epochs[lane] += 1
            call.cancel()
        self._pipeline.release(lane)
        if again is None:
            again = self._pipeline.broken(lane, failed)
        self._notify()
        return again

    async def _requests(self, lane: int, epoch: int) -> AsyncIterator[oip.ModelInferRequest]:
        """Yield what `lane` sends; gRPC runs it in a task that outlives a failed call, so it must end by itself."""
        while self._epochs[lane] == epoch and not self._pipeline.complete:
            now_s = time.monotonic()
            sent = self._pipeline.take(lane, now_s)
            if sent is None:
                await self._change(self._pipeline.hold_s(now_s))
                continue
            self._notify()
            yield sent.message

    def _notify(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def _change(self, timeout_s: float | None) -> None:
        """Wait until anything changes, or for `timeout_s`."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await future
        finally:
            self._waiting.discard(future)


async def _each(frames: Iterable[Inputs] | AsyncIterable[Inputs]) -> AsyncGenerator[Inputs, None]:
    if isinstance(frames, AsyncIterable):
        async for frame in frames:
            yield frame
    else:
        for frame in frames:
            yield frame
