"""Identities: keys that are refused, documents that round-trip, boxes that open for one (rules K-4 to K-8)."""

import copy
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.keys import BUYER, ISSUER, NODE, OTHER_BUYER
from support.vectors import load
from tessera.keystore import canonical
from tessera.keystore.errors import ApiMisuse, Malformed, Tampered, WrongKey
from tessera.keystore.identity import Identity, PublicIdentity, require_role
from tessera.keystore.jws import b64u
from tessera.keystore.secrets import SecretBytes

DOCUMENT = canonical.loads(BUYER.public.to_json(), max_bytes=4096)
LOW_ORDER_X25519 = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0900000000000000000000000000000000000000000000000000000000000080",
]


@pytest.mark.parametrize("vector", load("licence")["identities"], ids=lambda vector: str(vector["name"]))
def test_vectors(vector: dict[str, str]) -> None:
    """The 64 secret bytes of each vector give the printed key id and public document."""
    public = PublicIdentity.from_json(vector["public"].encode())
    found = Identity.from_secret(public.role, public.name, SecretBytes(bytes.fromhex(vector["secret"])))
    assert found.public == public
    assert found.key_id == vector["key_id"]


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["issuer", "node", "buyer"]),
    st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=64),
)
def test_round_trips(role: str, name: str) -> None:
    """Public document and secret bytes give the same identity back."""
    mine = Identity.generate(role, name)  # type: ignore[arg-type]  # drawn from the three roles
    assert PublicIdentity.from_json(mine.public.to_json()) == mine.public
    assert PublicIdentity.from_json(b"\n " + mine.public.to_json() + b"\n") == mine.public
    again = Identity.from_secret(mine.public.role, name, mine.export_secret())
    assert again.public == mine.public
    again.public.verify(b"message", mine.sign(b"message"))
    assert again.open(mine.public.seal(SecretBytes(b"secret"))) == b"secret"


def test_generated_identities_differ() -> None:
    """Two identities share neither key nor key id."""
    first, second = Identity.generate("buyer", "x"), Identity.generate("buyer", "x")
    assert first.key_id != second.key_id
    assert first.public.seal_key != second.public.seal_key


@pytest.mark.parametrize(
    "change",
    [
        {"format": "tessera-public-identity/2"},
        {"role": "admin"},
        {"role": 1},
        {"name": ""},
        {"name": "x" * 65},
        {"name": "a\nb"},
        {"name": " a"},
        {"name": "a\u202eb"},
        {"name": None},
        {"verify_key": b64u(bytes(31))},
        {"verify_key": b64u(bytes(32))},
        {"verify_key": b64u(bytes([1]) + bytes(31))},
        {"verify_key": DOCUMENT["verify_key"] + "="},
        {"verify_key": 7},
        {"seal_key": b64u(bytes(33))},
        {"seal_key": ""},
        {"extra": 1},
        *({"seal_key": b64u(bytes.fromhex(key))} for key in LOW_ORDER_X25519),
    ],
)
def test_other_documents_are_malformed(change: dict[str, object]) -> None:
    """A field of another form, a bad key, or an unknown field is refused."""
    with pytest.raises(Malformed):
        PublicIdentity.from_json(canonical.dumps(DOCUMENT | change))


@pytest.mark.parametrize("field", sorted(DOCUMENT))
def test_missing_fields_are_malformed(field: str) -> None:
    """Every field is required."""
    with pytest.raises(Malformed):
        PublicIdentity.from_json(canonical.dumps({name: DOCUMENT[name] for name in DOCUMENT if name != field}))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300) | st.binary(min_size=4097, max_size=5000))
def test_random_bytes_are_malformed(raw: bytes) -> None:
    """Random bytes are no public identity, and end typed."""
    with pytest.raises(Malformed):
        PublicIdentity.from_json(raw)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100), st.binary(max_size=80))
def test_random_signatures_are_tampered(message: bytes, signature: bytes) -> None:
    """Whatever is no signature raises `Tampered`, also at another length."""
    with pytest.raises(Tampered):
        BUYER.public.verify(message, signature)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_random_boxes_end_typed(box: bytes) -> None:
    """A box that is too short is `Malformed`, any other `WrongKey`."""
    with pytest.raises(Malformed if len(box) < 48 else WrongKey):
        BUYER.open(box)


def test_a_box_opens_for_its_owner_only() -> None:
    """What is sealed to one identity is `WrongKey` for every other, and every changed byte too."""
    box = BUYER.public.seal(SecretBytes(b"input key"))
    assert BUYER.open(box) == b"input key"
    assert len(box) == 48 + len(b"input key")
    with pytest.raises(WrongKey):
        OTHER_BUYER.open(box)
    for place in range(len(box)):
        changed = bytearray(box)
        changed[place] ^= 1
        with pytest.raises(WrongKey):
            BUYER.open(bytes(changed))


def test_an_identity_does_not_show_or_copy_itself() -> None:
    """`repr` holds public facts only; pickle and copy are refused."""
    text = repr(ISSUER) + str(ISSUER) + f"{ISSUER}"
    assert ISSUER.key_id in text
    assert "11" * 8 not in text
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(ISSUER)


@pytest.mark.parametrize("length", [0, 32, 63, 65])
def test_secret_halves_have_64_bytes(length: int) -> None:
    """A secret of another length is `Malformed`."""
    with pytest.raises(Malformed):
        Identity.from_secret("buyer", "x", SecretBytes(bytes(length)))


def test_require_role_names_both_roles() -> None:
    """A file in the wrong place is told by what it is and what was needed."""
    require_role(NODE.public, "node")
    with pytest.raises(Malformed, match=r"buyer.*node"):
        require_role(BUYER.public, "node")
    with pytest.raises(ApiMisuse):
        require_role(BUYER.public, "king")  # type: ignore[arg-type]  # the mistake under test
