"""The gate: order of checks at opening, sessions, and each request."""

import base64
import dataclasses

import pytest

from support import keys
from support.gatehouse import Gatehouse, Shelf, offer, plain_grant, plain_licence
from support.ledger import MemoryLedger
from support.tiers import tier_key
from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore.errors import (
    ApiMisuse,
    Denied,
    Exhausted,
    Malformed,
    NotFound,
    SealedError,
    TesseraError,
    Unauthenticated,
    Unavailable,
)
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.licence import ExpiryPolicy, Licence, Quota, Terms
from tessera.keystore.usage import UsageDraft
from tessera.server.admission import Permit, Session
from tessera.server.admission.opening import Answer
from tessera.server.config import Limits

YEAR_S = keys.YEAR_S


def draft(request_id: str, samples: int = 1, *, time_us: int = keys.NOW_S * 1_000_000) -> UsageDraft:
    """What metering would record of a request under `lic-1`."""
    return UsageDraft(
        time_us=time_us,
        licence_id="lic-1",
        buyer_id=keys.BUYER.key_id,
        package_id=keys.PACKAGE_ID,
        model="digits",
        version=1,
        tier=1,
        samples=samples,
        bytes_in=64,
        compute_us=10,
        request_id=request_id,
        payload_digest="0" * 64,
        session_id="s",
    )


def plain_house(**how: object) -> Gatehouse:
    """A gatehouse whose package takes plain inputs."""
    return Gatehouse(shelf=Shelf(offer(keyed=False)), **how)  # type: ignore[arg-type]


def plain_open(house: Gatehouse, licence: Licence | None = None, **terms: object) -> Session:
    """A session for plain inputs under these terms."""
    licence = licence or plain_licence(**terms)
    return house.open(licence, grant=plain_grant(licence), key=None)


def test_a_good_answer_opens_a_session() -> None:
    """Licence, grant, proof and confirmation give a session that says what it is for and never shows its token."""
    house = Gatehouse()
    session = house.open()
    assert (session.model, session.version, session.package_id, session.tier) == ("digits", 1, keys.PACKAGE_ID, 1)
    assert session.expires_at_s == house.clock.now_s() + house.limits.session_ttl_s
    token = session.token.reveal().decode("ascii")
    assert len(base64.urlsafe_b64decode(token + "=")) == 32
    assert token not in repr(session)
    assert house.gate.session(token) is session
    assert house.gate.session_count == 1


def test_open_session_is_prepare_and_complete() -> None:
    """The one-call form opens the same session."""
    house, licence = plain_house(), plain_licence()
    answer = house.answer(licence)
    grant = plain_grant(licence).token
    session = house.gate.open_session(licence.token, grant, answer.nonce, answer.public_key, answer.signature, b"")
    assert session.licence.licence_id == "lic-1"


def faulty_requests() -> dict[str, tuple[str, type[TesseraError]]]:
    """Every refusal of the thirteen steps, in their order: name → reason and class."""
    return {
        "no licence": ("licence-missing", Unauthenticated),
        "long licence": ("licence-malformed", Malformed),
        "short signature": ("malformed", Malformed),
        "garbage licence": ("licence-malformed", Malformed),
        "foreign issuer": ("licence-issuer-unknown", Unauthenticated),
        "changed licence": ("tampered", Unauthenticated),
        "old challenge": ("challenge-unknown", Unauthenticated),
        "another's key": ("licence-not-yours", Denied),
        "bad signature": ("bad-proof", Unauthenticated),
        "other purpose": ("bad-proof", Unauthenticated),
        "other node": ("licence-other-node", Denied),
        "revoked": ("licence-revoked", Denied),
        "clock behind": ("clock-rolled-back", Unavailable),
        "not yet": ("licence-not-yet-valid", Denied),
        "expired": ("licence-expired", Denied),
        "other model": ("model-unknown", NotFound),
        "other vendor's model": ("model-unknown", NotFound),
        "version above": ("model-unknown", NotFound),
        "no grant": ("grant-missing", NotFound),
        "grant of another licence": ("grant-mismatch", Denied),
        "grant for another package": ("grant-mismatch", Denied),
        "changed grant": ("tampered", Unauthenticated),
        "no such tier": ("tier-unavailable", Denied),
        "other input key": ("grant-mismatch", Denied),
        "wrong confirmation": ("wrong-input-key", Denied),
        "no confirmation": ("wrong-input-key", Denied),
        "not loaded": ("model-not-ready", Unavailable),
        "seats": ("seats-full", Exhausted),
        "node full": ("sessions-full", Exhausted),
    }


