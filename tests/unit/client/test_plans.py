"""One call from arrays to answer: splitting, keying, retrying, receipts. No server, no clock, no chance."""

from typing import Any

import numpy as np
import pytest

from support import keys
from support.buyer import SimNode, Time, contract, core, drive, held, images, refused, scores
from tessera.client import (
    Answer,
    ClientError,
    DeadlineExceeded,
    InvalidTensor,
    LicenceMissing,
    ProtocolError,
    QuotaExhausted,
    ReceiptInvalid,
    RequestConflict,
    RetryPolicy,
    SessionUnknown,
    Unreachable,
)
from tessera.client._plans import Core, close_session, infer, proven_session, session_of, usage
from tessera.client._request import request_ids
from tessera.keystore.errors import ApiMisuse
from tessera.oip.v1 import inference_pb2 as oip
from tessera.transforms import Transform, TransformSpec
from tessera.v1 import types_pb2

KEYED = Transform(TransformSpec.parse_text("shf:4,np:4"), keys.INPUT_KEY, 1, 8, 8)


def ask(node: SimNode, x: Any, *, using: Core | None = None, request_id: str | None = None) -> Answer:
    """Run one `infer` plan."""
    using = using or core(time=node.time)
    plan = infer(using, using.credentials.held[0], x, request_id, sole=True)
    answer: Answer = drive(plan, node, using)
    return answer


def test_what_leaves_is_keyed() -> None:
    """The wire carries the transformed bytes, and the answer is the model's for them."""
    node, x = SimNode(), images(3)
    answer = ask(node, x)
    message: Any = node.seen[-1].message
    assert message.raw_input_contents[0] == KEYED(x).tobytes()
    assert (message.model_name, message.model_version) == ("digits", "3")
    assert (answer.output == scores(KEYED(x))).all()
    assert answer.attempts == 1


def test_one_sample_in_one_sample_out() -> None:
    """Without a batch axis there is none in the answer."""
    assert ask(SimNode(), images(1)[0]).output.shape == (10,)


def test_a_large_batch_is_split() -> None:
    """Nine samples at four a request are three requests, each with its own id and receipt, joined in order."""
    node, x = SimNode(), images(9)
    answer = ask(node, x, request_id="job-7")
    sent: list[Any] = [rpc.message for rpc in node.seen if rpc.receipt]
    assert [message.id for message in sent] == ["job-7.0", "job-7.1", "job-7.2"]
    assert [message.inputs[0].shape[0] for message in sent] == [4, 4, 1]
    assert (answer.output == scores(KEYED(x))).all()
    assert [record.samples for record in answer.receipts] == [4, 4, 1]
    assert answer.receipt is None
    assert answer.request_id == "job-7"


def test_ids_are_random_unless_given() -> None:
    """Calls without an id never share one; a given id is used as it is."""
    assert request_ids(None, 1) != request_ids(None, 1)
    assert request_ids("mine", 1) == ("mine", ["mine"])
    call, parts = request_ids(None, 2)
    assert parts == [f"{call}.0", f"{call}.1"]


@pytest.mark.parametrize("given", [None, "job-7"])
def test_a_split_call_is_repeated_under_the_id_in_its_error(given: str | None) -> None:
    """The id is the call's and not the failed part's, under which every part would be new and charged again."""
    node, x = SimNode(), images(9)
    node.fails("ModelInfer", refused("DEADLINE_EXCEEDED"))
    with pytest.raises(DeadlineExceeded) as caught:
        ask(node, x, request_id=given)
    assert caught.value.request_id is not None
    ask(node, x, request_id=caught.value.request_id)
    sent: list[Any] = [rpc.message for rpc in node.seen if rpc.receipt]
    assert [message.id for message in sent] == [f"{caught.value.request_id}.{part}" for part in (0, 0, 1, 2)]


@pytest.mark.parametrize("bad", ["", "has space", "x" * 121, "ümlaut", "new\nline"])
def test_a_request_id_is_visible_ascii(bad: str) -> None:
    """What the server would refuse is the caller's fault here already."""
    with pytest.raises(ApiMisuse):
        ask(SimNode(), images(1), request_id=bad)


def test_nothing_is_sent_that_does_not_fit() -> None:
    """A wrong shape ends before ModelInfer."""
    node = SimNode()
    with pytest.raises(InvalidTensor, match="image"):
        ask(node, np.zeros((2, 3, 8, 8), np.uint8))
    assert "ModelInfer" not in node.methods()


