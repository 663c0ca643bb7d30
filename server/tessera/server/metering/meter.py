"""The meter: many batches' usage, one ledger thread, one transaction at a time (rules W-52 and W-57).

While a transaction is being made durable the next drafts gather, so the number of transactions follows the disk and
not the number of batches, and nothing ever waits for company.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from tessera.keystore.errors import TesseraError, Unavailable
from tessera.keystore.usage import UsageDraft, UsageRecord
from tessera.server.logs import frames
from tessera.server.metrics import Metrics

_log = structlog.get_logger("tessera.meter")

MAX_RECORDS_PER_COMMIT = 4096
"""So that one transaction stays short however much has gathered."""


class Appended(Protocol):
    """What the ledger says about one draft: a new record, the record of the same request before, or a conflict."""

    @property
    def record(self) -> UsageRecord:
        """The record in the ledger under this licence and request id."""

    @property
    def fresh(self) -> bool:
        """True when this draft made the record; only then is anything charged."""

    @property
    def conflict(self) -> bool:
        """True when the request id belongs to another payload; nothing was recorded."""


Outcome = Sequence[Appended] | TesseraError
"""One `Appended` for each draft, in order; or why none of them was recorded."""

Done = Callable[[Outcome], None]


class Meter:
    """Appends usage drafts in one dedicated thread, coalescing what is waiting into one durable transaction.

    `append` is the store's `append_usage`: all drafts or none, durable on return. `sign` makes a receipt of a record.
    """

    def __init__(
        self,
        append: Callable[[Sequence[UsageDraft]], Sequence[Appended]],
        sign: Callable[[UsageRecord], str],
        *,
        metrics: Metrics,
    ) -> None:
        self._append = append
        self._sign = sign
        self._metrics = metrics
        self._waiting: deque[tuple[Sequence[UsageDraft], Done]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="tessera-ledger", daemon=True)
        self._thread.start()

    def submit(self, drafts: Sequence[UsageDraft], done: Done) -> None:
        """Queue `drafts`; `done` is called from the ledger thread with the outcome, exactly once, and must not raise.

        After `close` the outcome is `Unavailable("draining")`, given at once in the caller's thread.
        """
        with self._changed:
            open_ = not self._closing
            if open_:
                self._waiting.append((drafts, done))
                self._changed.notify_all()
        if not open_:
            done(Unavailable("the server is shutting down", reason="draining"))

    async def commit(self, drafts: Sequence[UsageDraft]) -> Sequence[Appended]:
        """Return one `Appended` for each draft once all of them are durable.

        Raises `Unavailable` ("ledger-unavailable", "draining"): then none of them was recorded.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        self.submit(drafts, lambda outcome: _post(loop, future, outcome))
        outcome = await future
        if isinstance(outcome, TesseraError):
            raise outcome
        return outcome

    def receipt(self, record: UsageRecord) -> str:
        """Return the node's signed receipt for a durable record. Raises what `sign` raises, `SealedError` for one."""
        return self._sign(record)

    def flush(self) -> None:
        """Block until everything submitted before is durable or refused. Not to be called from the event loop."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._busy)

    def close(self) -> None:
        """Finish what was submitted, then stop the thread. Idempotent; not to be called from the event loop."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                self._busy = True
                group = self._gather()
            self._commit(group)

    def _gather(self) -> list[tuple[Sequence[UsageDraft], Done]]:
        """Take whole submissions in order, at least one, up to the size of a transaction."""
        group = [self._waiting.popleft()]
        size = len(group[0][0])
        while self._waiting and size + len(self._waiting[0][0]) <= MAX_RECORDS_PER_COMMIT:
            group.append(self._waiting.popleft())
            size += len(group[-1][0])
        return group

    def _commit(self, group: list[tuple[Sequence[UsageDraft], Done]]) -> None:
        drafts = [draft for part, _ in group for draft in part]
        started_s = time.perf_counter()
        outcome = self._append_all(drafts)
        if not isinstance(outcome, TesseraError):
            self._metrics.ledger_commits.inc()
            self._metrics.ledger_records.inc(sum(1 for appended in outcome if appended.fresh))
            self._metrics.ledger_commit_seconds.observe(time.perf_counter() - started_s)
        start = 0
        for part, done in group:
            end = start + len(part)
            done(outcome if isinstance(outcome, TesseraError) else outcome[start:end])
            start = end

    def _append_all(self, drafts: Sequence[UsageDraft]) -> Outcome:
        try:
            appended = self._append(drafts)
        except TesseraError as error:  # says which of full, busy, moved or unreadable it is, and holds no secret
            _log.error("usage not recorded", reason=error.reason, cause=error.public, records=len(drafts))
            return error
        except Exception as error:  # noqa: BLE001 -- whatever the ledger throws, the thread lives and nothing is charged
            told = {"error": type(error).__name__, "where": frames(error)}
            _log.error("usage not recorded", reason="ledger-unavailable", records=len(drafts), **told)
            return Unavailable("usage cannot be recorded now", reason="ledger-unavailable")
        if len(appended) != len(drafts):
            return Unavailable("usage cannot be recorded now", reason="ledger-unavailable")
        return appended


def _post(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[Outcome]", outcome: Outcome) -> None:
    def settle() -> None:
        if not future.done():
            future.set_result(outcome)

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the loop has closed: nobody is left to be told
        return