def changed(token: str) -> str:
    """The token with another, well-formed signature."""
    head, _, signature = token.rpartition(".")
    raw = bytearray(base64.urlsafe_b64decode(signature + "=="))
    raw[0] ^= 1
    return f"{head}.{base64.urlsafe_b64encode(bytes(raw)).rstrip(b'=').decode()}"


def commit_fault(house: Gatehouse, fault: str) -> None:
    """Ask for a session with exactly one thing wrong."""
    licence = keys.licence()
    answer = house.answer(licence)
    match fault:
        case "no licence":
            house.gate.prepare("", "", answer, b"")
        case "long licence":
            house.gate.prepare("x" * 70_000, "", answer, b"")
        case "short signature":
            house.prepare(licence, answer=dataclasses.replace(answer, signature=b"x"))
        case "garbage licence":
            house.gate.prepare("a.b.c", "", answer, b"")
        case "foreign issuer":
            licence = licences.issue(
                keys.TERMS,
                issuer=keys.OTHER_ISSUER,
                buyer=keys.BUYER.public,
                node=None,
                not_before_s=0,
                expires_at_s=keys.NOW_S + 10,
                now_s=keys.NOW_S,
            )
            house.gate.prepare(licence.token, "", house.answer(licence), b"")
        case "changed licence":
            house.gate.prepare(changed(licence.token), "", answer, b"")
        case "old challenge":
            house.clock.advance(61)
            house.prepare(licence, answer=answer)
        case "another's key":
            house.prepare(licence, answer=house.answer(licence, buyer=keys.OTHER_BUYER))
        case "bad signature":
            house.prepare(licence, answer=dataclasses.replace(answer, signature=bytes(64)))
        case "other purpose":
            house.prepare(licence, answer=house.answer(licence, "renew-session"))
        case "other node":
            licence = keys.licence(node=keys.OTHER_NODE)
            house.gate.prepare(licence.token, "", house.answer(licence), b"")
        case "revoked":
            house.revoked[keys.ISSUER.key_id, "lic-1"] = "leaked"
            house.prepare(licence, answer=answer)
        case "clock behind":
            house.ledger.append_usage([draft("r", time_us=(keys.NOW_S + 301) * 1_000_000)])
            house.prepare(licence, answer=answer)
        case "not yet":
            licence = keys.licence(not_before_s=keys.NOW_S + 1)
            house.open(licence)
        case "expired":
            licence = keys.licence(expires_at_s=keys.NOW_S)
            house.open(licence)
        case "other model":
            licence = keys.licence(Terms("letters"))
            house.gate.prepare(licence.token, "", house.answer(licence), b"")
        case "other vendor's model":
            house.shelf.published = {keys.PACKAGE_ID: offer(issuer_id=keys.OTHER_ISSUER.key_id)}
            house.prepare(licence, answer=answer)
        case "version above":
            house.shelf.published = {keys.PACKAGE_ID: offer(3)}
            licence = keys.licence(dataclasses.replace(keys.TERMS, max_version=2))
            house.open(licence)
        case "no grant":
            house.prepare(licence, answer=answer, send_grant=False)
        case "grant of another licence":
            other = keys.licence(expires_at_s=keys.NOW_S + 77)
            house.prepare(licence, keys.grant(other), answer=answer)
        case "grant for another package":
            secrets = PackageSecrets("ff" * 16, keys.CONTENT_KEY, keys.INPUT_KEY)
            house.prepare(licence, keys.grant(licence, secrets=secrets), answer=answer)
        case "changed grant":
            house.gate.prepare(licence.token, changed(keys.grant(licence).token), answer, b"")
        case "no such tier":
            house.shelf.published = {keys.PACKAGE_ID: offer(tiers=frozenset({3}))}
            house.prepare(licence, answer=answer)
        case "other input key":
            house.shelf.published = {keys.PACKAGE_ID: offer(input_key_id="ab" * 16)}
            house.prepare(licence, answer=answer)
        case "wrong confirmation":
            house.prepare(licence, answer=answer, key=keys.OTHER_INPUT_KEY)
        case "no confirmation":
            house.prepare(licence, answer=answer, key=None)
        case "not loaded":
            house.shelf.states[keys.PACKAGE_ID] = "unloaded"
            house.open(licence)
        case "seats":
            for _ in range(5):
                house.open(licence)
        case "node full":
            house = Gatehouse(limits=Limits(max_sessions=1))
            house.open(licence)
            house.open(licence)
        case _:
            raise AssertionError(fault)


