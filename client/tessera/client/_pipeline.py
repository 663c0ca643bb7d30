"""A stream of frames as a machine without I/O: a window of unanswered requests, nothing lost, doubled or swapped.

    offer(frame) …  end()            the caller's frames come in; several may be packed into one request
    take(lane, now)                  a lane (one gRPC stream) sends what is next
    receive(lane, response, now)     an answer, a refusal of one item, or a reason to reconnect
    broken(lane, failure)            the lane ended: its unanswered requests are sent again, with the same ids
    pop()                            what is next for the caller, strictly in the order of the frames

Rules: a request keeps its id and its bytes for life, so sending it again is never charged again. A refusal stays with
its own frame. In mode `raise` nothing behind a failed frame is sent any more, and everything before it is still
answered. The machine is not thread-safe; its driver is.
"""

import heapq
import math
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from tessera.client import _tensors
from tessera.client._convert import text_parameter
from tessera.client._plans import Core, answer_of, pause_or_raise
from tessera.client._refusals import RpcFailed, refusal, retryable, session_lost
from tessera.client._request import Prepared, accept, prepare
from tessera.client._session import Session
from tessera.client._sizes import largest_batch
from tessera.client._types import Answer, Inputs
from tessera.client.errors import ClientError, DeadlineExceeded, InvalidTensor, ProtocolError
from tessera.keystore.errors import ApiMisuse
from tessera.oip.v1 import inference_pb2 as oip

OnError = Literal["raise", "yield"]
Outcome = Answer | ClientError

MAX_WINDOW = 4096
MAX_STREAMS = 64


