"""The stream machine: whatever happens to lanes and items, answers come in order, once, or the failure is named."""

import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.buyer import images, names, refused
from support.stream_bench import Bench, frames
from tessera.client import (
    Answer,
    DeadlineExceeded,
    InvalidTensor,
    ModelUnknown,
    ProtocolError,
    QuotaExhausted,
    ReceiptInvalid,
    ServerFault,
    ServerUnavailable,
    SessionUnknown,
    Unreachable,
)
from tessera.client._pipeline import Reconnect
from tessera.client._refusals import RpcFailed
from tessera.client._request import Prepared
from tessera.keystore.errors import ApiMisuse
from tessera.oip.v1 import inference_pb2 as oip


def popped(bench: Bench) -> Answer:
    """Return the next outcome, which must be an answer."""
    outcome = bench.pipeline.pop()
    assert isinstance(outcome, Answer)
    return outcome


def test_answers_come_in_the_order_of_the_frames() -> None:
    """An answer that overtakes another waits for it."""
    bench, given = Bench(), frames(3)
    bench.offer(*given)
    sent = [bench.take(lane) for lane in (0, 1, 0)]
    bench.answer(sent[2], 0)
    bench.answer(sent[1], 1)
    assert bench.pipeline.pop() is None
    bench.answer(sent[0], 0)
    for frame in given:
        assert (popped(bench).output == bench.expected(frame)).all()
    assert bench.pipeline.complete
    assert bench.pipeline.exhausted


def test_the_window_holds_frames_back() -> None:
    """No more than `window` times `pack` frames are between caller in and caller out."""
    bench = Bench(window=2)
    assert bench.pipeline.room
    for frame in frames(2):
        bench.pipeline.offer(frame)
    assert not bench.pipeline.room
    sent = bench.take()
    bench.answer(sent)
    assert not bench.pipeline.room
    popped(bench)
    assert bench.pipeline.room


@pytest.mark.parametrize("pack", [1, 2])
def test_a_frame_is_let_go_once_its_request_is_made(pack: int) -> None:
    """A window of large frames is in memory once, as the requests that may have to be sent again."""
    bench = Bench(pack=pack)
    own = [frame.copy() for frame in frames(2)]
    kept = [weakref.ref(frame) for frame in own]
    while own:
        bench.pipeline.offer(own.pop())
    bench.take()
    assert [ref() for ref in kept] == [None, None]


def test_packed_frames_share_a_request_and_are_split_again() -> None:
    """Five frames at two a request are three requests; each frame has its own answer and the request's receipt."""
    bench, given = Bench(pack=2, window=8), frames(5)
    bench.offer(*given)
    for size in (2, 2, 1):
        sent = bench.take()
        assert sent.samples == size
        bench.answer(sent)
    answers = [popped(bench) for _ in given]
    assert all((a.output == bench.expected(f)).all() for a, f in zip(answers, given, strict=True))
    assert answers[0].receipt == answers[1].receipt
    assert answers[0].receipt is not None
    assert answers[0].receipt.samples == 2


def test_only_single_samples_are_packed() -> None:
    """A frame with a batch axis cannot be, and is refused at its place."""
    bench = Bench(pack=2)
    bench.offer(images(2))
    with pytest.raises(InvalidTensor, match="only single samples"):
        bench.pipeline.pop()


def test_a_batch_is_a_frame_too() -> None:
    """Without packing a frame may hold up to the model's largest batch, and keeps its axis."""
    bench = Bench()
    bench.offer(images(8))
    bench.answer(bench.take())
    assert popped(bench).output.shape == (8, 10)
    other = Bench()
    other.offer(images(9))
    with pytest.raises(InvalidTensor, match="exceeds"):
        other.pipeline.pop()


@pytest.mark.parametrize("options", [{"window": 0}, {"window": 5000}, {"pack": 0}, {"pack": 9}, {"on_error": "ignore"}])
def test_options_out_of_range_are_the_callers_fault(options: dict[str, Any]) -> None:
    """They are refused before a frame is read."""
    with pytest.raises(ApiMisuse):
        Bench(**options)