@pytest.mark.parametrize("fault", faulty_requests())
def test_each_fault_has_its_own_reason(fault: str) -> None:
    """One thing wrong gives that step's error with its reason, and charges nothing."""
    house = Gatehouse()
    reason, kind = faulty_requests()[fault]
    with pytest.raises(TesseraError) as caught:
        commit_fault(house, fault)
    assert (caught.value.reason, type(caught.value)) == (reason, kind)
    assert house.gate.outstanding == 0


def test_an_earlier_step_speaks_before_a_later_one() -> None:
    """A stolen, expired licence with a wrong key is refused as stolen; the owner with the wrong key as expired."""
    house, licence = Gatehouse(), keys.licence(expires_at_s=keys.NOW_S)
    with pytest.raises(Denied) as caught:
        house.prepare(licence, answer=house.answer(licence, buyer=keys.OTHER_BUYER), key=keys.OTHER_INPUT_KEY)
    assert caught.value.reason == "licence-not-yours"
    with pytest.raises(Denied) as caught:
        house.prepare(licence, key=keys.OTHER_INPUT_KEY)
    assert caught.value.reason == "licence-expired"


def test_a_challenge_is_spent_even_by_a_refusal() -> None:
    """A proof that was once accepted as such is no good again, whatever the request was refused for."""
    house, licence = Gatehouse(), keys.licence()
    good = house.answer(licence)
    with pytest.raises(Denied):
        house.prepare(licence, answer=good, key=keys.OTHER_INPUT_KEY)
    with pytest.raises(Unauthenticated) as caught:
        house.prepare(licence, answer=good)
    assert caught.value.reason == "challenge-unknown"


def test_who_has_a_licence_and_no_key_keeps_nobody_out() -> None:
    """A licence is no secret; wrong proofs under it take none of the memory that answered challenges have."""
    house, licence = Gatehouse(limits=Limits(max_challenges=2)), keys.licence()
    session = house.open(licence)
    good = house.answer(licence)
    for answer in (house.answer(licence) for _ in range(3)):
        with pytest.raises(Unauthenticated) as caught:
            house.prepare(licence, answer=Answer(answer.nonce, answer.public_key, bytes(64)))
        assert caught.value.reason == "bad-proof"
        with pytest.raises(Denied):
            house.prepare(licence, answer=house.answer(licence, buyer=keys.OTHER_BUYER))
    assert house.open(licence, answer=good).session_id != session.session_id


def test_the_installed_grant_serves_when_none_is_sent() -> None:
    """A grant that the operator installed opens a session; nothing is to be installed then."""
    house, licence = Gatehouse(), keys.licence()
    house.installed = [keys.grant(licence)]
    opening = house.prepare(licence, send_grant=False)
    assert not opening.install
    assert opening.grant is house.installed[0]


def test_a_sent_grant_is_to_be_installed_once() -> None:
    """The first session with a grant asks for its installation, the next does not."""
    house, licence = Gatehouse(), keys.licence()
    grant = keys.grant(licence)
    assert house.prepare(licence, grant).install
    house.installed = [grant]
    assert not house.prepare(licence, grant).install


