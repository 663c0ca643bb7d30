"""The batcher: who shares a batch, who is charged, and what happens to those who go away."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from structlog.testing import capture_logs

from support import keys
from support.clock import ManualClock
from support.ledger import MemoryLedger
from support.models import a_manifest
from tessera.keystore.errors import Conflict, Exhausted, SealedError, TesseraError, Unavailable
from tessera.keystore.identity import Identity
from tessera.keystore.licence import Terms
from tessera.keystore.package import Manifest, TensorSpec
from tessera.keystore.usage import UsageRecord, sign_receipt, verify_receipt
from tessera.server.admission import Account, Offer, Permit, Session, SessionToken
from tessera.server.admission.accounts import Reservation
from tessera.server.config import Limits
from tessera.server.engine import Answer, Batcher, Executor, Job
from tessera.server.metering import Meter
from tessera.server.metrics import Metrics

Array = npt.NDArray[Any]
OTHER = Identity.generate("buyer", "Bob")
MAX_BATCH = 8
MANIFEST = a_manifest((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),), max_batch=MAX_BATCH)


class Doubler:
    """y = 2 x. Remembers its batches; waits in `go` when the test has cleared it; raises `fault` when set."""

    manifest: Manifest = MANIFEST
    max_batch = MAX_BATCH
    device_bytes = 0

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()
        self.fault: Exception | None = None

    def run(self, parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """Double."""
        self.batches.append([len(part["x"]) for part in parts])
        self.entered.release()
        self.go.wait(10)
        if self.fault is not None:
            raise self.fault
        return {"y": 2 * np.concatenate([part["x"] for part in parts])}

    def erase(self) -> None:
        """Nothing to erase."""


class Bench:
    """One batcher with a real executor, meter and permits."""

    def __init__(self, limits: Limits, *, threads: int = 1) -> None:
        self.clock = ManualClock()
        self.program = Doubler()
        self.ledger = MemoryLedger(keys.NODE.key_id)
        self.metrics = Metrics()
        self.sealed = False
        self.executor = Executor("cpu", threads=threads)
        self.meter = Meter(self.ledger.append_usage, self._sign, metrics=self.metrics)
        self.batcher = Batcher(
            self.program,
            1,
            executor=self.executor,
            meter=self.meter,
            limits=limits,
            metrics=self.metrics,
            clock=self.clock,
        )
        self.settled: dict[str, bool] = {}
        self._sessions = {"ada": a_session(self.clock), "bob": a_session(self.clock, OTHER)}

    def job(
        self,
        request_id: str,
        samples: int = 1,
        *,
        value: float = 1.0,
        digest: str = "0" * 64,
        deadline_s: float | None = None,
        receipt: bool = False,
        buyer: str = "ada",
    ) -> Job:
        """Return a job whose permit notes in `settled` whether it was charged."""
        permit = Permit(self._sessions[buyer], samples, request_id, None, self._on_settled)
        inputs = {"x": np.full(samples, value, np.float32)}
        return Job(permit, inputs, samples, request_id, digest, 4 * samples, deadline_s, receipt)

    async def busy(self) -> None:
        """Wait until the device is inside one more batch."""
        assert await asyncio.to_thread(self.program.entered.acquire, True, 5)

    async def close(self) -> None:
        """Let everything run out."""
        self.program.go.set()
        self.ledger.gate.set()
        await self.batcher.close(Unavailable("closing", reason="draining"))
        await asyncio.to_thread(self.executor.close)
        await asyncio.to_thread(self.meter.close)

    def _on_settled(self, permit: Permit, reservation: Reservation | None, charged: bool) -> None:
        del reservation
        assert permit.request_id not in self.settled
        self.settled[permit.request_id] = charged

    def _sign(self, record: UsageRecord) -> str:
        if self.sealed:
            raise SealedError("the store is sealed")
        return sign_receipt(record, keys.NODE)


def a_session(clock: ManualClock, buyer: Identity = keys.BUYER) -> Session:
    """Return a session that admission would have made."""
    licence = keys.licence(Terms("digits"), buyer=buyer)
    account = Account(licence.licence_id, licence.terms, used=0, max_batch=MAX_BATCH, now_s=clock.now_s())
    offer = Offer(
        package_id=MANIFEST.package_id,
        issuer_id=MANIFEST.issuer_id,
        model="digits",
        version=1,
        tiers=frozenset({1}),
        input_key_id=None,
        max_batch=MAX_BATCH,
    )
    return Session("s-1", SessionToken(b"token"), licence, offer, 1, account, 1e12, 1e12)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """A bench with room for 37 samples, 32 of one buyer."""
    made = Bench(Limits(max_queue_samples=37))
    yield made
    await made.close()


async def test_an_idle_device_starts_at_once_and_the_next_batch_gathers(bench: Bench) -> None:
    """The first request runs alone; what arrives meanwhile shares the next batch, in order, with its own answers."""
    bench.program.go.clear()
    first = bench.batcher.enqueue(bench.job("a", value=1))
    await bench.busy()
    rest = [bench.batcher.enqueue(bench.job(name, 2, value=value)) for name, value in (("b", 2.0), ("c", 3.0))]
    bench.program.go.set()
    answers = await asyncio.gather(first, *rest)
    assert bench.program.batches == [[1], [2, 2]]
    assert [answer.outputs["y"].tolist() for answer in answers] == [[2.0], [4.0, 4.0], [6.0, 6.0]]
    assert [answer.record.request_id for answer in answers] == ["a", "b", "c"]
    assert bench.settled == {"a": True, "b": True, "c": True}


async def test_a_request_is_never_split_and_never_overtaken(bench: Bench) -> None:
    """A request that does not fit waits for the next batch, and smaller ones behind it do not pass."""
    bench.program.go.clear()
    futures = [bench.batcher.enqueue(bench.job("a"))]
    await bench.busy()
    futures += [bench.batcher.enqueue(bench.job(f"r{i}", size)) for i, size in enumerate((5, 4, 1, 8))]
    bench.program.go.set()
    await asyncio.gather(*futures)
    assert bench.program.batches == [[1], [5], [4, 1], [8]]


async def test_device_time_is_shared_by_samples(bench: Bench) -> None:
    """The records of one batch carry its time in proportion to their samples, rounded down."""
    bench.program.go.clear()
    futures = [bench.batcher.enqueue(bench.job("a"))]
    await bench.busy()
    futures += [bench.batcher.enqueue(bench.job("b", 1)), bench.batcher.enqueue(bench.job("c", 3))]
    bench.program.go.set()
    _, one, three = [answer.record for answer in await asyncio.gather(*futures)]
    assert 0 <= three.compute_us - 3 * one.compute_us <= 3
    assert (one.samples, three.samples, one.bytes_in, three.bytes_in) == (1, 3, 4, 12)


async def test_no_answer_before_its_usage_is_durable_and_the_device_goes_on(bench: Bench) -> None:
    """While the ledger writes batch one its answer waits, and batch two is already computed."""
    bench.ledger.gate.clear()
    first = bench.batcher.enqueue(bench.job("a"))
    await bench.busy()
    second = bench.batcher.enqueue(bench.job("b"))
    await bench.busy()
    assert not first.done()
    assert not second.done()
    assert bench.settled == {}
    bench.ledger.gate.set()
    await asyncio.gather(first, second)
    assert bench.settled == {"a": True, "b": True}


async def test_a_full_queue_refuses_and_gives_the_permit_back(bench: Bench) -> None:
    """Samples in the batcher's care are bounded; the refused request is not charged and room comes back."""
    bench.program.go.clear()
    futures = [bench.batcher.enqueue(bench.job(f"r{i}", 8)) for i in range(4)]
    with pytest.raises(Exhausted) as caught:
        bench.batcher.enqueue(bench.job("over"))
    assert caught.value.reason == "queue-full"
    assert bench.settled == {"over": False}
    bench.program.go.set()
    await asyncio.gather(*futures)
    assert (await bench.batcher.submit(bench.job("again"))).record.request_id == "again"