def test_an_image_that_the_blocks_do_not_divide_is_named() -> None:
    """With open axes in the contract the transform's own limits show as `InvalidTensor`."""
    free = types_pb2.TensorContract(name="image", datatype="UINT8", shape=[-1, 1, -1, -1], layout="NCHW")
    with pytest.raises(InvalidTensor, match="does not divide") as caught:
        ask(SimNode(contract=contract(inputs=[free])), np.zeros((1, 7, 8), np.uint8))
    assert caught.value.tensor == "image"


def test_several_outputs_need_the_detailed_call() -> None:
    """`infer` cannot choose; it says so before sending."""
    node = SimNode(
        contract=contract(outputs=[types_pb2.TensorContract(name=n, datatype="FP32", shape=[-1]) for n in "ab"])
    )
    with pytest.raises(ApiMisuse, match="several outputs"):
        ask(node, images(1))
    assert "ModelInfer" not in node.methods()


def test_an_outage_is_bridged_with_the_same_id() -> None:
    """The same bytes under the same id go out again after a pause; the caller sees one answer."""
    node = SimNode()
    node.fails("ModelInfer", refused("UNAVAILABLE", "ledger-unavailable"), refused("UNAVAILABLE"))
    answer = ask(node, images(1))
    sent: list[Any] = [rpc.message for rpc in node.seen if rpc.receipt]
    assert len(sent) == 3
    assert len({message.SerializeToString(deterministic=True) for message in sent}) == 1
    assert answer.attempts == 3
    assert node.pauses == pytest.approx([0.075, 0.15])
    assert answer.seconds == pytest.approx(0.225)


def test_retries_come_to_an_end() -> None:
    """After the last retry the outage is the caller's to know."""
    node = SimNode()
    node.fails("ModelInfer", *[refused("UNAVAILABLE")] * 9)
    with pytest.raises(Unreachable) as caught:
        ask(node, images(1), request_id="r")
    assert node.methods().count("ModelInfer") == 4
    assert caught.value.request_id == "r"


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        ("RESOURCE_EXHAUSTED", "quota-exhausted", QuotaExhausted),
        ("ALREADY_EXISTS", "request-id-conflict", RequestConflict),
        ("INVALID_ARGUMENT", "invalid-tensor", InvalidTensor),
        ("INTERNAL", "", ClientError),
        ("DEADLINE_EXCEEDED", "deadline-exceeded", ClientError),
    ],
)
def test_what_a_repetition_cannot_cure_is_not_repeated(status: str, reason: str, kind: type[ClientError]) -> None:
    """Quota, conflict, bad input, faults and deadlines are raised at once."""
    node = SimNode()
    node.fails("ModelInfer", refused(status, reason))
    with pytest.raises(kind):
        ask(node, images(1))
    assert node.methods().count("ModelInfer") == 1


def test_a_lost_session_is_reopened_once() -> None:
    """The server was restarted: another session, and the same request again."""
    node = SimNode()
    node.fails("ModelInfer", refused("UNAUTHENTICATED", "session-unknown"))
    ask(node, images(1))
    tokens = [rpc.token.reveal() for rpc in node.seen if rpc.receipt and rpc.token]
    assert tokens == [b"token-1", b"token-2"]


def test_a_session_that_is_lost_twice_is_not_opened_for_ever() -> None:
    """Opening sessions in a circle would take the licence's seats."""
    node = SimNode()
    node.fails("ModelInfer", *[refused("UNAUTHENTICATED", "session-unknown")] * 5)
    with pytest.raises(SessionUnknown):
        ask(node, images(1))
    assert node.sessions == 2


def test_a_receipt_is_checked_and_kept() -> None:
    """The answer carries the record and the token that proves it."""
    answer = ask(SimNode(), images(2), request_id="r-1")
    assert answer.receipt is not None
    assert (answer.receipt.request_id, answer.receipt.samples) == ("r-1", 2)
    assert len(answer.receipt_tokens) == 1


def test_receipts_can_be_left_out() -> None:
    """Without them nothing is asked for and nothing checked."""
    node = SimNode()
    answer = ask(node, images(1), using=core(receipts=False, time=node.time))
    assert answer.receipts == ()
    assert not any(rpc.receipt for rpc in node.seen)


