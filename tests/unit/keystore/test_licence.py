"""Licences: issued, verified, read strictly, and placed in time (rules L-1 to L-9)."""

import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from support.keys import BUYER, ISSUER, ISSUERS, NODE, NOW_S, OTHER_BUYER, TERMS, YEAR_S, grant, licence
from support.vectors import load
from tessera.keystore import jws
from tessera.keystore import licence as licences
from tessera.keystore.errors import Conflict, Malformed, NotFound, Tampered, TesseraError, Unauthenticated
from tessera.keystore.licence import ExpiryPolicy, LicenceFile, Quota, Standing, Terms

RICH = Terms(
    "digits",
    min_version=2,
    max_version=5,
    tier=3,
    input_key_id="00" * 16,
    quota=Quota(1000, "month"),
    rate_samples_per_s=50,
    sessions=2,
    expiry=ExpiryPolicy("degrade", grace_s=3600, tier=1),
    features=("stream", "batch"),
)
LICENCE = licence()
CLAIMS = jws.parse(LICENCE.token, typ=licences.TYP).claims


def signed(claims: dict[str, Any]) -> str:
    """Return a token that the issuer really signed, whatever it says."""
    return jws.sign(licences.TYP, claims, ISSUER)


def test_vector() -> None:
    """The licence of the vectors verifies, and is what the fixed keys give."""
    vector = load("licence")["licence"]
    found = licences.verify(vector["token"], ISSUERS)
    assert found == LICENCE
    assert found.digest.hex() == vector["digest"]
    assert found.terms.to_claims() == vector["terms"]


@pytest.mark.parametrize("terms", [TERMS, RICH, Terms("m")])
def test_round_trip(terms: Terms) -> None:
    """What is issued verifies to the same licence, and its terms read back."""
    mine = licence(terms)
    assert licences.verify(mine.token, ISSUERS) == mine
    assert licences.parse_without_verification(mine.token) == mine
    assert Terms.from_claims(terms.to_claims()) == terms
    assert (mine.buyer_id, mine.node_id, mine.issuer_id) == (BUYER.key_id, NODE.key_id, ISSUER.key_id)


def test_defaults_need_not_be_written() -> None:
    """Terms with the model alone read as the defaults."""
    assert Terms.from_claims({"model": "m"}) == Terms("m")


def test_any_node_and_fresh_ids() -> None:
    """Without a node the licence is for any; without an id a fresh one is drawn."""
    assert licences.verify(licence(node=None).token, ISSUERS).node_id is None
    make = {"buyer": BUYER.public, "node": None, "not_before_s": 0, "expires_at_s": 1, "now_s": 0.9}
    first, second = (licences.issue(TERMS, issuer=ISSUER, **make) for _ in range(2))  # type: ignore[arg-type]
    assert first.licence_id != second.licence_id
    assert first.issued_at_s == 0


def test_pyjwt_reads_a_licence() -> None:
    """A gateway with PyJWT verifies a licence, its audience and its issuer."""
    key = Ed25519PublicKey.from_public_bytes(ISSUER.public.verify_key)
    options: Any = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
    claims = jwt.decode(
        LICENCE.token, key, algorithms=["EdDSA"], audience=NODE.key_id, issuer=ISSUER.key_id, options=options
    )
    assert claims["cnf"] == {"jkt": BUYER.key_id}
    assert claims["tessera"]["model"] == "digits"


def test_repr_does_not_show_the_token() -> None:
    """A logged licence or licence file does not hand out the token."""
    assert LICENCE.token[:40] not in repr(LICENCE)
    assert LICENCE.token[:40] not in repr(LicenceFile(LICENCE.token, None))


@pytest.mark.slow
def test_every_flipped_byte_is_refused() -> None:
    """No licence with one changed character verifies."""
    token = LICENCE.token
    for place in range(len(token)):
        for mask in (1, 2, 32):
            with pytest.raises((Malformed, Unauthenticated, Tampered)):
                licences.verify(token[:place] + chr(ord(token[place]) ^ mask) + token[place + 1 :], ISSUERS)