async def test_a_buyers_backlog_keeps_no_other_buyer_out_or_waiting(bench: Bench) -> None:
    """Whose requests fill the queue is refused; another's is let in, and starts with the next batch."""
    bench.program.go.clear()
    futures = [bench.batcher.enqueue(bench.job("ada-0", 1, value=1))]
    await bench.busy()
    futures += [bench.batcher.enqueue(bench.job(f"ada-{number}", 4)) for number in range(1, 8)]
    with pytest.raises(Exhausted):
        bench.batcher.enqueue(bench.job("ada-over", 4))
    futures.append(bench.batcher.enqueue(bench.job("bob-0", 2, value=3, buyer="bob")))
    bench.program.go.set()
    answers = await asyncio.gather(*futures)
    assert bench.program.batches[:2] == [[1], [4, 2]]
    assert float(answers[-1].outputs["y"][0]) == 6.0
    assert bench.settled.pop("ada-over") is False
    assert all(bench.settled.values())


async def test_a_caller_who_goes_away_before_the_start_is_not_charged(bench: Bench) -> None:
    """Cancelling a waiting request drops it: not computed, not recorded, released."""
    bench.program.go.clear()
    first = bench.batcher.enqueue(bench.job("a"))
    await bench.busy()
    gone = asyncio.create_task(bench.batcher.submit(bench.job("gone")))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    bench.program.go.set()
    await first
    assert (await bench.batcher.submit(bench.job("b"))).record.sequence == 2
    assert bench.program.batches == [[1], [1]]
    assert bench.settled == {"a": True, "gone": False, "b": True}


