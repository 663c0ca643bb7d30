"""The handshake, stepped by hand with `next` and `send`, and against a node that keeps the wire's rules."""

import json
from typing import Any

import pytest

from support import keys
from support.buyer import SimNode, Time, contract, core, drive, held, refused
from tessera.client import (
    GrantInvalid,
    NotYourLicence,
    ProofRefused,
    ProtocolError,
    ServerUnverified,
    SessionExpired,
    Unreachable,
    WrongInputKey,
)
from tessera.client._effects import CREATE_CHALLENGE, OPEN_SESSION, Reply, Rpc
from tessera.client._handshake import open_session, renew_session
from tessera.client._plans import Core, fresh_session
from tessera.client._session import Session, renewal_s
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.proof import check_proof, confirm, confirmation_key, input_key_id
from tessera.v1 import licensing_pb2 as pb
from tessera.v1 import types_pb2


def opened(using: Core, node: SimNode, *, stale: Session | None = None) -> Session:
    """Run the plan that opens a session."""
    session: Session = drive(fresh_session(using, using.credentials.held[0], None, stale), node, using)
    return session


def test_the_steps_of_opening() -> None:
    """Challenge, then one message with licence, grant, proof and confirmation, bound to nonce, node and licence."""
    using = core()
    mine = using.credentials.held[0]
    plan = open_session(using.credentials, mine, using.clocks)
    assert next(plan) == Rpc(CREATE_CHALLENGE, pb.CreateChallengeRequest())
    node = SimNode()
    step = plan.send(node.answer(Rpc(CREATE_CHALLENGE, pb.CreateChallengeRequest())))
    assert isinstance(step, Rpc)
    assert step.method is OPEN_SESSION
    message: Any = step.message
    nonce, digest = message.proof.nonce, mine.licence.digest
    assert (message.licence, message.grant) == (mine.licence.token, mine.grant)
    assert message.key_confirmation == confirm(confirmation_key(keys.INPUT_KEY), nonce, keys.NODE.key_id, digest)
    proof = message.proof
    check_proof(
        proof.buyer_public_key, proof.signature, "open-session", nonce, keys.NODE.key_id, digest,
        expected_buyer_id=keys.BUYER.key_id,
    )  # fmt: skip
    with pytest.raises(StopIteration) as done:
        plan.send(node.answer(step))
    session = done.value.value
    assert (session.session_id, session.contract.version, session.samples_left) == ("session-1", 3, 100)


def test_a_server_that_restarts_between_its_question_and_the_answer_is_asked_anew() -> None:
    """It does not know the challenge any more; a repetition begins with another one. A bad proof stays one."""
    using, node = core(), SimNode()
    node.fails("OpenSession", refused("UNAUTHENTICATED", "challenge-unknown"))
    assert opened(using, node).session_id == "session-1"
    assert node.methods() == ["CreateChallenge", "OpenSession"] * 2
    node.fails("OpenSession", refused("UNAUTHENTICATED", "bad-proof"))
    with pytest.raises(ProofRefused):
        opened(using, node)


def test_a_renewal_with_a_lost_challenge_leaves_the_session_as_it_is() -> None:
    """It still holds; if it does not, the server will say so at the next request."""
    time = Time()
    using, node = core(time=time), SimNode(time=time)
    session = opened(using, node)
    time.advance(80)
    node.fails("RenewSession", refused("UNAUTHENTICATED", "challenge-unknown"))
    kept = drive(fresh_session(using, using.credentials.held[0], session, None), node, using)
    assert kept is session


def test_a_missing_grant_is_fetched_with_a_proof_of_its_own() -> None:
    """A licence file without a grant costs one more challenge; the input key is then opened from the grant."""
    node, using = SimNode(), core(held(grant=False))
    assert opened(using, node).contract.input_key_id == input_key_id(keys.INPUT_KEY)
    assert node.methods() == ["CreateChallenge", "FetchGrant", "CreateChallenge", "OpenSession"]


def test_a_given_key_needs_no_grant() -> None:
    """With `input_key` the grant is the node's matter."""
    node, using = SimNode(), core(held(grant=False), input_key=keys.INPUT_KEY)
    opened(using, node)
    assert node.methods() == ["CreateChallenge", "OpenSession"]