def test_the_newest_covered_version_that_can_run_is_served() -> None:
    """Of two granted versions the newer one is taken while it can run, else the older."""
    newer = "11" * 16
    house = Gatehouse(shelf=Shelf(offer(1), offer(2, package_id=newer)))
    licence = keys.licence()
    house.installed = [
        keys.grant(licence),
        keys.grant(licence, secrets=PackageSecrets(newer, keys.CONTENT_KEY, keys.INPUT_KEY)),
    ]
    assert house.open(licence, send_grant=False).version == 2
    house.shelf.states[newer] = "failed"
    assert house.open(licence, send_grant=False).version == 1


def test_a_package_without_its_key_is_to_be_loaded() -> None:
    """A published package that waits for its key asks to be loaded with the grant's; an unloaded one does not."""
    house, licence = Gatehouse(), keys.licence()
    house.shelf.states[keys.PACKAGE_ID] = "published"
    opening = house.prepare(licence)
    assert opening.needs_load
    assert opening.keys.content_key == keys.CONTENT_KEY
    assert "2021" not in repr(opening)
    house.shelf.states[keys.PACKAGE_ID] = "unloaded"
    assert not house.prepare(licence).needs_load


def test_an_expired_session_frees_its_seat() -> None:
    """Seats are counted without the sessions whose time is over."""
    house = plain_house()
    for _ in range(2):
        plain_open(house, sessions=2)
    with pytest.raises(Exhausted):
        plain_open(house, sessions=2)
    assert house.gate.session_count == 2
    house.clock.advance(house.limits.session_ttl_s)
    assert house.gate.session_count == 0  # what the operator is shown are live ones, met or not
    plain_open(house, sessions=2)


def test_a_session_ends_with_its_time_to_live_and_not_later_than_its_licence() -> None:
    """The end is the time to live, or the licence's end where that is nearer; the clock's jumps do not stretch it."""
    house = plain_house()
    session = plain_open(house, keys.licence(Terms("digits"), expires_at_s=keys.NOW_S + 60))
    assert session.expires_at_s == keys.NOW_S + 60
    token = session.token.reveal().decode()
    house.clock.steady_s += 59.9
    house.gate.session(token)
    house.clock.steady_s += 0.1
    with pytest.raises(Unauthenticated) as caught:
        house.gate.session(token)
    assert caught.value.reason == "session-expired"
    with pytest.raises(Unauthenticated) as caught:
        house.gate.session(token)
    assert caught.value.reason == "session-unknown"


@pytest.mark.parametrize("token", ["", None, "x", "x" * 10_000, "\ud800", "…"])
def test_other_tokens_are_refused(token: str | None) -> None:
    """No token, a wrong one, a huge one, one that is no text: refused with a reason."""
    with pytest.raises(Unauthenticated) as caught:
        Gatehouse().gate.session(token)
    assert caught.value.reason == ("session-unknown" if token else "session-missing")


def test_renewal_needs_a_fresh_proof() -> None:
    """With the token alone nothing is renewed; with a proof the end moves and the token stays."""
    house = plain_house()
    session = plain_open(house)
    token = session.token.reveal().decode()
    house.clock.advance(1000)
    with pytest.raises(Unauthenticated):
        house.gate.renew(token, Answer(bytes(32), keys.BUYER.public.verify_key, bytes(64)))
    with pytest.raises(Denied):
        house.gate.renew(token, house.answer(session.licence, "renew-session", buyer=keys.OTHER_BUYER))
    with pytest.raises(Unauthenticated) as caught:
        house.gate.renew(token, house.answer(session.licence, "open-session"))
    assert caught.value.reason == "bad-proof"
    before_s = session.expires_at_s
    assert house.gate.renew(token, house.answer(session.licence, "renew-session")) is session
    assert session.expires_at_s == before_s + 1000


def test_a_revoked_licence_is_not_renewed() -> None:
    """Renewal judges the licence again."""
    house = plain_house()
    session = plain_open(house)
    house.revoked[keys.ISSUER.key_id, "lic-1"] = "leaked"
    with pytest.raises(Denied) as caught:
        house.gate.renew(session.token.reveal().decode(), house.answer(session.licence, "renew-session"))
    assert caught.value.reason == "licence-revoked"