async def test_a_caller_who_goes_away_takes_the_tensors_along(bench: Bench) -> None:
    """While the device is busy, what comes and goes leaves nothing: the cap on waiting samples is one on memory."""
    bench.program.go.clear()
    running = bench.batcher.enqueue(bench.job("a"))
    await bench.busy()
    job = bench.job("b")
    tensor = weakref.ref(job.inputs["x"])
    bench.batcher.enqueue(job)
    assert bench.batcher.withdraw(job)
    del job
    assert tensor() is None
    bench.program.go.set()
    await running


async def test_a_caller_who_goes_away_after_the_start_is_charged_once_and_can_ask_again(bench: Bench) -> None:
    """What was computed is recorded; the same request later is answered under that record."""
    bench.program.go.clear()
    task = asyncio.create_task(bench.batcher.submit(bench.job("a")))
    await bench.busy()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    bench.program.go.set()
    await bench.batcher.submit(bench.job("b"))
    assert bench.settled == {"a": True, "b": True}
    bench.settled.clear()
    again = await bench.batcher.submit(bench.job("a"))
    assert again.replayed
    assert again.record.sequence == 1
    assert bench.settled == {"a": False}


async def test_a_deadline_that_passes_in_the_queue_costs_nothing(bench: Bench) -> None:
    """An expired request is not computed and fails with deadline-exceeded; a later one is served."""
    bench.program.go.clear()
    first = bench.batcher.enqueue(bench.job("a"))
    await bench.busy()
    late = bench.batcher.enqueue(bench.job("late", deadline_s=bench.clock.monotonic_s() + 1))
    bench.clock.advance(1)
    bench.program.go.set()
    await first
    with pytest.raises(Unavailable) as caught:
        await late
    assert caught.value.reason == "deadline-exceeded"
    assert bench.settled == {"a": True, "late": False}
    assert bench.program.batches == [[1]]


async def test_a_retry_is_answered_and_not_charged_again(bench: Bench) -> None:
    """Same id, same payload: an answer with the first record; the permit is released."""
    first = await bench.batcher.submit(bench.job("a"))
    bench.settled.clear()
    second = await bench.batcher.submit(bench.job("a"))
    assert (first.replayed, second.replayed) == (False, True)
    assert second.record == first.record
    assert second.outputs["y"].tolist() == [2.0]
    assert bench.settled == {"a": False}


