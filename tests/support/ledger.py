"""A ledger in memory with the store's rules, for tests that are not about the disk."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from tessera.keystore.usage import UsageDraft, UsageRecord, genesis


@dataclass(frozen=True)
class Entry:
    """What the ledger says about one draft."""

    record: UsageRecord
    fresh: bool
    conflict: bool = False


class MemoryLedger:
    """Appends, recognises retries, refuses conflicts; `fault`, if set, is raised instead; `gate` holds appends back."""

    def __init__(self, node_id: str = "node") -> None:
        self.records: list[UsageRecord] = []
        self.transactions: list[int] = []
        self.fault: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self._head = genesis(node_id)
        self._by_request: dict[tuple[str, str], UsageRecord] = {}

    def append_usage(self, drafts: Sequence[UsageDraft]) -> list[Entry]:
        """Append like the store does: one transaction, all or none."""
        self.entered.set()
        self.gate.wait(10)
        if self.fault is not None:
            raise self.fault
        self.transactions.append(len(drafts))
        return [self._append(draft) for draft in drafts]

    def _append(self, draft: UsageDraft) -> Entry:
        key = (draft.licence_id, draft.request_id)
        known = self._by_request.get(key)
        if known is not None:
            return Entry(known, fresh=False, conflict=known.payload_digest != draft.payload_digest)
        record = draft.recorded(len(self.records) + 1, self._head)
        self.records.append(record)
        self._head = record.digest
        self._by_request[key] = record
        return Entry(record, fresh=True)

    def samples_used(self, licence_id: str, since_us: int) -> int:
        """Sum of the charged samples of a licence since a time."""
        return sum(r.samples for r in self.records if r.licence_id == licence_id and r.time_us >= since_us)

    def find_usage(self, licence_id: str, request_id: str) -> UsageRecord | None:
        """The record of a charged request."""
        return self._by_request.get((licence_id, request_id))

    def clock_mark_us(self) -> int:
        """The newest time on record."""
        return max((record.time_us for record in self.records), default=0)
