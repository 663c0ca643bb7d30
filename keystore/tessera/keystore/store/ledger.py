"""The usage ledger: a hash chain in one table, appended to in one durable transaction a call (rules S-14 to S-18).

- Sequence and chain head are read inside the write transaction, so two processes never fork the chain.
- `UNIQUE(licence_id, request_id)` is what makes "charged once" true: a repeated id brings back its first record.
- `clock_mark_us` rides on the last row, so that it costs neither an index nor a write of its own.

The barrier does not cover the ledger: it names no secret, and usage must be readable while the store is sealed as well.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select

from tessera.keystore.errors import ApiMisuse, Malformed, Tampered
from tessera.keystore.store import meta
from tessera.keystore.store.database import Database
from tessera.keystore.store.schema import USAGE
from tessera.keystore.usage import UsageDraft, UsageRecord, genesis

REASON = "ledger-unavailable"
LOOKUP_ROWS = 500
MAX_PAGE_ROWS = 100_000

_FIELDS = tuple(field.name for field in fields(UsageRecord))
_RECORD = tuple(USAGE.c[name] for name in _FIELDS)
_INSERT = insert(USAGE)
_HEAD = select(USAGE.c.sequence, USAGE.c.digest, USAGE.c.latest_us).order_by(USAGE.c.sequence.desc()).limit(1)
_SAME_REQUESTS = select(*_RECORD).where(
    USAGE.c.licence_id == bindparam("licence_id"), USAGE.c.request_id.in_(bindparam("request_ids", expanding=True))
)
_SAMPLES = select(func.coalesce(func.sum(USAGE.c.samples), 0)).where(
    USAGE.c.licence_id == bindparam("licence_id"), USAGE.c.time_us >= bindparam("since_us")
)


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of one draft: recorded now (`fresh`), recorded before, or in `conflict` with that earlier record."""

    record: UsageRecord
    """The one record of this licence and request id."""
    fresh: bool
    """Whether this call has recorded, and so charged, it."""
    conflict: bool = False
    """Whether the id was used with another payload; nothing is recorded or charged then."""


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """What one licence has used of one model."""

    licence_id: str
    buyer_id: str
    model: str
    requests: int
    samples: int
    bytes_in: int
    compute_us: int


@dataclass(frozen=True, slots=True)
class _Head:
    sequence: int
    digest: str
    latest_us: int


