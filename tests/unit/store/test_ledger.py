"""The usage ledger: order, chain, duplicates, sums, clock (rules S-14 to S-18)."""

import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import keys
from support.stores import make_store
from tessera.keystore.errors import ApiMisuse
from tessera.keystore.store import Store, UsageTotals
from tessera.keystore.store.ledger import _SAME_REQUESTS, _SAMPLES
from tessera.keystore.usage import UsageDraft, genesis, sign_checkpoint, verify_chain, verify_checkpoint


def test_an_empty_ledger_begins_at_the_genesis(store: Store) -> None:
    """Before the first record the head is the node's genesis digest and everything sums to nothing."""
    assert store.ledger_head() == (0, genesis(store.node.key_id))
    assert store.append_usage([]) == []
    assert store.usage_records() == []
    assert store.usage_totals() == []
    assert store.samples_used("lic-1", 0) == 0
    assert store.find_usage("lic-1", "req-1") is None
    assert store.clock_mark_us() == 0


def test_records_come_in_order_and_chain(store: Store, directory: Path) -> None:
    """Sequences count from 1 over calls and restarts, each record names the one before, the head is the last one."""
    first = store.append_usage([keys.draft(1), keys.draft(2)])
    store.close()
    with Store.open(directory) as again:
        second = again.append_usage([keys.draft(3)])
        records = again.usage_records()
        assert records == [result.record for result in first + second]
        assert [record.sequence for record in records] == [1, 2, 3]
        assert again.ledger_head() == (3, records[-1].digest)
        assert verify_chain(records, node_id=again.node.key_id, checkpoint=None).samples == 6
        assert again.find_usage("lic-1", "req-2") == records[1]


def test_records_are_read_in_pages(store: Store) -> None:
    """`usage_records` gives at most `limit` records from the sequence asked for; a page has a bounded size."""
    store.append_usage([keys.draft(number) for number in range(1, 8)])
    assert [record.sequence for record in store.usage_records(3, 2)] == [3, 4]
    assert [record.sequence for record in store.usage_records(7, 10)] == [7]
    assert store.usage_records(8, 10) == []
    for limit in (0, -1, 100_001):
        with pytest.raises(ApiMisuse):
            store.usage_records(1, limit)


def test_the_same_request_again_is_the_first_record(store: Store) -> None:
    """A repeated id with the same payload brings back its first record, whatever else differs, and charges nothing."""
    (first,) = store.append_usage([keys.draft(1)])
    (again,) = store.append_usage([keys.draft(1, time_us=5, session_id="session-2", compute_us=9)])
    assert first.fresh
    assert not again.fresh
    assert not again.conflict
    assert again.record == first.record
    assert store.samples_used("lic-1", 0) == 1


def test_the_same_request_with_another_payload_conflicts(store: Store) -> None:
    """A repeated id with another payload digest is a conflict that records nothing."""
    (first,) = store.append_usage([keys.draft(1)])
    (again,) = store.append_usage([keys.draft(1, payload_digest="f" * 64)])
    assert again.conflict
    assert not again.fresh
    assert again.record == first.record
    assert store.ledger_head()[0] == 1


def test_the_same_id_of_two_licences_counts_twice(store: Store) -> None:
    """Request ids are the licence's own: two buyers may use the same one."""
    drafts = [keys.draft(1), keys.draft(1, licence_id="lic-2")]
    assert [result.fresh for result in store.append_usage(drafts)] == [True, True]
    assert store.samples_used("lic-1", 0) == store.samples_used("lic-2", 0) == 1


def test_duplicates_within_one_call_are_found(store: Store) -> None:
    """The second of two equal ids in a batch is the first's record, or its conflict."""
    drafts = [keys.draft(1), keys.draft(2), keys.draft(1), keys.draft(2, payload_digest="f" * 64)]
    results = store.append_usage(drafts)
    assert [(result.record.sequence, result.fresh, result.conflict) for result in results] == [
        (1, True, False),
        (2, True, False),
        (1, False, False),
        (2, False, True),
    ]


def test_a_long_batch_is_looked_up_in_pieces(store: Store) -> None:
    """More ids than one query takes are all recognised."""
    drafts = [keys.draft(number) for number in range(1, 1203)]
    assert all(result.fresh for result in store.append_usage(drafts))
    assert not any(result.fresh for result in store.append_usage(drafts))
    assert store.ledger_head()[0] == 1202


def test_samples_are_summed_from_a_time_on(store: Store) -> None:
    """`since_us` is inclusive and other licences do not count."""
    times = [(keys.NOW_S + number) * 1_000_000 for number in range(5)]
    store.append_usage([keys.draft(number) for number in range(1, 5)])
    store.append_usage([keys.draft(1, licence_id="lic-2")])
    assert store.samples_used("lic-1", 0) == 10
    assert store.samples_used("lic-1", times[3]) == 7
    assert store.samples_used("lic-1", times[3] + 1) == 4
    assert store.samples_used("lic-1", times[4] + 1) == 0
    assert store.samples_used("lic-3", 0) == 0


