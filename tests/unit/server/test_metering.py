"""The meter: group commit, failure, order, close."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from support.keys import NODE
from support.ledger import MemoryLedger
from tessera.keystore.errors import Unavailable
from tessera.keystore.usage import UsageDraft, sign_receipt, verify_chain, verify_receipt
from tessera.server.metering import Meter
from tessera.server.metering.meter import MAX_RECORDS_PER_COMMIT
from tessera.server.metrics import Metrics


def draft(request_id: str, digest: str = "0" * 64, samples: int = 1) -> UsageDraft:
    """Return a draft of one request."""
    return UsageDraft(
        time_us=1,
        licence_id="lic-1",
        buyer_id="B" * 43,
        package_id="0" * 32,
        model="digits",
        version=1,
        tier=1,
        samples=samples,
        bytes_in=64,
        compute_us=5,
        request_id=request_id,
        payload_digest=digest,
        session_id="s-1",
    )


class Site:
    """A meter over a ledger in memory."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger(NODE.key_id)
        self.metrics = Metrics()
        self.meter = Meter(self.ledger.append_usage, lambda record: sign_receipt(record, NODE), metrics=self.metrics)

    def close(self) -> None:
        """Let the ledger go on and stop the thread."""
        self.ledger.gate.set()
        self.meter.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A meter that is closed at the end."""
    made = Site()
    yield made
    await asyncio.to_thread(made.close)


async def entered(site: Site) -> None:
    """Wait until the ledger thread is inside a transaction."""
    assert await asyncio.to_thread(site.ledger.entered.wait, 5)


async def test_drafts_become_records_in_order(site: Site) -> None:
    """Every draft gets its own answer and the chain verifies."""
    outcome = await site.meter.commit([draft("a"), draft("b")])
    assert [entry.record.request_id for entry in outcome] == ["a", "b"]
    assert all(entry.fresh for entry in outcome)
    assert verify_chain(site.ledger.records, node_id=NODE.key_id, checkpoint=None).records == 2


async def test_what_waits_during_a_transaction_shares_the_next_one(site: Site) -> None:
    """Three commits that arrive while one is being written become one transaction, in order of arrival."""
    site.ledger.gate.clear()
    first = asyncio.create_task(site.meter.commit([draft("first")]))
    await entered(site)
    rest = [asyncio.create_task(site.meter.commit([draft(f"r{i}")])) for i in range(3)]
    await asyncio.sleep(0)  # each task has submitted
    site.ledger.gate.set()
    await asyncio.gather(first, *rest)
    assert site.ledger.transactions == [1, 3]
    assert [record.request_id for record in site.ledger.records] == ["first", "r0", "r1", "r2"]
    page = site.metrics.render()[0].decode()
    assert "tessera_ledger_commits_total 2.0" in page
    assert "tessera_ledger_records_total 4.0" in page


async def test_a_transaction_has_an_upper_size(site: Site) -> None:
    """Submissions are never split, and never joined past the size of one transaction."""
    site.ledger.gate.clear()
    half = MAX_RECORDS_PER_COMMIT // 2 + 1
    tasks = [asyncio.create_task(site.meter.commit([draft("x")]))]
    await asyncio.sleep(0)
    await entered(site)
    tasks += [asyncio.create_task(site.meter.commit([draft(f"{k}-{i}") for i in range(half)])) for k in range(2)]
    await asyncio.sleep(0)
    site.ledger.gate.set()
    await asyncio.gather(*tasks)
    assert site.ledger.transactions == [1, half, half]


async def test_a_retry_is_recognised_and_a_conflict_is_told(site: Site) -> None:
    """Same id and payload: the first record, not fresh; same id, other payload: conflict."""
    (first,) = await site.meter.commit([draft("a")])
    (again,) = await site.meter.commit([draft("a")])
    (other,) = await site.meter.commit([draft("a", "1" * 64)])
    assert not again.fresh
    assert again.record == first.record
    assert other.conflict
    assert len(site.ledger.records) == 1


@pytest.mark.parametrize(
    "fault, reason",
    [
        (Unavailable("disk full", reason="ledger-unavailable"), "ledger-unavailable"),
        (ValueError("x"), "ledger-unavailable"),
    ],
)
async def test_a_ledger_that_fails_refuses_and_recovers(site: Site, fault: Exception, reason: str) -> None:
    """Whatever the ledger raises becomes Unavailable, nothing is recorded, and the next commit works."""
    site.ledger.fault = fault
    with capture_logs() as logs, pytest.raises(Unavailable) as caught:
        await site.meter.commit([draft("a")])
    assert caught.value.reason == reason
    (told,) = logs  # a full disk and a busy one have one reason; the operator is told which it is
    assert (told["event"], told["log_level"], told["reason"]) == ("usage not recorded", "error", reason)
    assert told.get("cause", told.get("error")) in (getattr(fault, "public", None), type(fault).__name__)
    assert site.ledger.records == []
    site.ledger.fault = None
    (entry,) = await site.meter.commit([draft("a")])
    assert entry.fresh


async def test_close_finishes_what_was_submitted_and_refuses_the_rest(site: Site) -> None:
    """A commit before close is durable; one after it is Unavailable, draining."""
    site.ledger.gate.clear()
    pending = asyncio.create_task(site.meter.commit([draft("a")]))
    await entered(site)
    closing = asyncio.create_task(asyncio.to_thread(site.meter.close))
    site.ledger.gate.set()
    await closing
    assert (await pending)[0].fresh
    with pytest.raises(Unavailable) as caught:
        await site.meter.commit([draft("b")])
    assert caught.value.reason == "draining"


async def test_flush_waits_for_everything_before_it(site: Site) -> None:
    """After flush every submitted draft is in the ledger."""
    tasks = [asyncio.create_task(site.meter.commit([draft(f"r{i}")])) for i in range(5)]
    await asyncio.sleep(0)
    await asyncio.to_thread(site.meter.flush)
    assert len(site.ledger.records) == 5
    await asyncio.gather(*tasks)


async def test_a_receipt_is_the_nodes_word_for_the_record(site: Site) -> None:
    """The receipt verifies with the node's key and says the record."""
    (entry,) = await site.meter.commit([draft("a")])
    assert verify_receipt(site.meter.receipt(entry.record), {NODE.key_id: NODE.public.verify_key}) == entry.record