async def test_the_same_id_with_another_payload_is_refused(bench: Bench) -> None:
    """Conflict, nothing charged, and the neighbours in the batch are untouched."""
    await bench.batcher.submit(bench.job("a"))
    bench.settled.clear()
    bench.program.go.clear()
    blocker = bench.batcher.enqueue(bench.job("x"))
    await bench.busy()
    await bench.busy()
    pair = [bench.batcher.enqueue(bench.job("a", digest="1" * 64)), bench.batcher.enqueue(bench.job("b"))]
    bench.program.go.set()
    conflict, answer = await asyncio.gather(*pair, return_exceptions=True)
    await blocker
    assert isinstance(conflict, Conflict)
    assert conflict.reason == "request-id-conflict"
    counted = bench.batcher.statistics
    assert (counted.success.count, counted.samples, counted.failures) == (3, 3, 1)  # the refused one is no success too
    assert (counted.executions, counted.batches[2].count) == (3, 1)
    assert isinstance(answer, Answer)
    assert bench.settled == {"x": True, "a": False, "b": True}


async def test_a_ledger_that_fails_charges_nobody_and_a_retry_counts_once(bench: Bench) -> None:
    """Unavailable for the whole batch, permits released; the retry after recovery is charged once."""
    bench.ledger.fault = Unavailable("disk full", reason="ledger-unavailable")
    with pytest.raises(Unavailable) as caught:
        await bench.batcher.submit(bench.job("a"))
    assert caught.value.reason == "ledger-unavailable"
    assert bench.settled == {"a": False}
    bench.ledger.fault = None
    bench.settled.clear()
    assert not (await bench.batcher.submit(bench.job("a"))).replayed
    assert bench.settled == {"a": True}
    assert len(bench.ledger.records) == 1


async def test_a_program_that_fails_is_our_fault_and_the_next_batch_runs(bench: Bench) -> None:
    """Torch's words stay inside: internal, nothing charged or recorded, the device lives."""
    bench.program.fault = RuntimeError("secret detail")
    with capture_logs() as logs, pytest.raises(TesseraError) as caught:
        await bench.batcher.submit(bench.job("a"))
    assert caught.value.reason == "internal"
    assert "secret" not in str(caught.value)
    (told,) = logs  # the operator's only trace of it: what it was and where, not what it said
    assert (told["event"], told["error"], told["request_ids"]) == ("batch failed", "RuntimeError", ["a"])
    assert told["where"][-1].endswith(" run")
    assert "secret" not in str(told)
    assert bench.settled == {"a": False}
    bench.program.fault = None
    assert (await bench.batcher.submit(bench.job("b"))).record.sequence == 1


async def test_receipts_are_signed_only_when_asked_for(bench: Bench) -> None:
    """Without the wish there is none, and a sealed store does not matter; with it the receipt verifies."""
    answer = await bench.batcher.submit(bench.job("a", receipt=True))
    assert answer.receipt is not None
    assert verify_receipt(answer.receipt, keys.NODES) == answer.record
    bench.sealed = True
    assert (await bench.batcher.submit(bench.job("b"))).receipt is None
    with pytest.raises(SealedError):
        await bench.batcher.submit(bench.job("c", receipt=True))


async def test_close_fails_what_waits_and_finishes_what_runs(bench: Bench) -> None:
    """The running batch is answered and charged; waiting and new requests are refused with the given error."""
    bench.program.go.clear()
    running = bench.batcher.enqueue(bench.job("a"))
    await bench.busy()
    waiting = bench.batcher.enqueue(bench.job("b"))
    closing = asyncio.create_task(bench.batcher.close(Unavailable("bye", reason="model-not-ready")))
    await asyncio.sleep(0)
    bench.program.go.set()
    await closing
    assert (await running).record.request_id == "a"
    with pytest.raises(Unavailable) as caught:
        await waiting
    assert caught.value.reason == "model-not-ready"
    with pytest.raises(Unavailable):
        bench.batcher.enqueue(bench.job("c"))
    assert bench.settled == {"a": True, "b": False, "c": False}


