"""Compact JWS: the RFC's vectors, PyJWT both ways, and every way in that must stay shut (rules K-2, K-4, K-9)."""

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from support.keys import ISSUER, ISSUERS, OTHER_ISSUER
from support.vectors import cases, load
from tessera.keystore import _ed25519, canonical, jws
from tessera.keystore.errors import Malformed, Tampered, TesseraError, Unauthenticated
from tessera.keystore.identity import thumbprint

TYP = "tessera-test+jwt"
CLAIMS: dict[str, Any] = {"iss": ISSUER.key_id, "n": 7, "text": "grüße"}
TOKEN = jws.sign(TYP, CLAIMS, ISSUER)


def forge(header: object, payload: object = CLAIMS, *, canonical_form: bool = True) -> str:
    """Return a token with any header and payload that `ISSUER` has really signed."""

    def encode(value: object) -> str:
        if isinstance(value, bytes):
            return jws.b64u(value)
        return jws.b64u(canonical.dumps(value) if canonical_form else json.dumps(value).encode())

    signing_input = f"{encode(header)}.{encode(payload)}"
    return f"{signing_input}.{jws.b64u(ISSUER.sign(signing_input.encode()))}"


def header(**changes: object) -> dict[str, object]:
    """Return the right header with `changes`; a value of `None` leaves the field out."""
    fields: dict[str, object] = {"alg": "EdDSA", "kid": ISSUER.key_id, "typ": TYP} | changes
    return {name: value for name, value in fields.items() if value is not None}


def test_rfc_8037_signature() -> None:
    """RFC 8037 A.4: the signature over the printed signing input is the printed one, and verifies."""
    vector = load("jws")["rfc8037"]
    public_key, signature = (jws.b64u_decode(vector[name], max_bytes=64) for name in ("x", "signature"))
    assert _ed25519.verifies(public_key, vector["signing_input"].encode(), signature)
    seed = jws.b64u_decode(vector["d"], max_bytes=32)
    assert Ed25519PrivateKey.from_private_bytes(seed).sign(vector["signing_input"].encode()) == signature


def test_rfc_8037_thumbprint() -> None:
    """RFC 8037 A.3: the thumbprint of the printed key is the printed one."""
    vector = load("jws")["rfc8037"]
    assert thumbprint(jws.b64u_decode(vector["x"], max_bytes=32)) == vector["thumbprint"]


@pytest.mark.parametrize("case", cases("jws", "tokens"))
def test_vectors(case: dict[str, str]) -> None:
    """Each token of tests/vectors/jws.json ends as its `expect` says."""
    keys = {name: jws.b64u_decode(key, max_bytes=32) for name, key in load("jws")["keys"].items()}
    found = "ok"
    try:
        jws.verify(case["token"], typ=case["typ"], keys=keys)
    except TesseraError as error:
        found = type(error).__name__
    assert found == case["expect"]


def test_round_trip() -> None:
    """What is signed comes back, and signing is deterministic."""
    assert jws.verify(TOKEN, typ=TYP, keys=ISSUERS) == CLAIMS
    assert jws.sign(TYP, CLAIMS, ISSUER) == TOKEN


def test_pyjwt_verifies_ours() -> None:
    """PyJWT accepts our token under the same key."""
    key = Ed25519PublicKey.from_public_bytes(ISSUER.public.verify_key)
    assert jwt.decode(TOKEN, key, algorithms=["EdDSA"]) == CLAIMS
    assert jwt.get_unverified_header(TOKEN) == header()