def test_a_bad_frame_raises_at_its_place_and_nothing_behind_it_is_sent() -> None:
    """The frames before are sent and answered; later ones are neither read nor sent."""
    bench, good = Bench(pack=2), frames(1)[0]
    bench.pipeline.offer(good)
    bench.pipeline.offer(np.zeros((1, 8, 9), np.uint8))
    assert not bench.pipeline.wants_frames
    bench.pipeline.end()
    sent = bench.take()
    assert sent.samples == 1
    assert not bench.pipeline.complete
    bench.answer(sent)
    assert bench.pipeline.complete
    popped(bench)
    with pytest.raises(InvalidTensor):
        bench.pipeline.pop()


def test_a_refused_item_raises_at_its_place() -> None:
    """Earlier answers are given first; requests that were not sent yet stay unsent."""
    bench = Bench()
    bench.offer(*frames(4))
    first, second = bench.take(), bench.take()
    bench.refuse(second, "quota-exhausted")
    assert bench.pipeline.take(0, 0.0) is None
    bench.answer(first)
    popped(bench)
    with pytest.raises(QuotaExhausted) as caught:
        bench.pipeline.pop()
    assert (caught.value.request_id, caught.value.status) == (second.request_id, None)


def test_nothing_behind_a_failed_frame_is_sent_again() -> None:
    """When the lane breaks afterwards, what was on its way behind the failed frame is dropped."""
    bench = Bench()
    bench.offer(*frames(3))
    first = bench.take()
    bench.take()
    bench.refuse(first, "quota-exhausted")
    bench.pipeline.release(0)
    assert bench.pipeline.complete
    assert bench.pipeline.broken(0, refused("UNAVAILABLE")) is None


def test_errors_can_be_yielded_instead() -> None:
    """With `on_error="yield"` a refused frame is one outcome among others, for every frame of its request."""
    bench = Bench(on_error="yield", pack=2, window=8)
    bench.offer(*frames(2), np.zeros((9, 9), np.uint8), *frames(1))
    bench.refuse(bench.take(), "rate-limited")
    bench.answer(bench.take())
    outcomes = [bench.pipeline.pop() for _ in range(4)]
    assert names(outcomes) == ["RateLimited", "RateLimited", "InvalidTensor", "Answer"]
    assert bench.pipeline.exhausted


def test_a_broken_lane_is_opened_again_and_its_items_sent_again() -> None:
    """Same ids, same bytes, in order, on whichever lane comes first; those of other lanes are left alone."""
    bench = Bench()
    bench.offer(*frames(4))
    sent = [bench.take(lane) for lane in (0, 1, 0, 1)]
    again = bench.pipeline.broken(0, refused("UNAVAILABLE"))
    assert again is not None
    assert again.pause_s == pytest.approx(0.075)
    assert [bench.take(1).request_id, bench.take(0).request_id] == [sent[0].request_id, sent[2].request_id]
    assert bench.pipeline.take(0, 0.0) is None


def test_a_lane_that_ends_early_is_opened_again() -> None:
    """A server that ends the stream in good order, with answers missing, is treated as one that is going away."""
    bench = Bench()
    bench.offer(*frames(1))
    bench.take()
    assert isinstance(bench.pipeline.broken(0, None), Reconnect)


def test_a_lane_without_work_needs_no_reconnection() -> None:
    """When everything is answered, the end of a lane is just that."""
    bench = Bench()
    bench.offer(*frames(1))
    bench.answer(bench.take())
    assert bench.pipeline.broken(0, None) is None
    assert bench.pipeline.broken(1, refused("UNAVAILABLE")) is None


def test_reconnections_come_to_an_end() -> None:
    """Without any answer in between, the retries are used up and the outage is raised."""
    bench = Bench(retries=2)
    bench.offer(*frames(1))
    bench.take()
    results = [bench.pipeline.broken(0, refused("UNAVAILABLE")) for _ in range(3)]
    assert [result is None for result in results] == [False, False, True]
    with pytest.raises(Unreachable):
        bench.pipeline.pop()


def test_an_answer_renews_the_patience_with_a_lane() -> None:
    """A long stream may be interrupted many times, as long as it gets on."""
    bench = Bench(retries=1, window=50)
    bench.offer(*frames(20))
    for _ in range(20):
        bench.answer(bench.take())
        assert bench.pipeline.complete or bench.pipeline.broken(0, refused("UNAVAILABLE")) is not None
    assert bench.pipeline.complete