@dataclass(order=True, slots=True)
class _Item:
    """One request and the frames in it."""

    position: int
    """Of its first frame; items are sent in this order."""
    sent: Prepared = field(compare=False)
    shapes: list[tuple[int, bool]] = field(compare=False)
    """Samples of each frame, and whether it had no batch axis; the frames themselves are in `sent`, and let go."""
    positions: list[int] = field(compare=False)
    lane: int | None = field(compare=False, default=None)
    attempts: int = field(compare=False, default=0)
    first_sent_s: float = field(compare=False, default=0.0)


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Open the lane again after a pause, within another session when the present one is lost."""

    pause_s: float
    session_lost: bool = False
    session_doubtful: bool = False
    """Ask the server whether it knows the session: gRPC may show a stream that was refused while it wrote its first
    message as an inner error of its own."""


class Pipeline:
    """See the module. `window` counts requests on the way, `pack` frames in a request."""

    def __init__(
        self, core: Core, session: Session, *, window: int, pack: int, on_error: OnError, timeout_s: float
    ) -> None:
        if not 1 <= window <= MAX_WINDOW:
            raise ApiMisuse(f"window is 1 to {MAX_WINDOW} requests")
        self._largest = largest_batch(session.contract, core.max_message_bytes)
        if not 1 <= pack <= self._largest:
            raise ApiMisuse(f"pack is 1 to {self._largest}, the largest batch of the model that fits into one message")
        if on_error not in ("raise", "yield"):
            raise ApiMisuse("on_error is 'raise' or 'yield'")
        self._core, self._session, self._pack, self._timeout_s = core, session, pack, timeout_s
        self._yields_errors = on_error == "yield"
        self._frames_allowed = window * pack
        self._prefix = uuid.uuid4().hex
        self._offered = self._popped = self._requests = 0
        self._ended = False
        self._limit: float = math.inf  # frames from here on are no longer of use
        self._failure: BaseException | None = None
        self._input_failure: BaseException | None = None
        self._filling: list[tuple[int, _tensors.Batch]] = []
        self._queue: list[_Item] = []
        self._open: dict[str, _Item] = {}  # sent and unanswered
        self._done: dict[int, Outcome] = {}
        self._hold_until_s = 0.0
        self._failures: dict[int, int] = {}
        self._reopened: set[int] = set()

    @property
    def room(self) -> bool:
        """Whether another frame may be offered now."""
        return self._offered - self._popped < self._frames_allowed

    @property
    def wants_frames(self) -> bool:
        """Whether frames are of any use still."""
        return not self._ended and self._limit == math.inf and self._failure is None

    @property
    def complete(self) -> bool:
        """Whether every frame has been answered, or no answer will come any more: lanes may close."""
        if self._failure is not None:
            return True
        if self.wants_frames or self._queue or self._filling:
            return False
        return not any(item.position < self._limit for item in self._open.values())

    @property
    def exhausted(self) -> bool:
        """Whether the caller has been given everything, and nothing is left to raise."""
        return self._ended and self._popped == self._offered and not (self._input_failure or self._failure)

    def offer(self, frame: Inputs) -> None:
        """Take the next frame: check it, key it, and queue its request, once `pack` frames are there."""
        position = self._offered
        self._offered += 1
        try:
            batch = _tensors.check(self._session.contract, frame)
            self._check_size(batch)
        except InvalidTensor as error:
            self._settle([position], error)
            return
        except Exception as error:  # noqa: BLE001  a frame that is counted and never answered would be waited for
            self.fail(error)
            return
        # A frame that waits for others is copied: many sources write the next frame into the same buffer.
        self._filling.append((position, batch if self._pack == 1 else _tensors.own(batch)))
        if len(self._filling) >= self._pack:
            self._flush()

    def end(self, error: BaseException | None = None) -> None:
        """No more frames come; `error`, of the caller's iterator, is raised after the answers to all frames before."""
        self._flush()
        self._ended = True
        self._input_failure = error

    def fail(self, error: BaseException) -> None:
        """Let `error` be raised to the caller, after the answers that are already there. The first failure counts."""
        self._failure = self._failure or error

    def take(self, lane: int, now_s: float) -> Prepared | None:
        """Return the request that `lane` shall send now, or None for nothing yet."""
        if not self._queue or self._failure or now_s < self._hold_until_s:
            return None
        item = heapq.heappop(self._queue)
        item.lane = lane
        item.first_sent_s = item.first_sent_s or now_s
        item.attempts += 1
        self._open[item.sent.request_id] = item
        return item.sent

    def hold_s(self, now_s: float) -> float | None:
        """Return how long `take` gives nothing because the server has asked for patience; None when it does not."""
        return self._hold_until_s - now_s if self._queue and now_s < self._hold_until_s else None

    def receive(self, lane: int, response: oip.ModelStreamInferResponse, now_s: float) -> Reconnect | None:
        """Take one response of `lane`. Returns what to do when the lane itself has to be opened again."""
        answer = response.infer_response
        item = self._open.get(answer.id)
        if item is None and response.error_message and not answer.id:
            # A request that the server could not even decode has no id there; answers of a lane come in order.
            item = next((sent for sent in self._open.values() if sent.lane == lane), None)
        if item is None or item.lane != lane:
            self.fail(ProtocolError("the server answered a request that was not sent on this stream"))
            return None
        if response.error_message:
            return self._refused(item, response, now_s)
        del self._open[answer.id]
        self._failures[lane] = 0
        self._reopened.discard(lane)
        try:
            accepted = accept(item.sent, answer, text_parameter(answer.parameters, "tessera_receipt"))
        except ClientError as error:
            self._settle(item.positions, error)
            return None
        start, seconds = 0, now_s - item.first_sent_s
        for position, (samples, single) in zip(item.positions, item.shapes, strict=True):
            stop = start + samples
            part = {name: array[start:stop] for name, array in accepted.outputs.items()}
            outputs = _tensors.join([part], single=single)
            self._done[position] = answer_of(outputs, answer.id, [accepted], seconds, item.attempts)
            start = stop
        return None

    def broken(self, lane: int, failed: RpcFailed | None) -> Reconnect | None:
        """Take note that `lane` ended (`failed` None: in good order). Returns None when it need not be opened again."""
        if self.complete:
            return None
        self.release(lane)
        error = refusal(failed or RpcFailed("UNAVAILABLE", "unavailable: the server ended the stream early"))
        if session_lost(error) and lane not in self._reopened:
            self._reopened.add(lane)
            return Reconnect(0.0, session_lost=True)
        self._failures[lane] = self._failures.get(lane, 0) + 1
        doubtful = failed is not None and failed.status == "INTERNAL"
        try:
            pause = pause_or_raise(self._core, error, self._failures[lane])
            return Reconnect(pause.seconds, session_doubtful=doubtful)
        except ClientError as final:
            self.fail(final)
            return None

    def release(self, lane: int) -> None:
        """Queue again whatever `lane` took and will not get answered, because its call is over."""
        self._requeue([item for item in self._open.values() if item.lane == lane])

    def pop(self) -> Outcome | None:
        """Return what is next for the caller, None when it is not there yet; raise what went wrong in its place."""
        outcome = self._done.pop(self._popped, None)
        if outcome is not None:
            self._popped += 1
            if isinstance(outcome, ClientError) and not self._yields_errors:
                raise outcome
            return outcome
        if self._failure is not None:
            raise self._failure
        if self._input_failure is not None and self._popped == self._offered:
            raise self._input_failure
        return None

    def patience_s(self, now_s: float) -> float | None:
        """Return how long the oldest request may still take; None when none is on the way. At 0, `give_up`."""
        oldest = self._oldest()
        return None if oldest is None else max(oldest.first_sent_s + self._timeout_s - now_s, 0.0)

    def give_up(self) -> None:
        """Take note that the oldest request has waited for too long."""
        oldest = self._oldest()
        if oldest is not None:
            self.fail(
                DeadlineExceeded(
                    f"no answer within {self._timeout_s:g} s",
                    request_id=oldest.sent.request_id,
                    remedy="Give a longer timeout_s or a smaller window.",
                )
            )

    def _oldest(self) -> _Item | None:
        return min(self._open.values(), key=lambda item: item.first_sent_s, default=None)

    def _check_size(self, batch: _tensors.Batch) -> None:
        name = next(iter(batch.arrays))
        if self._pack > 1 and not batch.single:
            raise InvalidTensor("only single samples can be packed; this frame has a batch axis", tensor=name)
        if batch.samples > self._largest:
            raise InvalidTensor(
                f"a frame of {batch.samples} samples exceeds the model's largest request, {self._largest}", tensor=name
            )

    def _flush(self) -> None:
        if not self._filling:
            return
        positions, batches = [p for p, _ in self._filling], [b for _, b in self._filling]
        self._filling = []
        request_id = f"{self._prefix}-{self._requests}"
        self._requests += 1
        try:
            sent = prepare(self._session, _tensors.pack(batches), request_id, receipt=self._core.receipts)
        except InvalidTensor as error:
            self._settle(positions, error)
            return
        except Exception as error:  # noqa: BLE001  as in `offer`
            self.fail(error)
            return
        shapes = [(batch.samples, batch.single) for batch in batches]
        heapq.heappush(self._queue, _Item(positions[0], sent, shapes, positions))

    def _refused(self, item: _Item, response: oip.ModelStreamInferResponse, now_s: float) -> Reconnect | None:
        parameters = response.infer_response.parameters
        trailing = {
            name: text_parameter(parameters, name.replace("-", "_"))
            for name in ("tessera-reason", "tessera-remedy", "tessera-tensor")
        }
        error = refusal(RpcFailed("UNKNOWN", response.error_message, trailing), request_id=item.sent.request_id)
        error.status = None  # an item of a stream has no status of its own
        lane = item.lane or 0
        if session_lost(error) and lane not in self._reopened:
            self._reopened.add(lane)
            self.release(lane)
            return Reconnect(0.0, session_lost=True)
        pause_s = self._core.policy.pause_s(item.attempts, self._core.chance()) if retryable(error) else None
        if pause_s is None:
            del self._open[item.sent.request_id]
            self._settle(item.positions, error)
        else:
            self._hold_until_s = max(self._hold_until_s, now_s + pause_s)
            self._requeue([item])
        return None

    def _requeue(self, items: Iterable[_Item]) -> None:
        for item in items:
            del self._open[item.sent.request_id]
            item.lane = None
            if item.position < self._limit:
                heapq.heappush(self._queue, item)

    def _settle(self, positions: list[int], error: ClientError) -> None:
        for position in positions:
            self._done[position] = error
        if self._yields_errors:
            return
        self._limit = min(self._limit, positions[0])
        self._queue = [item for item in self._queue if item.position < self._limit]
        heapq.heapify(self._queue)
        self._filling = [(position, batch) for position, batch in self._filling if position < self._limit]
        self._flush()
