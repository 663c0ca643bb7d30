"""Usage records, receipts, checkpoints, chains and exports (rules U-1 to U-7)."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.keys import ISSUERS, NODE, NODES, NOW_S, OTHER_NODE, chain, draft, licence
from support.vectors import cases, load
from tessera.keystore import canonical, jws, usage
from tessera.keystore.errors import Conflict, Malformed, NotFound, Tampered
from tessera.keystore.usage import Checkpoint, UsageRecord

NODE_ID = NODE.key_id
RECORDS = chain(6)
HEAD = RECORDS[-1].digest
CHECKPOINT = Checkpoint(NODE_ID, 6, HEAD, NOW_S)
TOKEN = usage.sign_checkpoint(NODE_ID, 6, HEAD, NOW_S, NODE)
FIELDS = [field.name for field in dataclasses.fields(UsageRecord)]

RECORD = st.builds(
    lambda sequence, previous, **fields: draft(**fields).recorded(sequence, previous),
    sequence=st.integers(1, 2**53 - 1),
    previous=st.binary(min_size=32, max_size=32).map(bytes.hex),
    request_id=st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=128),
    samples=st.integers(0, 2**53 - 1),
    compute_us=st.integers(0, 2**53 - 1),
    session_id=st.text("abcXYZ019._-", min_size=1, max_size=64),
)


@pytest.mark.parametrize("case", cases("usage", "records"))
def test_record_vectors(case: dict[str, str]) -> None:
    """Canonical bytes and digest of each record are the printed ones."""
    raw = case["canonical"].encode()
    record = UsageRecord.from_claims(canonical.loads(raw, max_bytes=2048))
    assert record.canonical_bytes() == raw
    assert record.digest == case["digest"]


def test_claims_keep_the_order_of_the_fields() -> None:
    """What `usage verify` and `infer --json` print is the same from run to run, and can be compared line by line."""
    assert list(RECORDS[0].to_claims()) == FIELDS


def test_chain_vector() -> None:
    """The chain, its checkpoint and its receipt verify, from the genesis printed."""
    vector = load("usage")
    keys = {vector["node_id"]: bytes.fromhex(vector["node_key"])}
    listed = [
        UsageRecord.from_claims(canonical.loads(r["canonical"].encode(), max_bytes=2048)) for r in vector["records"]
    ]
    checkpoint = usage.verify_checkpoint(vector["checkpoint"], keys)
    summary = usage.verify_chain(listed, node_id=vector["node_id"], checkpoint=checkpoint)
    assert summary == usage.ChainSummary(3, vector["records"][-1]["digest"], vector["samples"])
    assert usage.genesis(vector["node_id"]) == vector["genesis"] == listed[0].previous
    assert usage.verify_receipt(vector["receipt"], keys) == listed[1]


@settings(max_examples=100, deadline=None)
@given(RECORD)
def test_the_fast_path_is_canonical(record: UsageRecord) -> None:
    """The written-out form is exactly the canonical JSON of the claims, and both directions agree."""
    assert record.canonical_bytes() == canonical.dumps(record.to_claims())
    assert UsageRecord.from_claims(record.to_claims()) == record
    assert usage.verify_receipt(usage.sign_receipt(record, NODE), NODES) == record


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_changes_the_digest(field: str) -> None:
    """No field can be changed without changing the digest."""
    value = getattr(RECORDS[2], field)
    other: Any = value + 1 if isinstance(value, int) else value[:-1] + ("0" if value[-1] != "0" else "1")
    assert dataclasses.replace(RECORDS[2], **{field: other}).digest != RECORDS[2].digest


@pytest.mark.parametrize(
    "change",
    [
        {"samples": -1},
        {"samples": True},
        {"samples": 1.0},
        {"samples": 2**53},
        {"time_us": "1"},
        {"version": None},
        {"model": "A"},
        {"licence_id": ""},
        {"buyer_id": "a b"},
        {"session_id": "x" * 65},
        {"package_id": 'a"'},
        {"request_id": ""},
        {"request_id": "x" * 129},
        {"request_id": "é"},
        {"request_id": "a\n"},
        {"payload_digest": "0" * 63},
        {"payload_digest": "A" * 64},
    ],
)
def test_other_drafts_are_malformed(change: dict[str, Any]) -> None:
    """Types and ranges are exact."""
    with pytest.raises(Malformed):
        draft(**change)
    with pytest.raises(Malformed):
        UsageRecord.from_claims(RECORDS[0].to_claims() | change)


@pytest.mark.parametrize("change", [{"sequence": 0}, {"sequence": True}, {"previous": ""}, {"extra": 1}])
def test_other_records_are_malformed(change: dict[str, Any]) -> None:
    """Places begin at 1, and no field is unknown or missing."""
    with pytest.raises(Malformed):
        UsageRecord.from_claims(RECORDS[0].to_claims() | change)
    with pytest.raises(Malformed):
        UsageRecord.from_claims({k: v for k, v in RECORDS[0].to_claims().items() if k != "sequence"})


def test_the_right_chain_verifies() -> None:
    """With its checkpoint, with an older one, with one of the empty ledger, and without."""
    expected = usage.ChainSummary(6, HEAD, 21)
    old = Checkpoint(NODE_ID, 4, RECORDS[3].digest, NOW_S)
    empty = Checkpoint(NODE_ID, 0, usage.genesis(NODE_ID), NOW_S)
    for checkpoint in (CHECKPOINT, old, empty, None):
        assert usage.verify_chain(RECORDS, node_id=NODE_ID, checkpoint=checkpoint) == expected
    assert usage.verify_chain([], node_id=NODE_ID, checkpoint=empty).records == 0


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_mutation_is_found(data: st.DataObject) -> None:
    """Deletion, insertion, reordering, replacement and any changed field break the chain under its checkpoint."""
    records = list(RECORDS)
    place = data.draw(st.integers(0, 5))
    match data.draw(st.sampled_from(["delete", "insert", "swap", "change", "truncate", "append-lie"])):
        case "delete":
            del records[place]
        case "insert":
            records.insert(place, records[data.draw(st.integers(0, 5))])
        case "swap":
            other = data.draw(st.integers(0, 5).filter(lambda n: n != place))
            records[place], records[other] = records[other], records[place]
        case "change":
            field = data.draw(st.sampled_from(["samples", "time_us", "sequence", "compute_us", "tier"]))
            records[place] = dataclasses.replace(records[place], **{field: getattr(records[place], field) + 1})
        case "truncate":
            records = records[:place]
        case _:
            records.append(draft(7).recorded(7, "0" * 64))
    with pytest.raises(Tampered) as caught:
        usage.verify_chain(records, node_id=NODE_ID, checkpoint=CHECKPOINT)
    assert caught.value.reason == "ledger-broken"


def test_a_rebuilt_chain_is_found_by_the_checkpoint() -> None:
    """Someone who changes a record and rehashes everything after it is caught by the node's signature."""
    head, rebuilt = usage.genesis(NODE_ID), []
    for number in range(1, 7):
        rebuilt.append(draft(number, samples=1).recorded(number, head))
        head = rebuilt[-1].digest
    usage.verify_chain(rebuilt, node_id=NODE_ID, checkpoint=None)
    with pytest.raises(Tampered, match="sequence 6"):
        usage.verify_chain(rebuilt, node_id=NODE_ID, checkpoint=CHECKPOINT)


