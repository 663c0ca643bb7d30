"""Work-conserving batches for one set of weights (rules W-53 to W-58).

A batch starts the moment the device is free and takes whatever waits at that moment, buyers by turns (`turns`), whole
requests only; the next one gathers meanwhile. Nothing waits for company, so one caller alone sees the latency of its
own request. Where the device has a second lane, a batch runs beside another once a full one waits.

Life of a job, and who moves it on:

- the event loop enqueues it (WAITING) and may withdraw it, which gives its permit back (WITHDRAWN);
- the device's thread takes it (TAKEN) or finds its deadline passed (EXPIRED), computes, and hands the batch's usage to
  the meter; while that is being made durable the device computes the next batch;
- back on the event loop permits are charged or released and futures resolved. Permits are touched on the loop only.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import numpy.typing as npt
import structlog

from tessera.keystore.errors import Conflict, Exhausted, TesseraError, Unavailable
from tessera.keystore.usage import UsageDraft, UsageRecord
from tessera.server.admission import Permit
from tessera.server.clock import Clock
from tessera.server.config import Limits
from tessera.server.engine.executor import Executor
from tessera.server.engine.program import Program
from tessera.server.engine.statistics import Statistics
from tessera.server.engine.turns import Room, Turns
from tessera.server.logs import frames
from tessera.server.metering import Appended, Meter
from tessera.server.metering.meter import Outcome
from tessera.server.metrics import Metrics

Array = npt.NDArray[Any]
SHOWN_IDS: Final = 8
"""So many request ids of a batch that failed stand in the log."""

_log = structlog.get_logger("tessera.batcher")


class _State(Enum):
    WAITING = 1
    TAKEN = 2
    WITHDRAWN = 3
    EXPIRED = 4


@dataclass(slots=True, eq=False)
class Job:
    """One admitted request with checked inputs; its permit is settled by the batcher, exactly once."""

    permit: Permit
    """Charged when the ledger makes a new record of this job, else released."""
    inputs: Mapping[str, Array]
    """Every input of the contract: batch axis first, `samples` long."""
    samples: int
    """Samples in this job, 1 to the package's `max_batch`."""
    request_id: str
    """Unique to the licence; what the ledger recognises a retry by."""
    payload_digest: str
    """64 hexadecimal digits."""
    bytes_in: int
    """Bytes of input tensors."""
    deadline_s: float | None = None
    """Monotonic time after which nobody waits for the answer; None for never."""
    receipt: bool = False
    """Whether the answer carries a signed receipt."""
    future: "asyncio.Future[Answer]" = field(init=False, repr=False)
    _state: _State = field(default=_State.WAITING, init=False, repr=False)
    _queued_ns: int = field(default=0, init=False, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a job gave: outputs with the batch axis first, and the durable record that it was charged under."""

    outputs: Mapping[str, Array]
    record: UsageRecord
    receipt: str | None
    replayed: bool
    """True when the same request was charged before; then `record` is the first one's and nothing was charged now."""


@dataclass(slots=True, eq=False)
class _Batch:
    jobs: list[Job]
    expired: list[Job]
    outputs: dict[str, Array] = field(default_factory=dict)
    started_ns: int = 0
    computed_ns: int = 0


class Batcher:
    """Batches the jobs of one variant (package and tier) on one executor; made and used in one event loop.

    At most `limits.max_queue_samples` samples are in its care at a time: waiting, computing or being committed; one
    buyer never holds so many that another's first request would find no room (`turns.Room`).
    `batch_samples` is where the program works best (`calibration`): a batch stops there, one request may exceed it.
    """

    def __init__(
        self,
        program: Program,
        tier: int,
        *,
        executor: Executor,
        meter: Meter,
        limits: Limits,
        metrics: Metrics,
        clock: Clock,
        batch_samples: int | None = None,
    ) -> None:
        self.program = program
        self.tier = tier
        self.statistics = Statistics()
        self._executor = executor
        self._meter = meter
        self._metrics = metrics
        self._model_metrics = metrics.model(program.manifest.model)
        self._clock = clock
        self._room = Room(limits.max_queue_samples)
        self._batch_samples = min(limits.max_batch_samples, program.max_batch, batch_samples or program.max_batch)
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: Turns[Job] = Turns(_buyer, lambda job: job.samples)
        self._busy = [False] * executor.lanes
        self._closed: TesseraError | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._model_metrics.watch_queue(self._depth)

    def enqueue(self, job: Job) -> "asyncio.Future[Answer]":
        """Queue `job` and return the future of its answer; whatever happens next, the batcher settles the permit.

        Raises `Exhausted` ("queue-full") or `Unavailable` ("model-not-ready", "draining") after releasing the permit.
        The future fails with `Conflict` ("request-id-conflict"), or `Unavailable` when the deadline passed before
        compute or the usage could not be recorded; in each case nothing was charged.
        """
        if self._closed is not None or not self._room.admits(_buyer(job), job.samples):
            job.permit.release()
            if self._closed is not None:
                raise self._closed
            raise Exhausted(
                "the model's queue has no room for more of yours",
                reason="queue-full",
                remedy="send fewer requests at a time",
            )
        future = job.future = self._loop.create_future()
        job._queued_ns = time.perf_counter_ns()
        self._room.enter(_buyer(job), job.samples)
        self._idle.clear()
        with self._lock:
            self._waiting.add(job)
            lane = self._free_lane()
        if lane is not None:
            self._executor.schedule(lambda: self._step(lane), lane=lane)
        return future

    async def submit(self, job: Job) -> Answer:
        """Queue `job` and wait for its answer; cancelling the wait withdraws a job that has not started.

        Raises what `enqueue` and its future raise.
        """
        future = self.enqueue(job)
        try:
            return await future
        except asyncio.CancelledError:
            self.withdraw(job)
            raise

    def withdraw(self, job: Job) -> bool:
        """Take back a job that no device has taken: its permit is released and nothing is charged; True if so.

        A job that has started runs to its end and is charged; its answer can be had by asking again with the same id.
        """
        with self._lock:
            if job._state is not _State.WAITING:
                return False
            job._state = _State.WITHDRAWN
            # Out of the queue at once: its tensors no longer count as waiting, so they must not stay in memory either.
            self._waiting.remove(job)
        self._settle(job, charge=False)
        job.future.cancel()
        return True

    async def close(self, error: TesseraError) -> None:
        """Refuse new jobs with `error`, fail those waiting with it, and return once those taken are settled."""
        if self._closed is None:
            self._closed = error
            self._model_metrics.forget_queue(self._depth)
        with self._lock:
            stopped = self._waiting.clear()
            for job in stopped:
                job._state = _State.WITHDRAWN
        for job in stopped:
            self._fail(job, error)
        await self._idle.wait()

    def _depth(self) -> int:
        return self._waiting.waiting_samples

    # -- in the device's thread ------------------------------------------------------------------------------------

    def _step(self, lane: int) -> bool:
        """Take one batch and run it; True while `lane` is wanted. A step of the executor: must not raise."""
        batch = self._take()
        if batch.jobs:
            self._compute(batch)
        elif batch.expired:
            self._post(self._drop_expired, batch)
        with self._lock:
            self._busy[lane] = self._pays(lane)
            return self._busy[lane]

    def _pays(self, lane: int) -> bool:
        """Whether what waits is worth running `lane`: anything is worth the first, only a full batch a further one."""
        return self._waiting.waiting_samples >= self._batch_samples if lane else bool(self._waiting)

    def _free_lane(self) -> int | None:
        """Take the first idle lane that pays, and return it."""
        for lane, busy in enumerate(self._busy):
            if not busy and self._pays(lane):
                self._busy[lane] = True
                return lane
        return None

    def _take(self) -> _Batch:
        batch = _Batch([], [])
        samples = 0
        now_s = self._clock.monotonic_s()
        with self._lock:
            while self._waiting:
                job = self._waiting.first()
                if job.deadline_s is not None and now_s >= job.deadline_s:
                    job._state = _State.EXPIRED
                    batch.expired.append(job)
                elif batch.jobs and samples + job.samples > self._batch_samples:
                    break
                else:
                    job._state = _State.TAKEN
                    batch.jobs.append(job)
                    samples += job.samples
                self._waiting.take()
        return batch

    def _compute(self, batch: _Batch) -> None:
        self._executor.spread()
        batch.started_ns = time.perf_counter_ns()
        try:
            batch.outputs = self.program.run([job.inputs for job in batch.jobs])
            batch.computed_ns = time.perf_counter_ns()
            drafts = self._drafts(batch)
        except Exception as error:  # noqa: BLE001 -- the thread serves others; callers get "internal", never this text
            self._report(batch, error)
            self._post(self._fail_batch, batch, _compute_failed(error))
            return
        self._meter.submit(drafts, lambda outcome: self._post(self._resolve, batch, outcome))

    def _report(self, batch: _Batch, error: Exception) -> None:
        """Leave the operator the only trace of what went wrong: the callers are told nothing of it."""
        _log.error(
            "batch failed",
            model=self.program.manifest.model,
            tier=self.tier,
            samples=sum(job.samples for job in batch.jobs),
            request_ids=[job.request_id for job in batch.jobs][:SHOWN_IDS],
            error=type(error).__name__,
            where=frames(error),
        )

    def _drafts(self, batch: _Batch) -> list[UsageDraft]:
        """One draft a job; the batch's device time is shared by samples, rounded down (rule W-56)."""
        samples = sum(job.samples for job in batch.jobs)
        compute_us = (batch.computed_ns - batch.started_ns) // 1000
        time_us = int(self._clock.now_s() * 1_000_000)
        return [self._draft(job, time_us, compute_us * job.samples // samples) for job in batch.jobs]

    def _draft(self, job: Job, time_us: int, compute_us: int) -> UsageDraft:
        session = job.permit.session
        return UsageDraft(
            time_us=time_us,
            licence_id=session.licence.licence_id,
            buyer_id=session.licence.buyer_id,
            package_id=session.package_id,
            model=session.model,
            version=session.version,
            tier=self.tier,
            samples=job.samples,
            bytes_in=job.bytes_in,
            compute_us=compute_us,
            request_id=job.request_id,
            payload_digest=job.payload_digest,
            session_id=session.session_id,
        )

    def _post(self, work: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(work, *args)
        except RuntimeError:  # the loop has closed, and every waiter and permit with it
            return

    # -- back on the event loop ------------------------------------------------------------------------------------

    def _resolve(self, batch: _Batch, outcome: Outcome) -> None:
        self._drop_expired(batch)
        if isinstance(outcome, TesseraError):
            for job in batch.jobs:
                self._fail(job, outcome)
            return
        self._observe(batch, [job for job, entry in zip(batch.jobs, outcome, strict=True) if not entry.conflict])
        start = 0
        for job, appended in zip(batch.jobs, outcome, strict=True):
            end = start + job.samples
            self._answer(job, appended, {name: value[start:end] for name, value in batch.outputs.items()})
            start = end

    def _answer(self, job: Job, appended: Appended, outputs: Mapping[str, Array]) -> None:
        fresh = appended.fresh and not appended.conflict
        self._settle(job, charge=fresh)
        if fresh:
            self._model_metrics.samples(self.tier, job.samples)
        if job.future.done():
            return
        if appended.conflict:
            self.statistics.failed()
            job.future.set_exception(
                Conflict(
                    "the request id was used before with another payload",
                    reason="request-id-conflict",
                    remedy="choose a new request id for each new request",
                )
            )
            return
        try:
            receipt = self._meter.receipt(appended.record) if job.receipt else None
        except TesseraError as error:
            job.future.set_exception(error)
            return
        job.future.set_result(Answer(outputs, appended.record, receipt, not fresh))

    def _observe(self, batch: _Batch, answered: list[Job]) -> None:
        """Count a batch that was recorded; `answered` are its jobs but for those with another payload's id."""
        settled_ns = time.perf_counter_ns()
        samples = sum(job.samples for job in batch.jobs)
        self._model_metrics.batch_samples.observe(samples)
        self._metrics.compute.observe((batch.computed_ns - batch.started_ns) * 1e-9)
        self._metrics.commit.observe((settled_ns - batch.computed_ns) * 1e-9)
        for job in batch.jobs:
            self._metrics.queue.observe((batch.started_ns - job._queued_ns) * 1e-9)
        self.statistics.batch(
            requests=len(answered),
            samples=sum(job.samples for job in answered),
            batch_samples=samples,
            queue_ns=sum(batch.started_ns - job._queued_ns for job in answered),
            compute_ns=batch.computed_ns - batch.started_ns,
            total_ns=sum(settled_ns - job._queued_ns for job in answered),
            ended_ms=int(self._clock.now_s() * 1000),
        )

    def _drop_expired(self, batch: _Batch) -> None:
        for job in batch.expired:
            self._fail(job, Unavailable("the deadline passed before the request started", reason="deadline-exceeded"))

    def _fail_batch(self, batch: _Batch, error: TesseraError) -> None:
        self._drop_expired(batch)
        for job in batch.jobs:
            self._fail(job, error)

    def _fail(self, job: Job, error: TesseraError) -> None:
        self._settle(job, charge=False)
        self.statistics.failed()
        if not job.future.done():
            job.future.set_exception(error)
            job.future.exception()  # marked as seen: a caller that has gone away must not make the loop complain

    def _settle(self, job: Job, *, charge: bool) -> None:
        self._room.leave(_buyer(job), job.samples)
        if self._room.held == 0:
            self._idle.set()
        if charge:
            job.permit.charge()
        else:
            job.permit.release()


def _buyer(job: Job) -> str:
    """Return who waits, whichever of their licences and sessions it is under."""
    return job.permit.session.licence.buyer_id


def _compute_failed(error: Exception) -> TesseraError:
    """A fault of ours, whatever torch said; its text stays here."""
    if isinstance(error, TesseraError):
        return error
    return TesseraError("internal error", reason="internal")