@pytest.mark.parametrize(
    "change",
    [
        {"licence_id": "lic-2"},
        {"buyer_id": keys.OTHER_BUYER.key_id},
        {"package_id": "ff" * 16},
        {"model": "other"},
        {"version": 4},
        {"samples": 3},
        {"request_id": "r-2"},
        {"payload_digest": "0" * 64},
    ],
)
def test_a_receipt_about_something_else_is_refused(change: dict[str, Any]) -> None:
    """Every field that the buyer pays by is held against what was sent."""
    node = SimNode(rewrite_receipt=lambda claims: claims.update(change))
    with pytest.raises(ReceiptInvalid) as caught:
        ask(node, images(2), request_id="r-1")
    assert next(iter(change)) in str(caught.value)
    assert caught.value.token.count(".") == 2


def test_a_receipt_of_another_node_is_refused() -> None:
    """The key is pinned when the session is opened."""
    node = SimNode()
    using = core(time=node.time)
    drive(session_of(using.credentials.held[0]), node, using)
    node.identity = keys.OTHER_NODE
    with pytest.raises(ReceiptInvalid, match="not signed by the node"):
        ask(node, images(1), using=using)


def test_a_missing_receipt_is_refused() -> None:
    """A server that forgets the receipt is not believed."""
    node = SimNode()
    setattr(node, "receipt", lambda _: "")  # noqa: B010
    with pytest.raises(ReceiptInvalid, match="no receipt"):
        ask(node, images(1))


def _other_id(response: oip.ModelInferResponse) -> None:
    response.id = "other"


def _short(response: oip.ModelInferResponse) -> None:
    response.raw_output_contents[0] = b"1234"


def _typed(response: oip.ModelInferResponse) -> None:
    response.raw_output_contents.pop()


def _renamed(response: oip.ModelInferResponse) -> None:
    response.outputs[0].name = "other"


def _wider(response: oip.ModelInferResponse) -> None:
    response.outputs[0].shape[1] = 11


def _double(response: oip.ModelInferResponse) -> None:
    response.outputs.append(response.outputs[0])
    response.raw_output_contents.append(b"")


@pytest.mark.parametrize("tamper", [_other_id, _short, _typed, _renamed, _wider, _double])
def test_an_answer_that_breaks_the_contract_is_refused(tamper: Any) -> None:
    """Outputs are believed only in the promised form."""
    with pytest.raises(ProtocolError):
        ask(SimNode(tamper=tamper), images(2))


def test_usage_is_asked_within_the_session() -> None:
    """Totals come from the server; an absent quota is None."""
    node = SimNode()
    using = core(time=node.time)
    found = drive(usage(using, using.credentials.held[0]), node, using)
    assert (found.requests, found.samples, found.samples_left, found.quota_samples) == (2, 5, 95, None)


def test_a_doubtful_session_is_proven_by_a_call() -> None:
    """One that the server knows is kept, one that it does not is replaced; an outage is left to the next call."""
    node = SimNode()
    using = core(time=node.time)
    mine = using.credentials.held[0]
    session = drive(session_of(mine), node, using)
    assert drive(proven_session(mine, session), node, using) is session
    node.fails("GetUsage", refused("UNAVAILABLE"), refused("UNAUTHENTICATED", "session-unknown"))
    assert drive(proven_session(mine, session), node, using) is session
    assert drive(proven_session(mine, session), node, using).token != session.token
    assert node.sessions == 2


def test_closing_a_session_is_attempted_once() -> None:
    """A server that is gone lets the session lapse; closing never fails."""
    node = SimNode()
    using = core(time=node.time)
    session = drive(session_of(using.credentials.held[0]), node, using)
    node.fails("CloseSession", refused("UNAVAILABLE"))
    drive(close_session(session), node, using)
    assert node.methods().count("CloseSession") == 1


def test_a_model_without_a_licence_is_refused_here() -> None:
    """The client says which licences it has."""
    with pytest.raises(LicenceMissing, match="those given are for digits"):
        core().credentials.for_model("faces")
    assert core(held(), held(model="faces")).credentials.for_model("faces").licence.terms.model == "faces"


def test_pauses_grow_to_a_cap_and_end() -> None:
    """Half of each pause is fixed, half is chance; beyond the retries there is none."""
    policy = RetryPolicy(5, base_s=1.0, cap_s=4.0)
    assert [policy.pause_s(n, 0.0) for n in range(1, 7)] == [0.5, 1.0, 2.0, 2.0, 2.0, None]
    assert policy.pause_s(1, 1.0) == 1.0
    with pytest.raises(ApiMisuse):
        RetryPolicy(-1)


def test_time_stands_still_for_a_plan_that_does_not_wait() -> None:
    """Plans read no clock of their own."""
    time = Time()
    assert ask(SimNode(time=time), images(1), using=core(time=time)).seconds == 0.0