def test_foreign_issuer_and_other_documents() -> None:
    """An unknown issuer is `licence-issuer-unknown`; a grant presented as a licence is `licence-malformed`."""
    with pytest.raises(Unauthenticated) as unknown:
        licences.verify(LICENCE.token, {})
    assert unknown.value.reason == "licence-issuer-unknown"
    with pytest.raises(Malformed) as other:
        licences.verify(grant(LICENCE).token, ISSUERS)
    assert other.value.reason == "licence-malformed"


BAD_CLAIMS: list[dict[str, Any]] = [
    {"iss": BUYER.key_id},
    {"iss": None},
    {"sub": OTHER_BUYER.key_id},
    {"sub": 1},
    {"aud": [NODE.key_id]},
    {"aud": "node"},
    {"aud": None},
    {"jti": ""},
    {"jti": "-x"},
    {"jti": "x" * 65},
    {"jti": 5},
    {"iat": -1},
    {"iat": True},
    {"iat": 1.0},
    {"nbf": "0"},
    {"nbf": NOW_S + YEAR_S},
    {"exp": NOW_S - 3600},
    {"exp": 253_402_300_800},
    {"exp": 1e9},
    {"exp": False},
    {"cnf": {}},
    {"cnf": {"jkt": BUYER.key_id, "jwk": {}}},
    {"cnf": BUYER.key_id},
    {"cnf": {"jkt": [BUYER.key_id]}},
    {"extra": 1},
    {"tessera": []},
    {"tessera": {}},
]
BAD_TERMS: list[dict[str, Any]] = [
    {"model": ""},
    {"model": "Digits"},
    {"model": "-digits"},
    {"model": "../digits"},
    {"model": "d" * 65},
    {"model": "digits\n"},
    {"model": 3},
    {"min_version": 0},
    {"min_version": True},
    {"min_version": 1.0},
    {"min_version": "1"},
    {"min_version": 3, "max_version": 2},
    {"max_version": 2**31},
    {"tier": 0},
    {"tier": 256},
    {"tier": True},
    {"input_key_id": "00" * 15},
    {"input_key_id": "AA" * 16},
    {"quota": 5},
    {"quota": {"samples": -1, "period": "day"}},
    {"quota": {"samples": 1.5, "period": "day"}},
    {"quota": {"samples": 1, "period": "week"}},
    {"quota": {"samples": 1, "period": ["day"]}},
    {"quota": {"samples": 1}},
    {"quota": {"samples": 1, "period": "day", "x": 1}},
    {"rate_samples_per_s": 0},
    {"rate_samples_per_s": True},
    {"sessions": 0},
    {"sessions": 100_001},
    {"expiry": {"action": "explode"}},
    {"expiry": {"action": "stop", "tier": 1}},
    {"expiry": {"action": "degrade", "grace_s": 5}},
    {"expiry": {"action": "degrade", "grace_s": 5, "tier": 9}},
    {"expiry": {"action": "warn", "grace_s": -1}},
    {"expiry": {"action": "warn", "grace_s": True}},
    {"expiry": {"grace_s": 1}},
    {"features": "stream"},
    {"features": ["a", "a"]},
    {"features": ["A"]},
    {"features": [1]},
    {"features": [f"f{n}" for n in range(33)]},
    {"features": None},
    {"unknown": 1},
]


@pytest.mark.parametrize(
    "change", BAD_CLAIMS + [{"tessera": CLAIMS["tessera"] | terms} for terms in BAD_TERMS], ids=str
)
def test_other_claims_are_malformed(change: dict[str, Any]) -> None:
    """Types and ranges are exact and unknown claims are refused, although the issuer signed them."""
    with pytest.raises(Malformed) as caught:
        licences.verify(signed(CLAIMS | change), ISSUERS)
    assert caught.value.reason == "licence-malformed"


@pytest.mark.parametrize("claim", sorted(CLAIMS))
def test_missing_claims_are_malformed(claim: str) -> None:
    """Every registered claim is required."""
    with pytest.raises(Malformed):
        licences.verify(signed({name: CLAIMS[name] for name in CLAIMS if name != claim}), ISSUERS)