def test_close_frees_the_seat() -> None:
    """A closed session is unknown, and its seat is free."""
    house = plain_house()
    session = plain_open(house, sessions=1)
    token = session.token.reveal().decode()
    house.gate.close(token)
    with pytest.raises(Unauthenticated):
        house.gate.session(token)
    plain_open(house, sessions=1)


def test_fetching_a_grant_needs_its_own_proof() -> None:
    """A proof made for opening a session fetches no grant."""
    house, licence = Gatehouse(), keys.licence()
    assert house.gate.fetch_grant(licence.token, house.answer(licence, "fetch-grant")).digest == licence.digest
    with pytest.raises(Unauthenticated):
        house.gate.fetch_grant(licence.token, house.answer(licence))


def test_a_permit_is_settled_once() -> None:
    """Charge and release are one decision; a second one is our caller's bug."""
    house = plain_house()
    permit = house.admit(plain_open(house, quota=Quota(5)), samples=2)
    assert (permit.samples, permit.reserved, permit.tier, house.gate.outstanding) == (2, 2, 1, 1)
    permit.charge()
    assert permit.settled
    assert house.gate.outstanding == 0
    for again in (permit.charge, permit.release):
        with pytest.raises(ApiMisuse):
            again()
    assert house.gate.samples_left(permit.session) == 3


def test_quota_is_shared_by_the_sessions_of_a_licence() -> None:
    """Two sessions of one licence draw on one account; what is released is there again."""
    house = plain_house()
    licence = plain_licence(quota=Quota(2))
    first, second = plain_open(house, licence), plain_open(house, licence)
    held = house.admit(first, 1, "a")
    house.admit(second, 1, "b").charge()
    with pytest.raises(Exhausted) as caught:
        house.admit(second, 1, "c")
    assert caught.value.reason == "quota-exhausted"
    held.release()
    house.admit(second, 1, "c").charge()


def test_a_recorded_request_is_admitted_though_the_quota_is_used_up() -> None:
    """A retry of what the ledger already holds gets a permit with nothing reserved; a new id is refused."""
    house = plain_house()
    house.ledger.append_usage([draft("r-1")])
    session = plain_open(house, quota=Quota(1))
    permit = house.admit(session, 1, "r-1")
    assert permit.reserved == 0
    permit.release()
    with pytest.raises(Exhausted):
        house.admit(session, 1, "r-2")


def test_use_survives_a_restart() -> None:
    """A new gate starts from the ledger: what was charged before counts."""
    house = plain_house()
    house.ledger.append_usage([draft("r-1", 3)])
    assert house.gate.samples_left(plain_open(house, quota=Quota(4))) == 1


def test_a_daily_quota_starts_from_todays_records() -> None:
    """Yesterday's samples in the ledger do not count today."""
    house = plain_house()
    house.ledger.append_usage([draft("r-1", 3, time_us=(keys.NOW_S - 86_400) * 1_000_000), draft("r-2", 1)])
    assert house.gate.samples_left(plain_open(house, quota=Quota(4, "day"))) == 3


def test_rate_is_refused_with_a_reason_and_reserves_nothing() -> None:
    """Beyond the rate a request is refused before it touches the quota."""
    house = plain_house()
    session = plain_open(house, quota=Quota(100), rate_samples_per_s=1)
    house.admit(session, 16, "a")
    with pytest.raises(Exhausted) as caught:
        house.admit(session, 1, "b")
    assert caught.value.reason == "rate-limited"
    assert house.gate.samples_left(session) == 84


@pytest.mark.parametrize(("model", "version"), [("letters", ""), ("digits", "2"), ("", ""), ("digits", "01")])
def test_a_session_runs_its_own_model_only(model: str, version: str) -> None:
    """Another model or version than the session's is not found."""
    house = plain_house()
    token = plain_open(house).token.reveal().decode()
    with pytest.raises(NotFound) as caught:
        house.gate.admit(token, model, version, 1, "r")
    assert caught.value.reason == "model-unknown"
    assert isinstance(house.gate.admit(token, "digits", "1", 1, "r"), Permit)


