"""One request and its answer: what is sent, under which id, and what must come back before an answer is believed."""

import re
import uuid
from dataclasses import dataclass

from tessera.client._convert import infer_request, raw_outputs
from tessera.client._session import Session
from tessera.client._tensors import decode
from tessera.client._types import NUMPY_TYPES, Array
from tessera.client.errors import ProtocolError, ReceiptInvalid
from tessera.keystore.errors import ApiMisuse, Tampered
from tessera.keystore.payload import payload_digest
from tessera.keystore.usage import UsageRecord, verify_receipt
from tessera.oip.v1 import inference_pb2 as oip

MAX_REQUEST_ID_CHARS = 120
"""Eight fewer than the server takes: a call that is split appends a number."""
_DATATYPES = {dtype: name for name, dtype in NUMPY_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready to be sent, as often as need be, under one id."""

    session: Session
    """The one it was made under: the answer is held against its contract and node, also after a retry."""
    request_id: str
    samples: int
    message: oip.ModelInferRequest
    digest: str
    """Payload digest that the receipt must name; empty when no receipt is asked for."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """An answer that holds: outputs by name, with the batch axis, and its receipt."""

    outputs: dict[str, Array]
    record: UsageRecord | None
    token: str


def check_request_id(request_id: str) -> str:
    """Return a caller's request id. Raises `ApiMisuse` unless it is 1 to 120 visible ASCII characters."""
    if not re.fullmatch(rf"[!-~]{{1,{MAX_REQUEST_ID_CHARS}}}", request_id):
        raise ApiMisuse(f"a request id has 1 to {MAX_REQUEST_ID_CHARS} visible ASCII characters")
    return request_id


def request_ids(given: str | None, parts: int) -> tuple[str, list[str]]:
    """Return the id of the call, random when none is given, and one a part: for a single part the same, else `<id>.0`,
    `<id>.1`, ….

    The same call made again with the same id therefore repeats the same requests, and is not charged again.
    """
    base = uuid.uuid4().hex if given is None else check_request_id(given)
    return base, [base] if parts == 1 else [f"{base}.{part}" for part in range(parts)]


def prepare(session: Session, arrays: dict[str, Array], request_id: str, *, receipt: bool) -> Prepared:
    """Key the checked arrays and build their request; `receipt` also computes what the receipt must say."""
    keyed = session.keying(arrays)
    contract = session.contract
    message = infer_request(contract, keyed, request_id)
    digest = ""
    if receipt:
        raws = zip(keyed.items(), message.raw_input_contents, strict=True)
        tensors = ((name, _DATATYPES[array.dtype], array.shape, raw) for (name, array), raw in raws)
        digest = payload_digest(contract.name, contract.version, tensors)
    samples = next(iter(keyed.values())).shape[0]
    return Prepared(session, request_id, samples, message, digest)


def accept(sent: Prepared, answer: oip.ModelInferResponse, receipt: str) -> Accepted:
    """Return the outputs of an answer after checking it against the contract, the request and the receipt.

    Raises `ProtocolError` for an answer that does not fit the contract, `ReceiptInvalid` for a receipt that is missing,
    not signed by the session's node, or about something else than `sent`.
    """
    contract = sent.session.contract
    if answer.id != sent.request_id or answer.model_name != contract.name:
        raise ProtocolError("the answer is for another request or model", request_id=sent.request_id)
    found = raw_outputs(answer)
    outputs: dict[str, Array] = {}
    for spec in contract.outputs:
        if spec.name not in found:
            raise ProtocolError(f"the answer lacks output {spec.name!r}", request_id=sent.request_id)
        outputs[spec.name] = decode(spec, *found[spec.name], sent.samples)
    record = check_receipt(sent, receipt) if sent.digest else None
    return Accepted(outputs, record, receipt if record is not None else "")


def check_receipt(sent: Prepared, token: str) -> UsageRecord:
    """Return the record that the session's node has signed for exactly `sent`. Raises `ReceiptInvalid`."""
    if not token:
        raise _invalid("the server sent no receipt with its answer", sent, token)
    node = sent.session.node
    try:
        record = verify_receipt(token, {node.key_id: node.verify_key})
    except Tampered:
        raise _invalid("the receipt is not signed by the node of this session", sent, token) from None
    for name, expected in _expectations(sent).items():
        if getattr(record, name) != expected:
            raise _invalid(f"the receipt states another {name} than the request had", sent, token)
    return record


def _expectations(sent: Prepared) -> dict[str, str | int]:
    session = sent.session
    # Neither session nor tier: a retry is answered with the receipt of the first time, when the session was another.
    return {
        "licence_id": session.licence.licence_id,
        "buyer_id": session.licence.buyer_id,
        "package_id": session.contract.package_id,
        "model": session.contract.name,
        "version": session.contract.version,
        "samples": sent.samples,
        "request_id": sent.request_id,
        "payload_digest": sent.digest,
    }


def _invalid(public: str, sent: Prepared, token: str) -> ReceiptInvalid:
    error = ReceiptInvalid(
        public, request_id=sent.request_id, remedy="Keep the token and the request id; show them to the vendor."
    )
    error.token = token
    return error