async def test_two_variants_take_turns_on_one_device(bench: Bench) -> None:
    """A variant with a long queue does not keep another one from its turn."""
    other = Batcher(
        bench.program,
        2,
        executor=bench.executor,
        meter=bench.meter,
        limits=Limits(),
        metrics=bench.metrics,
        clock=bench.clock,
    )
    bench.program.go.clear()
    futures = [bench.batcher.enqueue(bench.job("a"))]
    await bench.busy()
    futures += [bench.batcher.enqueue(bench.job(f"long{i}", 8)) for i in range(3)]
    futures.append(other.enqueue(bench.job("other", 3)))
    bench.program.go.set()
    await asyncio.gather(*futures)
    assert bench.program.batches == [[1], [3], [8], [8], [8]]
    await other.close(Unavailable("bye"))


async def test_every_permit_is_settled_whatever_happens(bench: Bench) -> None:
    """A seeded mix of sizes, cancellations, deadlines and failures leaves no permit open and no room lost."""
    random = np.random.default_rng(7)
    tasks = []
    for index in range(120):
        late = bench.clock.monotonic_s() - 1 if random.random() < 0.2 else None
        job = bench.job(f"r{index}", int(random.integers(1, 9)), deadline_s=late)
        tasks.append(asyncio.create_task(bench.batcher.submit(job)))
        if random.random() < 0.3:
            await asyncio.sleep(0)
            tasks[int(random.integers(0, len(tasks)))].cancel()
        if random.random() < 0.2:
            bench.ledger.fault = None if bench.ledger.fault else Unavailable("no", reason="ledger-unavailable")
    bench.ledger.fault = None
    await asyncio.gather(*tasks, return_exceptions=True)
    await bench.batcher.submit(bench.job("last", MAX_BATCH))
    started = {index for index in range(120) if f"r{index}" in bench.settled}
    assert sum(bench.settled.values()) == len(bench.ledger.records)
    assert len(bench.settled) == len(started) + 1
    futures = [bench.batcher.enqueue(bench.job(f"full{i}", 8)) for i in range(4)]
    await asyncio.gather(*futures)


@pytest.fixture
async def wide_bench() -> AsyncIterator[Bench]:
    """A bench on two threads, so with two lanes."""
    made = Bench(Limits(max_queue_samples=72), threads=2)
    yield made
    await made.close()


async def test_a_second_lane_starts_when_a_full_batch_waits(wide_bench: Bench) -> None:
    """Less than a batch waits for the first lane; a whole one runs beside it, and every answer is its own."""
    bench = wide_bench
    bench.program.go.clear()
    futures = [bench.batcher.enqueue(bench.job("first", value=1))]
    await bench.busy()
    futures.append(bench.batcher.enqueue(bench.job("few", MAX_BATCH - 1, value=2)))
    assert bench.program.batches == [[1]]
    futures.append(bench.batcher.enqueue(bench.job("last", 1, value=3)))
    await bench.busy()
    assert bench.program.batches == [[1], [MAX_BATCH - 1, 1]]
    bench.program.go.set()
    answers = [await future for future in futures]
    assert [float(answer.outputs["y"][0]) for answer in answers] == [2, 4, 6]
    assert bench.settled == {"first": True, "few": True, "last": True}


async def test_lanes_keep_the_order_in_which_requests_start(wide_bench: Bench) -> None:
    """However many lanes work, nothing starts after what came later, and the ledger holds each request once."""
    bench = wide_bench
    futures = [bench.batcher.enqueue(bench.job(f"r{n}", 1 + n % 3, value=n)) for n in range(30)]
    answers = [await future for future in futures]
    assert [float(answer.outputs["y"][0]) for answer in answers] == [2.0 * n for n in range(30)]
    assert sorted(answer.record.sequence for answer in answers) == list(range(1, 31))