def test_a_plain_licence_confirms_no_key() -> None:
    """A licence that names no input key leads to plain inputs, also when a key was given."""
    node = SimNode(contract=contract(transform="", input_key_id=""))
    using = core(held(keyed=False), input_key=keys.INPUT_KEY)
    session = opened(using, node)
    message: Any = node.seen[-1].message
    assert message.key_confirmation == b""
    assert session.keying({}) == {}


def test_a_wrong_key_is_for_the_server_to_refuse() -> None:
    """A wrong `input_key` is confirmed as it is, and the server's refusal is what the caller sees."""
    node, using = SimNode(), core(input_key=keys.OTHER_INPUT_KEY)
    with pytest.raises(WrongInputKey) as caught:
        opened(using, node)
    assert caught.value.status == "PERMISSION_DENIED"
    assert node.methods()[-1] == "OpenSession"


def test_a_contract_under_another_key_stops_before_any_tensor() -> None:
    """Should a server accept what does not fit, the client still sends nothing keyed wrongly."""
    node = SimNode(contract=contract(input_key_id=input_key_id(keys.OTHER_INPUT_KEY)))
    with pytest.raises(WrongInputKey) as caught:
        opened(core(), node)
    assert caught.value.status is None


def test_a_contract_without_the_licences_key_stops_before_any_tensor() -> None:
    """A server that claims plain inputs for a licence with an input key does not get them (rule C-5)."""
    node = SimNode(contract=contract(transform="", input_key_id=""))
    with pytest.raises(ProtocolError, match="another input key"):
        opened(core(), node)


def test_a_stolen_licence_is_for_the_server_to_refuse() -> None:
    """Another buyer's licence goes out with our own proof, and is refused as not ours."""
    stolen = held(buyer=keys.OTHER_BUYER)
    with pytest.raises(NotYourLicence):
        opened(core(stolen), SimNode())


@pytest.mark.parametrize("grant", ["nonsense", "a.b.c"])
def test_a_grant_that_does_not_open_is_named(grant: str) -> None:
    """A damaged grant in one's own licence file is refused here, before a session is asked for."""
    broken = type(held())(held().licence, grant)
    with pytest.raises(GrantInvalid):
        opened(core(broken), SimNode())


def test_a_grant_without_an_input_key_is_named() -> None:
    """A grant of a plain package cannot serve a licence that names an input key."""
    mine = held()
    plain = keys.licence(type(mine.licence.terms)("digits"))
    other = keys.grant(plain, secrets=PackageSecrets(keys.PACKAGE_ID, keys.CONTENT_KEY, None)).token
    with pytest.raises(GrantInvalid):
        opened(core(type(mine)(mine.licence, other)), SimNode())


def test_a_licence_for_one_node_is_not_honoured_by_another() -> None:
    """A node that accepts a licence for another node is not believed."""
    node = SimNode(identity=keys.OTHER_NODE)
    with pytest.raises(ServerUnverified):
        opened(core(input_key=keys.INPUT_KEY), node)


def test_an_identity_that_is_not_its_keys_is_refused() -> None:
    """The node id must be the thumbprint of the key that will sign receipts."""
    using = core()
    plan = open_session(using.credentials, using.credentials.held[0], using.clocks)
    next(plan)
    public = keys.NODE.public
    lie = types_pb2.NodeIdentity(node_id=keys.OTHER_NODE.key_id, verify_key=public.verify_key, seal_key=public.seal_key)
    with pytest.raises(ProtocolError):
        plan.send(Reply(pb.CreateChallengeResponse(nonce=bytes(32), node=lie)))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"version": 0},
        {"max_batch": 0},
        {"inputs": []},
        {"outputs": []},
        {"transform": "[]"},
        {"transform": "[" * 3000},
        {"transform": json.dumps([{"kind": "rot13", "block": 4}])},
        {"inputs": [types_pb2.TensorContract(name="x", datatype="UINT8", shape=[3, 4])]},
        {"inputs": [types_pb2.TensorContract(name="x", datatype="FP32", shape=[-1, 4])]},
    ],
)
def test_an_unusable_contract_is_refused(changes: dict[str, Any]) -> None:
    """A client works by a contract or not at all."""
    with pytest.raises(ProtocolError):
        opened(core(), SimNode(contract=contract(**changes)))


