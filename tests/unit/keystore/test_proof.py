"""Proof of possession and key confirmation (rules W-1 to W-6)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.keys import BUYER, INPUT_KEY, NODE, OTHER_BUYER, OTHER_INPUT_KEY, OTHER_NODE
from support.vectors import cases, load
from tessera.keystore import proof
from tessera.keystore.errors import ApiMisuse, Denied, Unauthenticated
from tessera.keystore.proof import Purpose

NONCE = bytes(range(32))
DIGEST = bytes(range(32, 64))
CONTEXT = (NONCE, NODE.key_id, DIGEST)
PUBLIC_KEY = BUYER.public.verify_key
SIGNATURE = proof.sign_proof(BUYER, "open-session", *CONTEXT)


def check(
    *,
    public_key: bytes = PUBLIC_KEY,
    signature: bytes = SIGNATURE,
    purpose: Purpose = "open-session",
    nonce: bytes = NONCE,
    node_id: str = NODE.key_id,
    digest: bytes = DIGEST,
) -> None:
    """Check the proof with some of its parts exchanged."""
    proof.check_proof(public_key, signature, purpose, nonce, node_id, digest, expected_buyer_id=BUYER.key_id)


@pytest.mark.parametrize("case", cases("licence", "proofs"))
def test_proof_vectors(case: dict[str, str]) -> None:
    """Message and signature of each purpose are the printed ones."""
    purpose: Purpose = case["name"]  # type: ignore[assignment]  # the file holds the three purposes
    place = (bytes.fromhex(case["nonce"]), case["node_id"], bytes.fromhex(load("licence")["licence"]["digest"]))
    assert proof.proof_message(purpose, *place).hex() == case["message"]
    assert proof.sign_proof(BUYER, purpose, *place).hex() == case["signature"]


def test_confirmation_vector() -> None:
    """Input key id, confirmation key and confirmation are the printed ones."""
    vectors = load("licence")
    case, grant = vectors["proofs"][0], vectors["grant"]
    place = (bytes.fromhex(case["nonce"]), case["node_id"], bytes.fromhex(vectors["licence"]["digest"]))
    key = proof.confirmation_key(INPUT_KEY)
    assert proof.input_key_id(INPUT_KEY) == grant["input_key_id"]
    assert key.reveal().hex() == grant["confirmation_key"]
    assert proof.confirm(key, *place).hex() == vectors["confirmation"]


def test_the_right_proof_passes() -> None:
    """What `sign_proof` gives, `check_proof` accepts."""
    check()


@pytest.mark.parametrize(
    "change",
    [
        {"purpose": "renew-session"},
        {"purpose": "fetch-grant"},
        {"nonce": bytes(32)},
        {"nonce": b""},
        {"nonce": NONCE + b"x"},
        {"node_id": OTHER_NODE.key_id},
        {"digest": bytes(32)},
        {"signature": b""},
        {"signature": bytes(64)},
        {"signature": SIGNATURE + b"x"},
        {"signature": proof.sign_proof(OTHER_BUYER, "open-session", *CONTEXT)},
    ],
)
def test_a_proof_fits_one_place_only(change: dict[str, object]) -> None:
    """Another purpose, nonce, node, licence or signature is `bad-proof`."""
    with pytest.raises(Unauthenticated) as caught:
        check(**change)  # type: ignore[arg-type]  # each is of its parameter's type
    assert caught.value.reason == "bad-proof"


@pytest.mark.parametrize("key", [OTHER_BUYER.public.verify_key, b"", bytes(32), PUBLIC_KEY + b"x"])
def test_another_key_is_not_the_licences(key: bytes) -> None:
    """A stolen licence with the thief's own key, or with no key at all, is `licence-not-yours`."""
    with pytest.raises(Denied) as caught:
        check(public_key=key, signature=proof.sign_proof(OTHER_BUYER, "open-session", *CONTEXT))
    assert caught.value.reason == "licence-not-yours"


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=80), st.binary(max_size=40))
def test_random_proofs_end_typed(public_key: bytes, signature: bytes, nonce: bytes) -> None:
    """Random keys, signatures and nonces are refused with one of the two reasons."""
    with pytest.raises(Denied):
        check(public_key=public_key, signature=signature, nonce=nonce)
    with pytest.raises(Unauthenticated):
        check(signature=signature, nonce=nonce)


@pytest.mark.parametrize(
    ("purpose", "nonce", "node_id", "digest"),
    [
        ("log-in", NONCE, NODE.key_id, DIGEST),
        ("open-session", b"short", NODE.key_id, DIGEST),
        ("open-session", NONCE, "node", DIGEST),
        ("open-session", NONCE, NODE.key_id, b"short"),
    ],
)
def test_our_own_mistakes_are_misuse(purpose: Purpose, nonce: bytes, node_id: str, digest: bytes) -> None:
    """A caller that signs a message of the wrong form is told at once."""
    with pytest.raises(ApiMisuse):
        proof.sign_proof(BUYER, purpose, nonce, node_id, digest)


def test_confirmation_needs_the_input_key() -> None:
    """The right key passes; another key, nonce, node or licence is `wrong-input-key`."""
    key, other = proof.confirmation_key(INPUT_KEY), proof.confirmation_key(OTHER_INPUT_KEY)
    proof.check_confirmation(key, proof.confirm(key, *CONTEXT), *CONTEXT)
    wrong = [
        proof.confirm(other, *CONTEXT),
        proof.confirm(key, bytes(32), NODE.key_id, DIGEST),
        proof.confirm(key, NONCE, OTHER_NODE.key_id, DIGEST),
        proof.confirm(key, NONCE, NODE.key_id, bytes(32)),
        b"",
        bytes(32),
        INPUT_KEY.reveal(),
    ]
    for confirmation in wrong:
        with pytest.raises(Denied) as caught:
            proof.check_confirmation(key, confirmation, *CONTEXT)
        assert caught.value.reason == "wrong-input-key"


def test_a_nonce_of_another_length_confirms_nothing() -> None:
    """A peer's short nonce is a refusal, not our mistake."""
    with pytest.raises(Denied):
        proof.check_confirmation(proof.confirmation_key(INPUT_KEY), bytes(32), b"", NODE.key_id, DIGEST)


def test_derived_values_are_unrelated() -> None:
    """Id, confirmation key and input key share no bytes, and the id differs for each key."""
    key_id, key = proof.input_key_id(INPUT_KEY), proof.confirmation_key(INPUT_KEY)
    assert bytes.fromhex(key_id) != INPUT_KEY.reveal()[:16]
    assert bytes.fromhex(key_id) != key.reveal()[:16]
    assert key.reveal() != INPUT_KEY.reveal()
    assert key_id != proof.input_key_id(OTHER_INPUT_KEY)
