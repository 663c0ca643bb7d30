"""Revocation lists: signed, numbered, never rolled back (rules R-1 to R-4)."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.keys import ISSUER, ISSUERS, NOW_S, OTHER_ISSUER, licence
from support.vectors import load
from tessera.keystore import jws, revocation
from tessera.keystore.errors import Conflict, Malformed, Tampered, Unauthenticated
from tessera.keystore.revocation import RevocationList


def issue(number: int, *revoked: str) -> RevocationList:
    """Return list `number` of `ISSUER`."""
    return revocation.issue(number, dict.fromkeys(revoked, (NOW_S, "key lost")), issuer=ISSUER, now_s=NOW_S)


LIST = issue(3, "lic-1", "lic-2")
CLAIMS = jws.parse(LIST.token, typ=revocation.TYP).claims


def test_vector() -> None:
    """The list of the vectors verifies."""
    found = revocation.verify(load("licence")["revocations"]["token"], ISSUERS)
    assert (found.number, dict(found.revoked)) == (3, {"lic-9": (NOW_S, "key lost")})


def test_round_trip() -> None:
    """What is issued verifies to the same list; the token is not in the repr."""
    found = revocation.verify(LIST.token, ISSUERS)
    assert found == LIST
    assert found.revoked["lic-1"].reason == "key lost"
    assert LIST.token[:40] not in repr(LIST)
    assert not revocation.verify(issue(1).token, ISSUERS).revoked


@settings(max_examples=100, deadline=None)
@given(st.sets(st.sampled_from("abcdef")), st.sets(st.sampled_from("abcdef")), st.integers(1, 4), st.integers(1, 4))
def test_supersede(before: set[str], after: set[str], old: int, new: int) -> None:
    """A list replaces another exactly when its number is higher and it leaves nothing out."""
    current, candidate = issue(old, *before), issue(new, *after)
    assert revocation.supersede(None, candidate) is candidate
    if new > old and before <= after:
        assert revocation.supersede(current, candidate) is candidate
    else:
        with pytest.raises(Conflict) as caught:
            revocation.supersede(current, candidate)
        assert caught.value.reason == "revocation-rollback"


def test_another_issuers_list_replaces_nothing() -> None:
    """Each issuer has a list of its own."""
    other = revocation.issue(9, {}, issuer=OTHER_ISSUER, now_s=NOW_S)
    with pytest.raises(Conflict):
        revocation.supersede(issue(1), other)


@pytest.mark.parametrize(
    "change",
    [
        {"iss": OTHER_ISSUER.key_id},
        {"iat": "now"},
        {"extra": 1},
        {"tessera": {"number": 0, "revoked": {}}},
        {"tessera": {"number": True, "revoked": {}}},
        {"tessera": {"number": 1}},
        {"tessera": {"number": 1, "revoked": []}},
        {"tessera": {"number": 1, "revoked": {"": {"revoked_at_s": 1, "reason": "x"}}}},
        {"tessera": {"number": 1, "revoked": {"a": {"revoked_at_s": 1}}}},
        {"tessera": {"number": 1, "revoked": {"a": {"revoked_at_s": -1, "reason": "x"}}}},
        {"tessera": {"number": 1, "revoked": {"a": {"revoked_at_s": 1, "reason": ""}}}},
        {"tessera": {"number": 1, "revoked": {"a": {"revoked_at_s": 1, "reason": "x\n"}}}},
        {"tessera": {"number": 1, "revoked": {"a": [1, "x"]}}},
    ],
)
def test_other_claims_are_malformed(change: dict[str, Any]) -> None:
    """Types, ranges and fields are exact, although the issuer signed them."""
    with pytest.raises(Malformed):
        revocation.verify(jws.sign(revocation.TYP, CLAIMS | change, ISSUER), ISSUERS)


def test_trust_is_checked() -> None:
    """Unknown issuer, changed signature, another document: three different refusals."""
    with pytest.raises(Unauthenticated):
        revocation.verify(LIST.token, {})
    with pytest.raises(Tampered):
        revocation.verify(LIST.token, {ISSUER.key_id: OTHER_ISSUER.public.verify_key})
    with pytest.raises(Malformed):
        revocation.verify(licence().token, ISSUERS)


@pytest.mark.slow
def test_a_large_list_fits_and_a_larger_one_does_not() -> None:
    """Ten thousand revocations verify; more than the limit cannot be issued."""
    many = {f"{n:032x}": (NOW_S, "contract ended") for n in range(10_000)}
    token = revocation.issue(1, many, issuer=ISSUER, now_s=NOW_S).token
    assert len(revocation.verify(token, ISSUERS).revoked) == 10_000
    too_many = {f"{n}": (NOW_S, "x") for n in range(revocation.MAX_REVOKED + 1)}
    with pytest.raises(Malformed):
        revocation.issue(1, too_many, issuer=ISSUER, now_s=NOW_S)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_random_tokens_are_malformed(text: str) -> None:
    """Random text ends typed."""
    with pytest.raises(Malformed):
        revocation.verify(text, ISSUERS)