def test_a_refusal_that_ends_a_stream_is_final() -> None:
    """A licence that expires is not an outage."""
    bench = Bench()
    bench.offer(*frames(1))
    bench.take()
    assert bench.pipeline.broken(0, refused("PERMISSION_DENIED", "model-unknown")) is None
    with pytest.raises(ModelUnknown):
        bench.pipeline.pop()


@pytest.mark.parametrize("as_item", [True, False])
def test_a_lost_session_is_reopened_once_a_lane(as_item: bool) -> None:
    """Whether one item or the whole call says so; a second time without progress it is an error."""
    bench = Bench()
    bench.offer(*frames(2))
    first = bench.take()
    bench.take()

    def lose() -> Reconnect | None:
        if as_item:
            return bench.refuse(first, "session-unknown")
        return bench.pipeline.broken(0, refused("UNAUTHENTICATED", "session-unknown"))

    assert lose() == Reconnect(0.0, session_lost=True)
    assert bench.take().request_id == first.request_id
    assert lose() is None
    with pytest.raises(SessionUnknown):
        bench.pipeline.pop()


@pytest.mark.parametrize(("status", "doubtful"), [("INTERNAL", True), ("UNAVAILABLE", False)])
def test_an_error_that_may_hide_another_puts_the_session_in_doubt(status: str, doubtful: bool) -> None:
    """grpc.aio shows a stream that was refused while it wrote its first message as an inner error of its own."""
    bench = Bench()
    bench.offer(*frames(2))
    bench.take()
    again = bench.pipeline.broken(0, RpcFailed(status, "Internal error from Core"))
    assert again is not None
    assert (again.session_lost, again.session_doubtful) == (False, doubtful)


def test_what_a_lane_took_too_late_is_released() -> None:
    """A request taken for a call that is already over goes back into the queue."""
    bench = Bench()
    bench.offer(*frames(2))
    first = bench.take()
    assert bench.refuse(first, "session-expired") == Reconnect(0.0, session_lost=True)
    late = bench.take()
    bench.pipeline.release(0)
    assert bench.take(1).request_id == late.request_id


def test_a_busy_server_is_given_time() -> None:
    """An item refused because the queue is full goes out again, first, after a pause that holds all items back."""
    bench = Bench()
    bench.offer(*frames(2))
    first = bench.take()
    assert bench.refuse(first, "queue-full", now_s=5.0) is None
    assert bench.pipeline.take(0, 5.0) is None
    hold_s = bench.pipeline.hold_s(5.0)
    assert hold_s is not None
    assert hold_s == pytest.approx(0.075)
    assert bench.take(now_s=5.0 + hold_s).request_id == first.request_id


def test_patience_with_a_busy_server_ends() -> None:
    """After the retries the item's refusal stands."""
    bench = Bench(retries=1)
    bench.offer(*frames(1))
    bench.refuse(bench.take(), "draining")
    bench.refuse(bench.take(now_s=9.0), "draining")
    with pytest.raises(ServerUnavailable):
        bench.pipeline.pop()


def test_a_silent_server_is_a_deadline() -> None:
    """The oldest request on its way decides; nothing on its way means waiting for the caller's frames."""
    bench = Bench()
    assert bench.pipeline.patience_s(1000.0) is None
    bench.pipeline.offer(frames(1)[0])
    bench.take(now_s=1000.0)
    assert bench.pipeline.patience_s(1004.0) == 6.0
    assert bench.pipeline.patience_s(1010.0) == 0.0
    bench.pipeline.give_up()
    with pytest.raises(DeadlineExceeded):
        bench.pipeline.pop()


def test_the_callers_own_error_comes_after_all_answers() -> None:
    """What the frames iterator raises is raised in its place, unchanged."""
    bench = Bench()
    bench.pipeline.offer(frames(1)[0])
    bench.pipeline.end(KeyError("camera"))
    sent = bench.take()
    assert bench.pipeline.pop() is None
    bench.answer(sent)
    popped(bench)
    assert not bench.pipeline.exhausted
    with pytest.raises(KeyError, match="camera"):
        bench.pipeline.pop()