class Ledger:
    """The usage ledger of one node. Thread-safe.

    Every method raises `Unavailable` ("ledger-unavailable") when it cannot be read or written; nothing is charged then.
    """

    def __init__(self, database: Database, node_id: str) -> None:
        self._database = database
        self._genesis = _Head(0, genesis(node_id), 0)

    def append(self, drafts: Sequence[UsageDraft]) -> list[Appended]:
        """Record `drafts` in their order, in one transaction that is on the disk on return; one result for each."""
        if not drafts:
            return []
        with self._database.writing(reason=REASON) as connection:
            known = _known(connection, drafts)
            head = self._head(connection)
            results, rows = _link(head, drafts, known)
            if rows:
                connection.execute(_INSERT, rows)
        return results

    def find(self, licence_id: str, request_id: str) -> UsageRecord | None:
        """Return the record of a licence's request id, or None."""
        with self._database.reading(reason=REASON) as connection:
            row = connection.execute(_SAME_REQUESTS, _keys(licence_id, [request_id])).one_or_none()
        return None if row is None else _record(row)

    def records(self, from_sequence: int, limit: int) -> list[UsageRecord]:
        """Return up to `limit` records from `from_sequence` on, in order."""
        if not 0 < limit <= MAX_PAGE_ROWS:
            raise ApiMisuse(f"a page of usage has 1 to {MAX_PAGE_ROWS} records")
        query = select(*_RECORD).where(USAGE.c.sequence >= from_sequence).order_by(USAGE.c.sequence).limit(limit)
        with self._database.reading(reason=REASON) as connection:
            return [_record(row) for row in connection.execute(query)]

    def head(self) -> tuple[int, str]:
        """Return the last record's sequence and digest; 0 and the genesis digest before the first."""
        with self._database.reading(reason=REASON) as connection:
            head = self._head(connection)
        return head.sequence, head.digest

    def samples_used(self, licence_id: str, since_us: int) -> int:
        """Return the sum of samples that a licence was charged for at or after `since_us`."""
        with self._database.reading(reason=REASON) as connection:
            values = {"licence_id": licence_id, "since_us": since_us}
            return int(connection.execute(_SAMPLES, values).scalar_one())

    def totals(self, licence_id: str | None = None) -> list[UsageTotals]:
        """Return what every licence, or the one named, has used, by licence and model."""
        columns = (USAGE.c.licence_id, USAGE.c.buyer_id, USAGE.c.model)
        sums = (func.sum(column) for column in (USAGE.c.samples, USAGE.c.bytes_in, USAGE.c.compute_us))
        query = select(*columns, func.count(), *sums).group_by(*columns).order_by(*columns)
        if licence_id is not None:
            query = query.where(USAGE.c.licence_id == licence_id)
        with self._database.reading(reason=REASON) as connection:
            return [UsageTotals(*row) for row in connection.execute(query)]

    def clock_mark_us(self) -> int:
        """Return the latest time that was ever recorded or noted, in microseconds since 1970; 0 before the first."""
        with self._database.reading(reason=REASON) as connection:
            return max(self._head(connection).latest_us, _noted_us(connection))

    def note_time(self, time_us: int) -> None:
        """Remember `time_us` if it is later than all before, so that a clock set back is noticed after a restart."""
        with self._database.writing(reason=REASON) as connection:
            if time_us > max(self._head(connection).latest_us, _noted_us(connection)):
                meta.write(connection, meta.CLOCK_MARK, b"%d" % time_us)

    def _head(self, connection: Connection) -> _Head:
        row = connection.execute(_HEAD).one_or_none()
        return self._genesis if row is None else _Head(row.sequence, row.digest, row.latest_us)


def _known(connection: Connection, drafts: Sequence[UsageDraft]) -> dict[tuple[str, str], UsageRecord]:
    """Return what is recorded of the drafts' request ids. One query a licence, because the planner scans for pairs."""
    asked = defaultdict(list)
    for draft in drafts:
        asked[draft.licence_id].append(draft.request_id)
    known = {}
    for licence_id, request_ids in asked.items():
        for begin in range(0, len(request_ids), LOOKUP_ROWS):
            keys = _keys(licence_id, request_ids[begin : begin + LOOKUP_ROWS])
            for row in connection.execute(_SAME_REQUESTS, keys):
                known[row.licence_id, row.request_id] = _record(row)
    return known


def _keys(licence_id: str, request_ids: list[str]) -> dict[str, Any]:
    return {"licence_id": licence_id, "request_ids": request_ids}


def _link(
    head: _Head, drafts: Iterable[UsageDraft], known: dict[tuple[str, str], UsageRecord]
) -> tuple[list[Appended], list[dict[str, Any]]]:
    results: list[Appended] = []
    rows: list[dict[str, Any]] = []
    sequence, digest, latest_us = head.sequence, head.digest, head.latest_us
    for draft in drafts:
        key = draft.licence_id, draft.request_id
        first = known.get(key)
        if first is not None:
            results.append(Appended(first, fresh=False, conflict=first.payload_digest != draft.payload_digest))
            continue
        sequence += 1
        record = known[key] = draft.recorded(sequence, digest)
        digest = record.digest
        latest_us = max(latest_us, record.time_us)
        rows.append({**{name: getattr(record, name) for name in _FIELDS}, "digest": digest, "latest_us": latest_us})
        results.append(Appended(record, fresh=True))
    return results, rows


def _record(row: Row[Any]) -> UsageRecord:
    try:
        return UsageRecord(**row._mapping)
    except (Malformed, TypeError) as error:
        raise Tampered("the usage ledger holds a record that no release has written", reason="ledger-broken") from error


def _noted_us(connection: Connection) -> int:
    raw = meta.read(connection, meta.CLOCK_MARK)
    if raw is None:
        return 0
    if not raw.isdigit() or len(raw) > 20:
        raise Malformed("keystore.db holds a clock mark that is no number")
    return int(raw)