def test_roles_are_checked_when_issuing() -> None:
    """A node's file in the buyer's place is told apart."""
    with pytest.raises(Malformed, match="buyer"):
        licence(buyer=NODE)
    with pytest.raises(Malformed, match="node"):
        licence(node=BUYER)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text("ab1-\n", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(CLAIMS)), JSON_VALUES, max_size=3),
    st.dictionaries(st.sampled_from(sorted(RICH.to_claims())), JSON_VALUES, max_size=3),
)
def test_random_claims_end_typed(claims: dict[str, Any], terms: dict[str, Any]) -> None:
    """Signed nonsense is a licence or `licence-malformed`, nothing else."""
    token = signed(CLAIMS | {"tessera": RICH.to_claims() | terms} | claims)
    try:
        found = licences.verify(token, ISSUERS)
    except Malformed:
        return
    assert Terms.from_claims(found.terms.to_claims()) == found.terms


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200) | JSON_VALUES.map(lambda value: jws.b64u(json.dumps(value).encode()) + ".e30.AA"))
def test_random_tokens_are_malformed(token: str) -> None:
    """Random text is `licence-malformed`, verified or not."""
    with pytest.raises(Malformed) as verified:
        licences.verify(token, ISSUERS)
    with pytest.raises(Malformed) as parsed:
        licences.parse_without_verification(token)
    assert {verified.value.reason, parsed.value.reason} == {"licence-malformed"}


@pytest.mark.parametrize("grace_s", [0, 600])
@pytest.mark.parametrize("action", ["stop", "warn", "degrade"])
def test_standing_at_every_boundary(action: Any, grace_s: int) -> None:
    """Start is included, end is not, and grace follows the end for exactly its seconds, whatever the policy."""
    expiry = ExpiryPolicy(action, grace_s, 1 if action == "degrade" else None)
    mine = licence(Terms("m", expiry=expiry), not_before_s=100, expires_at_s=200)
    after = Standing.GRACE if grace_s else Standing.EXPIRED
    expected = [
        (-1.0, Standing.NOT_YET),
        (99.999, Standing.NOT_YET),
        (100, Standing.VALID),
        (199.999, Standing.VALID),
        (200, after),
        (200 + grace_s - 0.001, after if grace_s else Standing.VALID),
        (200 + grace_s, Standing.EXPIRED),
        (1e12, Standing.EXPIRED),
        (float("nan"), Standing.EXPIRED),
    ]
    assert [(at, licences.standing(mine, at)) for at, _ in expected[:-1]] == expected[:-1]
    assert licences.standing(mine, float("nan")) is Standing.EXPIRED


@pytest.mark.parametrize(
    ("model", "version", "expected"),
    [("digits", 1, False), ("digits", 2, True), ("digits", 5, True), ("digits", 6, False), ("other", 3, False)],
)
def test_covers(model: str, version: int, expected: bool) -> None:
    """The range of versions includes both ends, and the model's name is exact."""
    assert licence(RICH).covers(model, version) is expected
    assert licence(Terms("digits")).covers("digits", 10**9)


def test_licence_file_round_trip(tmp_path: Path) -> None:
    """Both forms read back; an existing file is not overwritten unasked."""
    path, bare = tmp_path / "a.licence", tmp_path / "b.jwt"
    both = LicenceFile(LICENCE.token, grant(LICENCE).token)
    licences.write_licence_file(path, both)
    assert licences.read_licence_file(path) == both
    assert path.stat().st_mode & 0o777 == 0o644
    bare.write_text(LICENCE.token + "\n")
    assert licences.read_licence_file(bare) == LicenceFile(LICENCE.token, None)
    with pytest.raises(Conflict):
        licences.write_licence_file(path, both)
    licences.write_licence_file(path, LicenceFile(LICENCE.token, None), overwrite=True)
    assert licences.read_licence_file(str(path)).grant is None
    with pytest.raises(NotFound):
        licences.read_licence_file(tmp_path / "absent")
    with pytest.raises(Malformed):
        licences.write_licence_file(tmp_path / "c", LicenceFile(both.grant or "", None))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps({"format": value, "licence": "x"}).encode()))
def test_random_licence_files_end_typed(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    """Random files are `licence-malformed`."""
    path = tmp_path_factory.getbasetemp() / "random.licence"
    path.write_bytes(raw)
    with pytest.raises(TesseraError) as caught:
        licences.read_licence_file(path)
    assert (type(caught.value), caught.value.reason) == (Malformed, "licence-malformed")
