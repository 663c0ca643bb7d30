"""Grants: bound to licence, package, node and buyer; a stolen one opens nothing (rules G-1 to G-7)."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.keys import (
    BUYER,
    CONTENT_KEY,
    INPUT_KEY,
    ISSUER,
    ISSUERS,
    NODE,
    NOW_S,
    OTHER_BUYER,
    OTHER_INPUT_KEY,
    OTHER_ISSUER,
    OTHER_NODE,
    PACKAGE_ID,
    PLAIN_SECRETS,
    RECORD_SECRETS,
    SECRETS,
    TERMS,
    grant,
    licence,
)
from support.vectors import load
from tessera.keystore import grant as grants
from tessera.keystore import jws, proof
from tessera.keystore import licence as licences
from tessera.keystore.errors import Denied, Malformed, Tampered, TesseraError, Unauthenticated, WrongKey
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.jws import b64u
from tessera.keystore.keyfile import KdfCost
from tessera.keystore.licence import Terms
from tessera.keystore.secrets import Passphrase, SecretBytes

LICENCE = licence()
GRANT = grant(LICENCE)
CLAIMS = jws.parse(GRANT.token, typ=grants.TYP).claims
ALL_ISSUERS = ISSUERS | {OTHER_ISSUER.key_id: OTHER_ISSUER.public.verify_key}


def forge(inner: dict[str, Any] | None = None, **outer: Any) -> str:
    """Return a grant the issuer really signed, with some claims exchanged."""
    claims = CLAIMS | outer | ({"tessera": CLAIMS["tessera"] | inner} if inner is not None else {})
    return jws.sign(grants.TYP, claims, ISSUER)


def test_vector() -> None:
    """The grant of the vectors verifies and opens to the printed keys."""
    vectors = load("licence")
    mine = licences.verify(vectors["licence"]["token"], ISSUERS)
    vector = vectors["grant"]
    found = grants.verify(vector["token"], mine, ISSUERS)
    keys = grants.open_for_node(found, NODE)
    confirmation, input_key = keys.confirmation_key, grants.open_for_buyer(found, BUYER)
    assert confirmation is not None
    assert input_key is not None
    assert found.package_id == vector["package_id"]
    assert keys.content_key.reveal().hex() == vector["content_key"]
    assert confirmation.reveal().hex() == vector["confirmation_key"]
    assert input_key.reveal().hex() == vector["input_key"]
    assert SECRETS.to_secret().reveal().hex() == vector["package_secrets"]


def test_round_trip() -> None:
    """Node and buyer find their keys, and the node's half never holds the input key."""
    found = grants.verify(GRANT.token, LICENCE, ISSUERS)
    assert found == GRANT == grants.parse_without_verification(GRANT.token)
    keys = grants.open_for_node(found, NODE)
    assert keys.content_key == CONTENT_KEY
    assert keys.confirmation_key == proof.confirmation_key(INPUT_KEY)
    assert keys.confirmation_key != INPUT_KEY
    assert grants.open_for_buyer(found, BUYER) == INPUT_KEY
    for box in (GRANT.content_key_box, GRANT.confirmation_key_box or b""):
        assert INPUT_KEY.reveal() not in NODE.open(box)


def test_plain_inputs_need_no_input_key() -> None:
    """A package without an input key has grants without the other two boxes."""
    mine = licence(Terms("digits"))
    found = grants.verify(grant(mine, secrets=PLAIN_SECRETS).token, mine, ISSUERS)
    assert grants.open_for_node(found, NODE).confirmation_key is None
    assert grants.open_for_buyer(found, BUYER) is None


def test_repr_does_not_show_token_or_boxes() -> None:
    """A logged grant hands out neither."""
    assert GRANT.token[:40] not in repr(GRANT)
    assert "box" not in repr(GRANT)
    assert CONTENT_KEY.reveal().hex()[:16] not in repr(SECRETS) + repr(grants.open_for_node(GRANT, NODE))