def test_we_verify_pyjwt() -> None:
    """A token that PyJWT wrote in canonical JSON (sorted, no spaces) verifies here."""
    key = Ed25519PrivateKey.from_private_bytes(bytes([0x11]) * 32)
    claims = {"a": 1, "b": "two", "iss": ISSUER.key_id}
    extra = {"kid": ISSUER.key_id, "typ": TYP}
    token = jwt.encode(claims, key, algorithm="EdDSA", headers=extra, sort_headers=True)
    assert jws.verify(token, typ=TYP, keys=ISSUERS) == claims
    assert token == jws.sign(TYP, claims, ISSUER)
    unsorted = jwt.encode({"b": 1, "a": 2}, key, algorithm="EdDSA", headers=extra, sort_headers=True)
    with pytest.raises(Malformed, match="canonical"):
        jws.verify(unsorted, typ=TYP, keys=ISSUERS)


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(forge(header(alg="none")), id="alg-none"),
        pytest.param(forge(header(alg="HS256")), id="alg-hs256"),
        pytest.param(forge(header(alg="eddsa")), id="alg-case"),
        pytest.param(forge(header(alg="Ed25519")), id="alg-ed25519"),
        pytest.param(forge(header(alg=None)), id="no-alg"),
        pytest.param(forge(header(alg=["EdDSA"])), id="alg-list"),
        pytest.param(forge(header(typ="tessera-grant+jwt")), id="other-typ"),
        pytest.param(forge(header(typ=TYP.upper())), id="typ-case"),
        pytest.param(forge(header(typ=None)), id="no-typ"),
        pytest.param(forge(header(kid=None)), id="no-kid"),
        pytest.param(forge(header(kid=7)), id="kid-number"),
        pytest.param(forge(header(kid="../../etc/passwd")), id="kid-path"),
        pytest.param(forge(header(crit=["exp"], exp=1)), id="crit"),
        pytest.param(forge(header(jwk={"kty": "OKP"})), id="jwk"),
        pytest.param(forge(header(jku="https://example.com")), id="jku"),
        pytest.param(forge(header(b64=False)), id="b64"),
        pytest.param(forge([1]), id="header-list"),
        pytest.param(forge(b'{"alg":"none","alg":"EdDSA","kid":"x","typ":"t"}'), id="header-duplicate"),
        pytest.param(forge(header(), b'{"a":1,"a":2}'), id="payload-duplicate"),
        pytest.param(forge(header(), b'{"b":1,"a":2}'), id="payload-unsorted"),
        pytest.param(forge(header(), canonical_form=False), id="spaces"),
        pytest.param(forge(header(), [1]), id="payload-list"),
        pytest.param(forge(header(), b""), id="payload-empty"),
        pytest.param(TOKEN + ".", id="four-parts"),
        pytest.param(TOKEN.rsplit(".", 1)[0], id="two-parts"),
        pytest.param(TOKEN.rsplit(".", 1)[0] + ".", id="no-signature"),
        pytest.param(TOKEN + "=", id="padding"),
        pytest.param(TOKEN + "A", id="long-signature"),
        pytest.param(TOKEN[:-2], id="short-signature"),
        pytest.param(TOKEN + "\n", id="line-end"),
        pytest.param(" " + TOKEN, id="space"),
        pytest.param("", id="empty"),
        pytest.param("..", id="dots"),
        pytest.param("ü" + TOKEN[1:], id="not-ascii"),
        pytest.param("." * 60_000, id="many-dots"),
        pytest.param("A" * 1_000_000, id="huge"),
        pytest.param(json.dumps({"payload": "e30", "signatures": []}), id="json-serialization"),
    ],
)
def test_other_forms_are_malformed(forged: str) -> None:
    """Whatever is not exactly our form is refused before any key is looked at."""
    with pytest.raises(Malformed):
        jws.verify(forged, typ=TYP, keys=ISSUERS)


def test_hmac_with_the_public_key_is_refused() -> None:
    """The classic confusion, HS256 under the public key's bytes, is a matter of form here."""
    key = base64.b64encode(ISSUER.public.verify_key).decode()
    token = jwt.encode(CLAIMS, key, algorithm="HS256", headers={"kid": ISSUER.key_id, "typ": TYP})
    with pytest.raises(Malformed):
        jws.verify(token, typ=TYP, keys=ISSUERS)


def test_unknown_and_wrong_keys_differ() -> None:
    """A key id nobody trusts is `Unauthenticated`; a known key id with another's signature is `Tampered`."""
    with pytest.raises(Unauthenticated) as caught:
        jws.verify(TOKEN, typ=TYP, keys={})
    assert caught.value.reason == "licence-issuer-unknown"
    with pytest.raises(Tampered):
        jws.verify(TOKEN, typ=TYP, keys={ISSUER.key_id: OTHER_ISSUER.public.verify_key})


