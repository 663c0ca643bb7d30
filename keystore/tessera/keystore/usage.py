"""Usage records, receipts and checkpoints: formats that node, vendor and buyer verify alike (docs/spec.md, U rules).

record = draft.recorded(sequence, previous)     the node's ledger appends it; record.digest is the new head
sign_receipt(record, node)                      the node's word for one record
sign_checkpoint(…)                              the node's word for the whole chain up to a head
verify_chain(records, node_id=…, checkpoint=…)  deletion, insertion, reordering, change and truncation are found
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from io import SEEK_END
from itertools import chain
from json.encoder import encode_basestring
from pathlib import Path
from typing import NamedTuple, Self

from tessera.keystore import canonical, jws
from tessera.keystore._claims import HEX_32_BYTES, KEY_ID, NAME, check_count, check_fields, check_integer, check_text
from tessera.keystore._files import PUBLIC_MODE, open_regular, write_atomically
from tessera.keystore.canonical import MAX_INTEGER, Json
from tessera.keystore.errors import Malformed, Tampered, TesseraError
from tessera.keystore.identity import Signer

RECEIPT_TYP = "tessera-receipt+jwt"
CHECKPOINT_TYP = "tessera-checkpoint+jwt"
MAX_RECORD_BYTES = 2048
MAX_LAST_LINE_BYTES = 8192

_RECORD_LABEL = b"tessera/v1/usage-record\n"
_GENESIS_LABEL = b"tessera/v1/usage-genesis\n"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_REQUEST_ID = re.compile(r"[ -~]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageDraft:
    """One answer's usage before the ledger has given it a place. Raises `Malformed` for values outside rule U-1."""

    time_us: int
    """Unix time in microseconds, by the node's clock."""
    licence_id: str
    buyer_id: str
    package_id: str
    model: str
    version: int
    tier: int
    samples: int
    bytes_in: int
    compute_us: int
    request_id: str
    payload_digest: str
    """SHA-256 of the request's payload, 64 hexadecimal digits."""
    session_id: str

    def __post_init__(self) -> None:
        for value in (self.time_us, self.version, self.tier, self.samples, self.bytes_in, self.compute_us):
            check_count(value, "a number of a usage record")
        for text in (self.licence_id, self.buyer_id, self.package_id, self.session_id):
            check_text(text, _ID, "an id of a usage record")
        check_text(self.model, NAME, "model")
        check_text(self.request_id, _REQUEST_ID, "request_id")
        check_text(self.payload_digest, HEX_32_BYTES, "payload_digest")

    def recorded(self, sequence: int, previous: str) -> "UsageRecord":
        """Return the record at place `sequence` after the record with digest `previous`."""
        return UsageRecord(
            time_us=self.time_us,
            licence_id=self.licence_id,
            buyer_id=self.buyer_id,
            package_id=self.package_id,
            model=self.model,
            version=self.version,
            tier=self.tier,
            samples=self.samples,
            bytes_in=self.bytes_in,
            compute_us=self.compute_us,
            request_id=self.request_id,
            payload_digest=self.payload_digest,
            session_id=self.session_id,
            sequence=sequence,
            previous=previous,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord(UsageDraft):
    """One place of a node's ledger: a draft, its sequence number from 1, and the digest of the record before."""

    sequence: int
    previous: str

    def __post_init__(self) -> None:
        UsageDraft.__post_init__(self)
        check_integer(self.sequence, 1, MAX_INTEGER, "sequence")
        check_text(self.previous, HEX_32_BYTES, "previous")

    def canonical_bytes(self) -> bytes:
        """Return `canonical.dumps(self.to_claims())`, written out because every answer waits for it (rule U-2)."""
        return (
            f'{{"buyer_id":"{self.buyer_id}","bytes_in":{self.bytes_in},"compute_us":{self.compute_us},'
            f'"licence_id":"{self.licence_id}","model":"{self.model}","package_id":"{self.package_id}",'
            f'"payload_digest":"{self.payload_digest}","previous":"{self.previous}",'
            f'"request_id":{encode_basestring(self.request_id)},"samples":{self.samples},"sequence":{self.sequence},'
            f'"session_id":"{self.session_id}","tier":{self.tier},"time_us":{self.time_us},"version":{self.version}}}'
        ).encode("ascii")

    @property
    def digest(self) -> str:
        """SHA-256 over a label and the canonical record, 64 hexadecimal digits (rule U-2)."""
        return hashlib.sha256(_RECORD_LABEL + self.canonical_bytes()).hexdigest()

    def to_claims(self) -> dict[str, Json]:
        """Return the record as a JSON object; the fields have the names of the attributes."""
        return {name: getattr(self, name) for name in _NAMES}

    @classmethod
    def from_claims(cls, claims: object) -> Self:
        """Read a record's JSON object. Raises `Malformed` for a missing, unknown or wrongly typed field."""
        return cls(**check_fields(claims, _FIELDS, frozenset(), "usage record"))


_NAMES = tuple(f.name for f in fields(UsageRecord))
_FIELDS = frozenset(_NAMES)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The node's statement that its ledger had `sequence` records and the head `head` at `time_us`."""

    node_id: str
    sequence: int
    head: str
    time_us: int

    def __post_init__(self) -> None:
        check_text(self.node_id, KEY_ID, "node_id")
        check_count(self.sequence, "sequence")
        check_text(self.head, HEX_32_BYTES, "head")
        check_count(self.time_us, "time_us")


@dataclass(frozen=True, slots=True)
class ChainSummary:
    """What a verified chain adds up to."""

    records: int
    head: str
    samples: int


def genesis(node_id: str) -> str:
    """Return the `previous` of a node's first record, so that chains of two nodes never share a record (rule U-3)."""
    return hashlib.sha256(_GENESIS_LABEL + node_id.encode("utf-8")).hexdigest()


def sign_receipt(record: UsageRecord, node: Signer) -> str:
    """Return the node's signature over one record, a compact JWS (rule U-5)."""
    return jws.sign(RECEIPT_TYP, record.to_claims(), node)


def verify_receipt(token: str, node_keys: Mapping[str, bytes]) -> UsageRecord:
    """Return the record a known node has signed. Raises `Tampered` with reason `receipt-invalid` for anything else."""
    try:
        return UsageRecord.from_claims(jws.verify(token, typ=RECEIPT_TYP, keys=node_keys))
    except TesseraError as error:
        raise Tampered("the usage receipt does not verify", reason="receipt-invalid") from error


def sign_checkpoint(node_id: str, sequence: int, head: str, time_us: int, node: Signer) -> str:
    """Return the node's signature over the ledger's head (rule U-6). `node_id` is the signer's key id."""
    Checkpoint(node_id, sequence, head, time_us)
    if node_id != node.key_id:
        raise Malformed("a checkpoint is signed by the node that it names")
    claims: dict[str, Json] = {"node_id": node_id, "sequence": sequence, "head": head, "time_us": time_us}
    return jws.sign(CHECKPOINT_TYP, claims, node)


def verify_checkpoint(token: str, node_keys: Mapping[str, bytes]) -> Checkpoint:
    """Return the checkpoint a known node has signed. Raises `Tampered` (reason `ledger-broken`) for anything else."""
    try:
        parsed = jws.verify_parsed(token, typ=CHECKPOINT_TYP, keys=node_keys)
        checkpoint = Checkpoint(**check_fields(parsed.claims, _CHECKPOINT_FIELDS, frozenset(), "checkpoint"))
        if parsed.key_id != checkpoint.node_id:
            raise Malformed("a checkpoint is signed by the node that it names")
    except TesseraError as error:
        raise Tampered("the ledger's checkpoint does not verify", reason="ledger-broken") from error
    return checkpoint


_CHECKPOINT_FIELDS = frozenset(f.name for f in fields(Checkpoint))


def verify_chain(records: Iterable[UsageRecord], *, node_id: str, checkpoint: Checkpoint | None) -> ChainSummary:
    """Check a node's whole ledger from its first record (rule U-4) and return what it adds up to.

    Raises `Tampered` with reason `ledger-broken`, naming the first sequence number at which the chain does not hold.
    With a checkpoint, missing records at the end are found too; records after the checkpoint are allowed.
    """
    head, count, samples = genesis(node_id), 0, 0
    if checkpoint is not None and checkpoint.node_id != node_id:
        raise _broken(0, "the checkpoint is another node's")
    _meet(checkpoint, count, head)
    for count, record in enumerate(records, start=1):
        if record.sequence != count:
            raise _broken(count, f"record {record.sequence} stands in its place")
        if record.previous != head:
            raise _broken(count, "it does not follow from the record before")
        head = record.digest
        samples += record.samples
        _meet(checkpoint, count, head)
    if checkpoint is not None and count < checkpoint.sequence:
        raise _broken(count + 1, "it is missing; the checkpoint counts it")
    return ChainSummary(count, head, samples)


def _meet(checkpoint: Checkpoint | None, sequence: int, head: str) -> None:
    if checkpoint is not None and checkpoint.sequence == sequence and checkpoint.head != head:
        raise _broken(sequence, "its digest is not the one that the node signed")


def _broken(sequence: int, why: str) -> Tampered:
    return Tampered(f"the usage ledger does not hold at sequence {sequence}: {why}", reason="ledger-broken")


class Export(NamedTuple):
    """An export file: its records, read while they are iterated, and the token of its checkpoint."""

    records: Iterator[UsageRecord]
    checkpoint: str


def write_export(path: str | Path, records: Iterable[UsageRecord], checkpoint: str, *, overwrite: bool = False) -> None:
    """Write JSON lines: one canonical record a line, then `{"checkpoint": token}` (rule U-7), mode 0644.

    Raises `Conflict` when the file exists and `overwrite` is false, or as `write_atomically`.
    """
    lines = (record.canonical_bytes() + b"\n" for record in records)
    last = canonical.dumps({"checkpoint": checkpoint}) + b"\n"
    write_atomically(Path(path), chain(lines, [last]), mode=PUBLIC_MODE, overwrite=overwrite)


def read_export(path: str | Path) -> Export:
    """Open an export file; `verify_chain` over `records` with the verified `checkpoint` judges it.

    Raises `NotFound`, `Denied`, `Malformed` or `Unavailable`; the iterator raises `Malformed` at a line that is no
    canonical record.
    """
    with open_regular(Path(path)) as file:
        size = file.seek(0, SEEK_END)
        file.seek(max(0, size - MAX_LAST_LINE_BYTES))
        tail = file.read(MAX_LAST_LINE_BYTES)
    line = tail[tail.rfind(b"\n", 0, -1) + 1 :]
    if not line.endswith(b"\n"):
        raise Malformed("the usage export does not end with a line end")
    last = canonical.loads(line[:-1], max_bytes=MAX_LAST_LINE_BYTES)
    token = check_fields(last, {"checkpoint"}, frozenset(), "the last line of a usage export")["checkpoint"]
    if not isinstance(token, str):
        raise Malformed("the checkpoint of a usage export is not a string")
    return Export(_records(Path(path), size - len(line)), token)


def _records(path: Path, end: int) -> Iterator[UsageRecord]:
    with open_regular(path) as file:
        while end > 0:
            line = file.readline(MAX_RECORD_BYTES + 1)
            end -= len(line)
            if end < 0 or not line.endswith(b"\n"):
                raise Malformed("a line of the usage export is no usage record")
            yield UsageRecord.from_claims(canonical.loads(line[:-1], max_bytes=MAX_RECORD_BYTES))