def test_a_stolen_grant_opens_nothing() -> None:
    """Another node or buyer is told `grant-mismatch`, and the boxes themselves are `WrongKey`."""
    with pytest.raises(Denied):
        grants.open_for_node(GRANT, OTHER_NODE)
    with pytest.raises(Denied):
        grants.open_for_buyer(GRANT, OTHER_BUYER)
    with pytest.raises(WrongKey):
        OTHER_NODE.open(GRANT.content_key_box)
    with pytest.raises(WrongKey):
        NODE.open(GRANT.input_key_box or b"")


def test_a_grant_fits_its_own_licence_only() -> None:
    """With another licence, even of the same buyer and issuer, it is `grant-mismatch`."""
    for other in (licence(expires_at_s=NOW_S + 1), licence(buyer=OTHER_BUYER), licence(node=OTHER_NODE)):
        with pytest.raises(Denied) as caught:
            grants.verify(GRANT.token, other, ISSUERS)
        assert caught.value.reason == "grant-mismatch"


def test_a_grant_by_another_trusted_issuer_is_refused() -> None:
    """An issuer cannot write grants for another's licences."""
    claims = CLAIMS | {"iss": OTHER_ISSUER.key_id}
    with pytest.raises(Denied) as caught:
        grants.verify(jws.sign(grants.TYP, claims, OTHER_ISSUER), LICENCE, ALL_ISSUERS)
    assert caught.value.reason == "grant-mismatch"


def test_boxes_cannot_be_moved() -> None:
    """A box of another licence's grant, of another package, or of another purpose does not open here."""
    other = jws.parse(grant(licence(expires_at_s=NOW_S + 1)).token, typ=grants.TYP).claims["tessera"]
    mine = CLAIMS["tessera"]
    moved = [
        {"content_key_box": other["content_key_box"]},
        {"confirmation_key_box": other["confirmation_key_box"]},
        {"content_key_box": mine["confirmation_key_box"]},
        {"package_id": "ff" * 16},
    ]
    for change in moved:
        with pytest.raises(Denied) as caught:
            grants.open_for_node(grants.verify(forge(change), LICENCE, ISSUERS), NODE)
        assert caught.value.reason == "grant-mismatch"
    swapped = grants.verify(forge({"input_key_box": other["input_key_box"]}), LICENCE, ISSUERS)
    with pytest.raises(Denied):
        grants.open_for_buyer(swapped, BUYER)
    with pytest.raises(Denied):
        grants.open_for_node(grants.verify(forge({"content_key_box": _sealed(b"junk")}), LICENCE, ISSUERS), NODE)


def _sealed(raw: bytes) -> str:
    return b64u(NODE.public.seal(SecretBytes(raw)))


def test_issue_checks_that_everything_belongs_together() -> None:
    """Another issuer, buyer, node or input key is refused before anything is sealed."""
    pairs: list[dict[str, Any]] = [
        {"issuer": OTHER_ISSUER},
        {"buyer": OTHER_BUYER.public},
        {"node": OTHER_NODE.public},
        {"secrets": PLAIN_SECRETS},
        {"secrets": PackageSecrets(PACKAGE_ID, CONTENT_KEY, OTHER_INPUT_KEY)},
    ]
    right: dict[str, Any] = {"issuer": ISSUER, "secrets": SECRETS, "buyer": BUYER.public, "node": NODE.public}
    right["now_s"] = NOW_S
    for change in pairs:
        with pytest.raises(Denied) as caught:
            grants.issue(LICENCE, **(right | change))
        assert caught.value.reason == "grant-mismatch"
    with pytest.raises(Malformed):
        grants.issue(LICENCE, **(right | {"buyer": NODE.public}))