def test_revocation_acts_on_a_live_session() -> None:
    """The next request of a revoked licence is refused; dropping its licence closes the session."""
    house = plain_house()
    session = plain_open(house)
    house.revoked[keys.ISSUER.key_id, "lic-1"] = "leaked"
    with pytest.raises(Denied) as caught:
        house.admit(session)
    assert caught.value.reason == "licence-revoked"
    assert house.gate.drop_licences([(keys.ISSUER.key_id, "lic-1"), (keys.ISSUER.key_id, "lic-2")]) == 1
    with pytest.raises(Unauthenticated):
        house.admit(session)


def test_another_issuers_list_ends_nothing() -> None:
    """Two issuers may have chosen one id; a list speaks for its own issuer's licences (rule R-2)."""
    house = plain_house()
    session = plain_open(house)
    house.revoked[keys.OTHER_ISSUER.key_id, "lic-1"] = "not theirs"
    assert house.gate.drop_licences(house.revoked) == 0
    assert isinstance(house.admit(session), Permit)


def test_expiry_acts_on_a_live_session() -> None:
    """A request at the licence's very end is refused, though the session's own time is not over."""
    house = plain_house()
    session = plain_open(house, keys.licence(Terms("digits"), expires_at_s=keys.NOW_S + 60))
    house.admit(session).release()
    house.clock.wall_s += 60
    with pytest.raises(Denied) as caught:
        house.admit(session)
    assert caught.value.reason == "licence-expired"


@pytest.mark.parametrize(("action", "tier"), [("warn", 2), ("stop", 2), ("degrade", 1)])
def test_grace_serves_on_with_a_notice(action: str, tier: int) -> None:
    """In the grace period the session goes on, says so, and is degraded where the policy says so; then it ends."""
    house = plain_house()
    policy = ExpiryPolicy(action, 30, 1 if action == "degrade" else None)  # type: ignore[arg-type]
    licence = keys.licence(Terms("digits", tier=2, expiry=policy), expires_at_s=keys.NOW_S + 60)
    session = plain_open(house, licence)
    assert (session.tier, session.notice) == (2, "")
    house.clock.wall_s += 60
    permit = house.admit(session)
    assert permit.tier == tier
    assert "expired" in session.notice
    assert plain_open(house, licence).tier == tier
    house.clock.wall_s += 30
    with pytest.raises(Denied):
        house.admit(session)


def test_degrading_to_a_tier_that_the_package_lacks_is_refused() -> None:
    """Where the lower tier does not exist the full one is not given instead."""
    house = Gatehouse(shelf=Shelf(offer(keyed=False, tiers=frozenset({2}))))
    policy = ExpiryPolicy("degrade", 30, 1)
    session = plain_open(house, keys.licence(Terms("digits", tier=2, expiry=policy), expires_at_s=keys.NOW_S + 60))
    house.clock.wall_s += 60
    with pytest.raises(Denied) as caught:
        house.admit(session)
    assert caught.value.reason == "tier-unavailable"


def test_a_request_may_ask_for_less_and_never_for_more() -> None:
    """A tier at or below the licence's is served for that request; one above, or one that is not there, is refused."""
    house = Gatehouse(shelf=Shelf(offer(keyed=False, tiers=frozenset({1, 3, 4}))))
    session = plain_open(house, plain_licence(tier=3))
    token = session.token.reveal().decode()

    def admit(tier: int | None) -> Permit:
        return house.gate.admit(token, "digits", "", 1, f"r-{tier}", tier=tier)

    assert [admit(tier).tier for tier in (None, 1, 3)] == [3, 1, 3]
    assert session.tier == 3
    outstanding = house.gate.outstanding
    for tier, reason in ((4, "tier-not-licensed"), (16, "tier-not-licensed"), (2, "tier-unavailable")):
        with pytest.raises(Denied) as caught:
            admit(tier)
        assert caught.value.reason == reason
    assert house.gate.outstanding == outstanding