@pytest.mark.parametrize("pack", [1, 2])
def test_a_frame_that_cannot_be_keyed_ends_the_stream(monkeypatch: pytest.MonkeyPatch, pack: int) -> None:
    """Out of memory, for instance: the error is raised after the answers before it, and not waited out."""
    bench, given = Bench(pack=pack), frames(2 * pack)

    def full(*_: object) -> Any:
        raise MemoryError

    for frame in given[:pack]:
        bench.pipeline.offer(frame)
    bench.answer(bench.take())
    monkeypatch.setattr(np, "ascontiguousarray" if pack == 1 else "concatenate", full)
    bench.offer(*given[pack:])
    monkeypatch.undo()
    assert bench.pipeline.complete
    for _ in range(pack):
        popped(bench)
    with pytest.raises(MemoryError):
        bench.pipeline.pop()


def test_an_answer_nobody_asked_for_ends_the_stream() -> None:
    """A wrong id, or the id of a request on another lane, is a broken server."""
    bench = Bench()
    bench.offer(*frames(1))
    bench.answer(bench.take(lane=0), lane=1)
    with pytest.raises(ProtocolError):
        bench.pipeline.pop()


def test_an_error_without_an_id_is_the_oldest_items() -> None:
    """A request that the server could not even decode is refused in its turn."""
    bench = Bench()
    bench.offer(*frames(2))
    sent = bench.take()
    bench.take()
    bench.pipeline.receive(0, oip.ModelStreamInferResponse(error_message="internal: internal error"), 0.0)
    with pytest.raises(ServerFault) as caught:
        bench.pipeline.pop()
    assert caught.value.request_id == sent.request_id


def test_a_stream_answers_receipts_are_checked_too() -> None:
    """A missing receipt is refused at the frame's place."""
    bench = Bench()
    bench.offer(*frames(1))
    sent = bench.take()
    bench.pipeline.receive(0, oip.ModelStreamInferResponse(infer_response=bench.node.inferred(sent.message)), 0.0)
    with pytest.raises(ReceiptInvalid):
        bench.pipeline.pop()


@given(data=st.data(), count=st.integers(0, 12), lanes=st.integers(1, 3), pack=st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_no_frame_is_lost_doubled_or_swapped(data: st.DataObject, count: int, lanes: int, pack: int) -> None:
    """Under any interleaving of answers, outages and busy servers each frame has its own answer, in order."""
    bench, given_frames = Bench(window=5, pack=pack, retries=100), frames(count)
    lost = [refused("UNAVAILABLE"), RpcFailed("UNAVAILABLE", "Connection reset"), None]
    waiting: list[tuple[int, Prepared]] = []
    bytes_by_id: dict[str, bytes] = {}
    outputs: list[Any] = []
    left, now_s = list(given_frames), 0.0
    ended = False
    while not bench.pipeline.exhausted:
        now_s += 100.0
        while left and bench.pipeline.room:
            bench.pipeline.offer(left.pop(0))
        if not left and not ended:
            bench.pipeline.end()
            ended = True
        lane = data.draw(st.integers(0, lanes - 1))
        while (sent := bench.pipeline.take(lane, now_s)) is not None:
            waiting.append((lane, sent))
            assert bytes_by_id.setdefault(sent.request_id, sent.message.SerializeToString()) is not None
            assert bytes_by_id[sent.request_id] == sent.message.SerializeToString()
        if waiting:
            on, sent = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            action = data.draw(st.sampled_from(["answer", "answer", "answer", "busy", "break"]))
            if action == "answer":
                bench.answer(sent, on, now_s)
            elif action == "busy":
                bench.refuse(sent, "queue-full", on, now_s)
            else:
                bench.pipeline.broken(on, data.draw(st.sampled_from(lost)))
                waiting = [(other, item) for other, item in waiting if other != on]
        while (outcome := bench.pipeline.pop()) is not None:
            assert isinstance(outcome, Answer)
            outputs.append(outcome.output)
    assert len(outputs) == count
    assert all((out == bench.expected(frame)).all() for out, frame in zip(outputs, given_frames, strict=True))