@pytest.mark.parametrize(
    "token",
    [
        forge(iss=OTHER_ISSUER.key_id),
        forge(sub=1),
        forge(aud="any-node"),
        forge(jti=""),
        forge(iat=1.5),
        forge(extra=1),
        forge(tessera=[]),
        forge({"licence_digest": "00"}),
        forge({"licence_digest": "AA" * 32}),
        forge({"package_id": "x"}),
        forge({"package_id": 1}),
        forge({"content_key_box": 1}),
        forge({"content_key_box": "A="}),
        forge({"content_key_box": "A" * 1000}),
        forge({"input_key_box": None}),
        forge({"extra": 1}),
        forge(tessera={k: v for k, v in CLAIMS["tessera"].items() if k != "input_key_box"}),
        forge(tessera={k: v for k, v in CLAIMS["tessera"].items() if k != "content_key_box"}),
        LICENCE.token,
        "",
    ],
)
def test_other_forms_are_malformed(token: str) -> None:
    """Types, lengths and fields are exact, although the issuer signed them; a licence is no grant."""
    with pytest.raises(Malformed):
        grants.verify(token, LICENCE, ISSUERS)


def test_a_box_too_short_to_be_one() -> None:
    """A box of fewer than 48 bytes is `Malformed` when it is opened."""
    with pytest.raises(Malformed):
        grants.open_for_node(grants.verify(forge({"content_key_box": "AAAA"}), LICENCE, ISSUERS), NODE)


def test_signature_and_issuer_are_checked() -> None:
    """A changed grant is `Tampered`, an unknown issuer `Unauthenticated`."""
    changed = f"{GRANT.token.rsplit('.', 1)[0]}.{b64u(bytes(64))}"
    with pytest.raises(Tampered):
        grants.verify(changed, LICENCE, ISSUERS)
    with pytest.raises(Unauthenticated):
        grants.verify(GRANT.token, LICENCE, {})


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(GRANT.token) - 1), st.sampled_from([1, 2, 4, 8, 16, 32, 64]))
def test_flipped_characters_never_verify(place: int, mask: int) -> None:
    """No grant with one changed character verifies."""
    changed = GRANT.token[:place] + chr(ord(GRANT.token[place]) ^ mask) + GRANT.token[place + 1 :]
    with pytest.raises((Malformed, Tampered, Unauthenticated)):
        grants.verify(changed, LICENCE, ISSUERS)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200), st.binary(max_size=100))
def test_random_input_is_malformed(text: str, raw: bytes) -> None:
    """Random tokens and random package secrets are `Malformed`."""
    with pytest.raises(Malformed):
        grants.verify(text, LICENCE, ISSUERS)
    with pytest.raises(Malformed):
        grants.decode_package_secrets(raw)
    if (len(raw), raw[:1]) not in {(49, b"\1"), (81, b"\1"), (82, b"\2"), (81, b"\3")}:
        with pytest.raises(Malformed):
            PackageSecrets.from_secret(SecretBytes(raw))


@pytest.mark.parametrize("secrets", [SECRETS, PLAIN_SECRETS, RECORD_SECRETS])
def test_package_secrets_round_trip(tmp_path: Path, secrets: PackageSecrets) -> None:
    """One secret and back; a key file and back, with and without a passphrase."""
    assert PackageSecrets.from_secret(secrets.to_secret()) == secrets
    grants.save_package_secrets(tmp_path / "open", secrets)
    assert grants.load_package_secrets(tmp_path / "open") == secrets
    assert grants.decode_package_secrets((tmp_path / "open").read_bytes()) == secrets
    phrase = Passphrase(b"x")
    grants.save_package_secrets(tmp_path / "locked", secrets, phrase, cost=KdfCost.danger_for_tests)
    assert grants.load_package_secrets(tmp_path / "locked", lambda: phrase) == secrets


def test_package_secrets_whose_parts_disagree(tmp_path: Path) -> None:
    """A public part that is not the secret's is `Tampered`; a bad id is `Malformed`."""
    path = tmp_path / "a.secrets"
    grants.save_package_secrets(path, SECRETS)
    path.write_text(path.read_text().replace(PACKAGE_ID, "f" * 32))
    with pytest.raises(Tampered):
        grants.load_package_secrets(path)
    with pytest.raises(TesseraError):
        PackageSecrets("nonsense", CONTENT_KEY, None)
    assert TERMS.input_key_id == proof.input_key_id(INPUT_KEY)