def test_the_error_names_the_place() -> None:
    """The first sequence number that does not hold is in the message."""
    with pytest.raises(Tampered, match="sequence 4"):
        usage.verify_chain(RECORDS[:3] + RECORDS[4:], node_id=NODE_ID, checkpoint=None)
    with pytest.raises(Tampered, match="sequence 5"):
        usage.verify_chain(RECORDS[:4], node_id=NODE_ID, checkpoint=CHECKPOINT)


def test_chains_of_two_nodes_never_mix() -> None:
    """Another node's id, or another node's checkpoint, does not fit."""
    with pytest.raises(Tampered, match="sequence 1"):
        usage.verify_chain(RECORDS, node_id=OTHER_NODE.key_id, checkpoint=None)
    other = Checkpoint(OTHER_NODE.key_id, 6, HEAD, NOW_S)
    with pytest.raises(Tampered):
        usage.verify_chain(RECORDS, node_id=NODE_ID, checkpoint=other)


@pytest.mark.parametrize(
    "token",
    [
        "",
        TOKEN,
        licence().token,
        usage.sign_receipt(RECORDS[0], OTHER_NODE),
        usage.sign_receipt(RECORDS[0], NODE)[:-1],
        jws.sign(usage.RECEIPT_TYP, {"samples": 1}, NODE),
        jws.sign(usage.RECEIPT_TYP, RECORDS[0].to_claims() | {"samples": 1.5}, NODE),
    ],
)
def test_other_receipts_are_invalid(token: str) -> None:
    """Whatever is no receipt of a known node is `receipt-invalid`, whatever the cause."""
    with pytest.raises(Tampered) as caught:
        usage.verify_receipt(token, NODES)
    assert caught.value.reason == "receipt-invalid"