@pytest.mark.parametrize("token", ["", "ünsafe", "new\nline", "x" * 5000])
def test_an_unusable_token_is_refused(token: str) -> None:
    """What cannot be a header is not accepted as a token."""
    using, node = core(), SimNode()
    plan = open_session(using.credentials, using.credentials.held[0], using.clocks)
    step: Any = next(plan)
    step = plan.send(node.answer(step))
    reply = node.answer(step)
    reply.message.session_token = token
    with pytest.raises(ProtocolError):
        plan.send(reply)


def test_a_handshake_is_repeated_from_its_beginning() -> None:
    """After an outage the whole handshake runs again, because a nonce is good once."""
    node = SimNode()
    node.fails("OpenSession", refused("UNAVAILABLE", "draining"))
    opened(core(), node)
    assert node.methods() == ["CreateChallenge", "OpenSession"] * 2
    assert node.pauses == [pytest.approx(0.075)]


def test_a_handshake_is_given_up_after_the_retries() -> None:
    """Three retries are four attempts, with growing pauses."""
    node = SimNode()
    node.fails("CreateChallenge", *[refused("UNAVAILABLE")] * 9)
    with pytest.raises(Unreachable):
        opened(core(), node)
    assert len(node.seen) == 4
    assert node.pauses == sorted(node.pauses)


def test_a_refusal_is_not_repeated() -> None:
    """An expired licence is asked about once."""
    node = SimNode()
    node.fails("OpenSession", refused("PERMISSION_DENIED", "licence-expired"))
    with pytest.raises(Exception, match="public sentence"):
        opened(core(), node)
    assert len(node.seen) == 2


def test_a_session_is_renewed_at_seven_tenths_of_its_life() -> None:
    """Before that it is used as it is; then a fresh proof extends it, and the token stays."""
    time = Time()
    using, node = core(time=time), SimNode(time=time)
    session = opened(using, node)
    slot = using.credentials.held[0]
    time.advance(69)
    assert drive(fresh_session(using, slot, session, None), node, using) is session
    time.advance(1)
    renewed = drive(fresh_session(using, slot, session, None), node, using)
    assert node.methods()[-2:] == ["CreateChallenge", "RenewSession"]
    assert renewed.token == session.token
    assert renewed.expires_at_s == session.expires_at_s + 70


@pytest.mark.parametrize(("reason", "sessions"), [("session-expired", 2), ("draining", 1)])
def test_a_renewal_that_fails(reason: str, sessions: int) -> None:
    """A session that is gone is opened anew; a server that is busy leaves the old one in use."""
    time = Time()
    using, node = core(time=time), SimNode(time=time)
    session = opened(using, node)
    time.advance(80)
    node.fails("RenewSession", refused("UNAUTHENTICATED", reason))
    drive(fresh_session(using, using.credentials.held[0], session, None), node, using)
    assert node.sessions == sessions


def test_a_renewal_by_another_node_is_refused() -> None:
    """The node behind the address must be the one that opened the session."""
    using = core()
    session = opened(using, SimNode())
    plan = renew_session(using.credentials, using.credentials.held[0], session, using.clocks)
    with pytest.raises(ServerUnverified):
        drive(plan, SimNode(identity=keys.OTHER_NODE))


def test_a_stale_session_is_replaced_once_for_all_who_hold_it() -> None:
    """Whoever comes second with the same lost token is given the session that the first one opened."""
    using, node = core(), SimNode()
    slot = using.credentials.held[0]
    first = opened(using, node)
    second = drive(fresh_session(using, slot, first, first), node, using)
    assert drive(fresh_session(using, slot, second, first), node, using) is second
    assert node.sessions == 2


@pytest.mark.parametrize(("expires_s", "expected"), [(1100.0, 70.0), (1004.0, None), (900.0, None)])
def test_clocks_that_disagree_are_not_counted_on(expires_s: float, expected: float | None) -> None:
    """A session that seems to be over already is renewed on the server's word only."""
    assert renewal_s(expires_s, 1000.0, 0.0) == expected


def test_a_session_shows_no_secret() -> None:
    """Neither token nor key is in a session's representation."""
    text = repr(opened(core(), SimNode()))
    assert "token-1" not in text
    assert keys.INPUT_KEY.reveal().hex() not in text


def test_a_lost_session_is_not_retried_for_ever() -> None:
    """`SessionExpired` from OpenSession itself is final."""
    node = SimNode()
    node.fails("OpenSession", *[refused("UNAUTHENTICATED", "session-expired")] * 3)
    with pytest.raises(SessionExpired):
        opened(core(), node)