def test_in_grace_a_request_cannot_ask_for_what_the_licence_was_worth() -> None:
    """Once degraded, the tier of the policy is the most there is."""
    house = plain_house()
    policy = ExpiryPolicy("degrade", 30, 1)
    session = plain_open(house, keys.licence(Terms("digits", tier=2, expiry=policy), expires_at_s=keys.NOW_S + 60))
    token = session.token.reveal().decode()
    assert house.gate.admit(token, "digits", "", 1, "a", tier=2).tier == 2
    house.clock.wall_s += 60
    with pytest.raises(Denied) as caught:
        house.gate.admit(token, "digits", "", 1, "b", tier=2)
    assert caught.value.reason == "tier-not-licensed"


def test_tiers_with_keys_need_a_grant_with_one() -> None:
    """A grant without a tier key opens no package whose tiers have keys; with one, its key is what is opened."""
    house = Gatehouse(shelf=Shelf(offer(keyed=False, tier_keys=True)))
    licence = plain_licence(tier=2)
    with pytest.raises(Denied) as caught:
        house.prepare(licence, plain_grant(licence), key=None)
    assert caught.value.reason == "grant-mismatch"
    secrets = PackageSecrets(keys.PACKAGE_ID, keys.CONTENT_KEY, None, tier_key(2))
    opening = house.prepare(licence, keys.grant(licence, secrets=secrets), key=None)
    assert opening.keys.tier_key == tier_key(2)


def test_a_tier_that_is_not_loaded_is_loaded_first() -> None:
    """A package that is ready at another tier says so, and no session is made before the weights are there."""
    house = plain_house()
    licence = plain_licence(tier=2)
    house.shelf.missing.add((keys.PACKAGE_ID, 2))
    opening = house.prepare(licence, plain_grant(licence), key=None)
    assert opening.needs_load
    with pytest.raises(Unavailable) as caught:
        house.gate.complete(opening, 0)
    assert caught.value.reason == "model-not-ready"
    house.shelf.missing.clear()
    assert house.gate.complete(opening, 0).tier == 2
    assert not house.prepare(licence, plain_grant(licence), key=None).needs_load


def test_a_clock_set_back_stops_live_sessions_and_they_recover() -> None:
    """Behind the newest time seen by more than the tolerance nothing is served; when the clock is right again, it
    is."""
    house = plain_house()
    session = plain_open(house)
    house.clock.wall_s -= 300
    house.admit(session).release()
    house.clock.wall_s -= 1
    with pytest.raises(Unavailable) as caught:
        house.admit(session)
    assert caught.value.reason == "clock-rolled-back"
    house.clock.wall_s += 301
    house.admit(session).release()


def test_sealed_and_draining_refuse_everything() -> None:
    """A sealed store and a draining server answer with their own words; a sealed one also drops all sessions."""
    house = plain_house()
    session = plain_open(house)
    token = session.token.reveal().decode()
    house.sealed = True
    for call in (house.gate.challenge, lambda: house.admit(session), lambda: house.gate.session(token)):
        with pytest.raises(SealedError):
            call()
    house.sealed = False
    held = house.admit(session)
    house.gate.drain()
    for call in (house.gate.challenge, lambda: house.admit(session), lambda: house.gate.session(token)):
        with pytest.raises(Unavailable) as caught:
            call()
        assert caught.value.reason == "draining"
    assert house.gate.draining
    held.charge()
    assert house.gate.outstanding == 0
    assert house.gate.drop_all() == 1


def test_no_samples_are_no_request() -> None:
    """A request without samples is malformed."""
    house = plain_house()
    with pytest.raises(Malformed):
        house.admit(plain_open(house), samples=0)


def test_a_grant_sealed_to_another_node_does_not_open() -> None:
    """A licence for any node with a grant for another node is a mismatch here."""
    house, licence = Gatehouse(), keys.licence(node=None)
    foreign = grants.issue(
        licence,
        issuer=keys.ISSUER,
        secrets=keys.SECRETS,
        buyer=keys.BUYER.public,
        node=keys.OTHER_NODE.public,
        now_s=keys.NOW_S,
    )
    with pytest.raises(Denied) as caught:
        house.prepare(licence, foreign)
    assert caught.value.reason == "grant-mismatch"


def test_memory_ledger_is_a_usage_view() -> None:
    """The port's three questions are answered by the ledger these tests use."""
    ledger = MemoryLedger("node")
    assert ledger.clock_mark_us() == 0