def test_every_flipped_bit_is_refused() -> None:
    """No token with one changed character verifies."""
    for place in range(len(TOKEN)):
        for bit in range(7):
            changed = TOKEN[:place] + chr(ord(TOKEN[place]) ^ 1 << bit) + TOKEN[place + 1 :]
            with pytest.raises((Malformed, Unauthenticated, Tampered)):
                jws.verify(changed, typ=TYP, keys=ISSUERS)


SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("key", SMALL_ORDER)
def test_small_order_and_non_canonical_keys_verify_nothing(key: str) -> None:
    """With a key of small order one signature fits many messages; such keys are refused (rule K-4)."""
    public_key = bytes.fromhex(key)
    assert not _ed25519.acceptable(public_key)
    for signature in (bytes(64), public_key + bytes(32), bytes([1]) + bytes(63)):
        token = TOKEN.rsplit(".", 1)[0] + "." + jws.b64u(signature)
        with pytest.raises(Tampered):
            jws.verify(token, typ=TYP, keys={ISSUER.key_id: public_key})


@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_of_another_length_verify_nothing(length: int) -> None:
    """A trusted key that has not 32 bytes is no key."""
    with pytest.raises(Tampered):
        jws.verify(TOKEN, typ=TYP, keys={ISSUER.key_id: ISSUER.public.verify_key.ljust(33, b"x")[:length]})


def test_malleable_signature_is_refused() -> None:
    """S + L is the same signature to a careless verifier, and not to this one."""
    order = 2**252 + 27742317777372353535851937790883648493
    signing_input, text = TOKEN.rsplit(".", 1)
    raw = jws.b64u_decode(text, max_bytes=64)
    shifted = raw[:32] + (int.from_bytes(raw[32:], "little") + order).to_bytes(32, "little")
    with pytest.raises(Tampered):
        jws.verify(f"{signing_input}.{jws.b64u(shifted)}", typ=TYP, keys=ISSUERS)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300) | st.text("AZaz09-_.=", max_size=300))
def test_random_text_is_malformed(text: str) -> None:
    """Random text never verifies and never ends in anything but `Malformed`."""
    with pytest.raises(Malformed):
        jws.verify(text, typ=TYP, keys=ISSUERS)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(min_size=64, max_size=64))
def test_random_parts_are_malformed(first: bytes, second: bytes, third: bytes) -> None:
    """Random bytes in a well-formed envelope are `Malformed` too."""
    with pytest.raises(Malformed):
        jws.verify(".".join(map(jws.b64u, (first, second, third))), typ=TYP, keys=ISSUERS)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_base64url_round_trip(raw: bytes) -> None:
    """`b64u_decode(b64u(x)) == x`, and the standard library agrees."""
    text = jws.b64u(raw)
    assert jws.b64u_decode(text, max_bytes=len(raw)) == raw
    assert base64.urlsafe_b64decode(text + "==") == raw
    if raw:
        with pytest.raises(Malformed):
            jws.b64u_decode(text, max_bytes=len(raw) - 1)


@settings(max_examples=200, deadline=None)
@given(st.text("Aa09-_+/= \n.é", max_size=12))
def test_base64url_is_canonical(text: str) -> None:
    """Text is accepted only if it is what the encoder writes for its bytes."""
    try:
        raw = jws.b64u_decode(text, max_bytes=100)
    except Malformed:
        return
    assert jws.b64u(raw) == text


@pytest.mark.parametrize("text", ["AB", "AAB", "_x", "A", "AA==", "AA=", "A A", "AA\n", "+A", "/w", "é"])
def test_non_canonical_base64url_is_refused(text: str) -> None:
    """Spare bits in the last character, padding, the other alphabet and white space are `Malformed`."""
    with pytest.raises(Malformed):
        jws.b64u_decode(text, max_bytes=100)