def test_totals_are_by_licence_and_model(store: Store) -> None:
    """Requests, samples, bytes and compute time of every licence and model."""
    store.append_usage([keys.draft(1), keys.draft(2), keys.draft(3, licence_id="lic-2"), keys.draft(4, model="faces")])
    buyer = keys.BUYER.key_id
    assert store.usage_totals() == [
        UsageTotals("lic-1", buyer, "digits", 2, 3, 192, 3000),
        UsageTotals("lic-1", buyer, "faces", 1, 4, 256, 4000),
        UsageTotals("lic-2", buyer, "digits", 1, 3, 192, 3000),
    ]


def test_the_clock_mark_never_goes_back(store: Store, directory: Path) -> None:
    """It is the latest time of any record or note, also after an earlier record follows, and after reopening."""
    store.append_usage([keys.draft(1, time_us=500)])
    store.append_usage([keys.draft(2, time_us=100)])
    assert store.clock_mark_us() == 500
    store.note_time(400)
    assert store.clock_mark_us() == 500
    store.note_time(900)
    store.note_time(899)
    store.append_usage([keys.draft(3, time_us=700)])
    store.close()
    with Store.open(directory) as again:
        assert again.clock_mark_us() == 900
        again.append_usage([keys.draft(4, time_us=1000)])
        assert again.clock_mark_us() == 1000


def test_the_hot_queries_use_their_indexes(store: Store) -> None:
    """The look-up of request ids and the sum of samples never scan the table, and the sum reads the index only."""
    lookup = _SAME_REQUESTS.params(licence_id="lic-1", request_ids=["a", "b"])
    samples = _SAMPLES.params(licence_id="lic-1", since_us=0)
    with store._database.reading() as connection:
        plans = []
        for query in (lookup, samples):
            sql = query.compile(connection, compile_kwargs={"literal_binds": True})
            plans.append(str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}").all()))
    assert "USING INDEX sqlite_autoindex_usage_1 (licence_id=? AND request_id=?)" in plans[0]
    assert "USING COVERING INDEX usage_licence_time_samples (licence_id=? AND time_us>?)" in plans[1]


def test_a_checkpoint_holds_the_ledger(store: Store) -> None:
    """The head signed by the node verifies against the exported records."""
    store.append_usage([keys.draft(number) for number in range(1, 4)])
    node = store.node_identity()
    token = sign_checkpoint(node.key_id, *store.ledger_head(), store.clock_mark_us(), node)
    checkpoint = verify_checkpoint(token, {node.key_id: node.public.verify_key})
    verify_chain(store.usage_records(), node_id=node.key_id, checkpoint=checkpoint)


def test_threads_share_one_chain(store: Store, directory: Path) -> None:
    """Writers in four threads and two stores, with a reader among them, lose nothing and fork nothing."""
    failures: list[BaseException] = []

    def write(place: Store, licence_id: str) -> None:
        try:
            for number in range(1, 26):
                place.append_usage([keys.draft(number, licence_id=licence_id)])
                place.samples_used(licence_id, 0)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    with Store.open(directory) as other:
        jobs = [(store, "lic-1"), (store, "lic-2"), (other, "lic-3"), (other, "lic-1")]
        threads = [threading.Thread(target=write, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    records = store.usage_records()
    assert verify_chain(records, node_id=store.node.key_id, checkpoint=None).records == 75
    assert Counter(record.licence_id for record in records) == {"lic-1": 25, "lic-2": 25, "lic-3": 25}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a store that several examples append to."""
    folder = tmp_path_factory.mktemp("shared") / "node"
    make_store(folder).close()
    return folder


_DRAFTS = st.builds(
    lambda licence, request, payload: keys.draft(
        1 + payload, licence_id=f"lic-{licence}", request_id=f"req-{request}", payload_digest=f"{payload:064x}"
    ),
    st.integers(1, 2),
    st.integers(1, 12),
    st.integers(0, 1),
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(_DRAFTS, max_size=8), max_size=4))
def test_any_batches_charge_each_request_once(shared: Path, batches: list[list[UsageDraft]]) -> None:
    """Whatever is sent and however it is cut: one record a licence and id, the first payload wins, the chain holds."""
    with Store.open(shared) as store:
        model = {(record.licence_id, record.request_id): record for record in store.usage_records()}
        for batch in batches:
            for draft, result in zip(batch, store.append_usage(batch), strict=True):
                key = draft.licence_id, draft.request_id
                assert result.fresh == (key not in model)
                first = model.setdefault(key, result.record)
                assert result.record == first
                assert result.conflict == (first.payload_digest != draft.payload_digest)
        records = store.usage_records()
        assert sorted(model.values(), key=lambda record: record.sequence) == records
        summary = verify_chain(records, node_id=store.node.key_id, checkpoint=None)
        assert (summary.records, summary.head) == store.ledger_head()
        assert summary.samples == sum(store.samples_used(f"lic-{number}", 0) for number in (1, 2))