def test_checkpoint_round_trip() -> None:
    """A checkpoint reads back; a node signs only for itself."""
    assert usage.verify_checkpoint(TOKEN, NODES) == CHECKPOINT
    for args in ((OTHER_NODE.key_id, 6, HEAD, 0), (NODE_ID, -1, HEAD, 0), (NODE_ID, 1, "x", 0)):
        with pytest.raises(Malformed):
            usage.sign_checkpoint(*args, NODE)


@pytest.mark.parametrize(
    "token",
    [
        "",
        usage.sign_receipt(RECORDS[0], NODE),
        usage.sign_checkpoint(OTHER_NODE.key_id, 6, HEAD, NOW_S, OTHER_NODE),
        jws.sign(usage.CHECKPOINT_TYP, dataclasses.asdict(CHECKPOINT) | {"node_id": OTHER_NODE.key_id}, NODE),
        jws.sign(usage.CHECKPOINT_TYP, dataclasses.asdict(CHECKPOINT) | {"extra": 1}, NODE),
        jws.sign(usage.CHECKPOINT_TYP, dataclasses.asdict(CHECKPOINT) | {"sequence": 6.0}, NODE),
    ],
)
def test_other_checkpoints_are_broken(token: str) -> None:
    """Whatever is no checkpoint of a known node about itself is `ledger-broken`."""
    with pytest.raises(Tampered) as caught:
        usage.verify_checkpoint(token, NODES)
    assert caught.value.reason == "ledger-broken"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_random_tokens_end_typed(text: str) -> None:
    """Random receipts and checkpoints are `Tampered`."""
    with pytest.raises(Tampered):
        usage.verify_receipt(text, NODES)
    with pytest.raises(Tampered):
        usage.verify_checkpoint(text, ISSUERS)


@pytest.mark.parametrize("length", [0, 1, 6])
def test_export_round_trip(tmp_path: Path, length: int) -> None:
    """An export reads back, record by record, and verifies."""
    path = tmp_path / "usage.jsonl"
    head = RECORDS[length - 1].digest if length else usage.genesis(NODE_ID)
    token = usage.sign_checkpoint(NODE_ID, length, head, NOW_S, NODE)
    usage.write_export(path, iter(RECORDS[:length]), token)
    found = usage.read_export(path)
    checkpoint = usage.verify_checkpoint(found.checkpoint, NODES)
    assert usage.verify_chain(found.records, node_id=NODE_ID, checkpoint=checkpoint).records == length
    assert len(path.read_bytes().splitlines()) == length + 1
    with pytest.raises(Conflict):
        usage.write_export(path, [], token)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[:-1],
        lambda raw: b"",
        lambda raw: b"\n" + raw,
        lambda raw: raw + b"\n",
        lambda raw: raw.replace(b'"checkpoint"', b'"chequepoint"'),
        lambda raw: raw.replace(b"\n", b"\r\n"),
        lambda raw: raw.replace(b":", b": ", 1),
        lambda raw: b'{"a":1}\n' + raw,
        lambda raw: b"x" * 5000 + raw,
        lambda raw: raw.splitlines(keepends=True)[0],
        lambda raw: raw[: raw.rindex(b"{")] + b'{"checkpoint":1}\n',
    ],
)
def test_spoilt_exports_are_malformed(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """A line that is no canonical record, or a last line that is no checkpoint, is `Malformed`."""
    path = tmp_path / "usage.jsonl"
    usage.write_export(path, RECORDS, TOKEN)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(Malformed):
        list(usage.read_export(path).records)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_random_exports_end_typed(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    """Random files are `Malformed`."""
    path = tmp_path_factory.getbasetemp() / "random.jsonl"
    path.write_bytes(raw)
    with pytest.raises(Malformed):
        list(usage.read_export(path).records)


def test_an_absent_export_is_not_found(tmp_path: Path) -> None:
    """A missing file is told as such."""
    with pytest.raises(NotFound):
        usage.read_export(tmp_path / "absent")
