"""The buyer's door on a real appliance: real store, real TLS, real model."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import keys
from support.appliance import DAY_S, KEYED, PLAIN, Kind, Site, bearer, header, running
from tessera.keystore import licence as licences
from tessera.keystore import revocation
from tessera.keystore.identity import PublicIdentity
from tessera.keystore.licence import ExpiryPolicy, Quota, Terms
from tessera.keystore.store import Store
from tessera.server.config import Limits
from tessera.v1 import admin_pb2, types_pb2
from tessera.v1 import licensing_pb2 as pb

pytestmark = pytest.mark.slow


async def refusal(call: object) -> grpc.aio.AioRpcError:
    """Return the error of a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value


async def usage(site: Site, token: str) -> types_pb2.LicenceUsage:
    """Ask for the licence's own usage."""
    return (await site.licensing().GetUsage(pb.GetUsageRequest(), metadata=bearer(token))).usage


async def test_a_session_from_challenge_to_close(tmp_path: Path) -> None:
    """Challenge, open, use, renew, close: each answer says what the proto promises."""
    async with running(tmp_path) as site:
        challenge = await site.licensing().CreateChallenge(pb.CreateChallengeRequest())
        assert len(challenge.nonce) == 32
        assert challenge.node.node_id == site.node.key_id
        assert challenge.expires_at_ms > site.clock.now_s() * 1000
        licence = site.licence(quota=Quota(100))
        opened = await site.open(licence)
        assert (opened.contract.name, opened.contract.version, opened.contract.tier) == ("digits", 1, 1)
        assert opened.contract.inputs[0].datatype == "UINT8"
        assert list(opened.contract.inputs[0].shape) == [-1, 1, 8, 8]
        assert (opened.samples_left, opened.notice) == (100, "")
        token = opened.session_token
        assert opened.session_id not in token
        used = await usage(site, token)
        assert (used.licence_id, used.samples, used.quota_samples, used.samples_left) == (
            licence.licence_id,
            0,
            100,
            100,
        )
        site.clock.steady_shift_s += 600
        site.clock.wall_shift_s += 600
        renewed = await site.licensing().RenewSession(
            pb.RenewSessionRequest(proof=await site.proof(licence, "renew-session")), metadata=bearer(token)
        )
        assert renewed.expires_at_ms > opened.expires_at_ms
        await site.licensing().CloseSession(pb.CloseSessionRequest(), metadata=bearer(token))
        gone = await refusal(usage(site, token))
        assert (gone.code(), header(gone, "tessera-reason")) == (grpc.StatusCode.UNAUTHENTICATED, "session-unknown")


async def test_without_a_session_nothing_is_told(tmp_path: Path) -> None:
    """No token, another scheme, a wrong token: UNAUTHENTICATED with its reason and a remedy."""
    async with running(tmp_path) as site:
        stub = site.licensing()
        for metadata, reason in (
            ((), "session-missing"),
            ((("authorization", "Basic abc"),), "session-missing"),
            (bearer("wrong"), "session-unknown"),
        ):
            error = await refusal(stub.GetUsage(pb.GetUsageRequest(), metadata=metadata))
            assert (error.code(), header(error, "tessera-reason")) == (grpc.StatusCode.UNAUTHENTICATED, reason)
            assert header(error, "tessera-remedy")


async def test_the_input_key_is_confirmed(tmp_path: Path) -> None:
    """The right input key opens a session; a wrong one and none are refused before anything runs."""
    async with running(tmp_path, (KEYED,)) as site:
        assert (await site.open(kind=KEYED)).contract.input_key_id
        licence = site.licence(kind=KEYED)
        stub = site.licensing()
        wrong = await site.request(licence, kind=KEYED, input_key=keys.OTHER_INPUT_KEY)
        error = await refusal(stub.OpenSession(wrong))
        assert (error.code(), error.details()) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "wrong-input-key: the input key is not the one that the licence names",
        )
        none = await site.request(licence, kind=KEYED)
        none.key_confirmation = b""
        assert header(await refusal(stub.OpenSession(none)), "tessera-reason") == "wrong-input-key"
        status = await site.admin().GetStatus(admin_pb2.GetStatusRequest())
        assert (status.ledger_records, status.sessions) == (0, 1)


async def test_stolen_things_open_nothing(tmp_path: Path) -> None:
    """A licence without its identity key, a token without a proof, an answer used twice: all refused."""
    async with running(tmp_path) as site:
        licence, stub = site.licence(), site.licensing()
        stolen = await site.request(licence, buyer=keys.OTHER_BUYER)
        error = await refusal(stub.OpenSession(stolen))
        assert (error.code(), header(error, "tessera-reason")) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "licence-not-yours",
        )
        good = await site.request(licence)
        token = (await stub.OpenSession(good)).session_token
        error = await refusal(stub.OpenSession(good, metadata=bearer(token)))
        assert header(error, "tessera-reason") == "challenge-unknown"
        error = await refusal(stub.RenewSession(pb.RenewSessionRequest(), metadata=bearer(token)))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        bare = await refusal(stub.OpenSession(pb.OpenSessionRequest(), metadata=bearer(token)))
        assert header(bare, "tessera-reason") == "licence-missing"


@pytest.mark.parametrize(
    ("starts_in_s", "ends_in_s", "reason"),
    [(60, DAY_S, "licence-not-yet-valid"), (-DAY_S, -60, "licence-expired")],
)
async def test_a_licence_out_of_its_time(tmp_path: Path, starts_in_s: int, ends_in_s: int, reason: str) -> None:
    """Before its start and after its end a licence opens nothing."""
    async with running(tmp_path) as site:
        licence = site.licence(starts_in_s=starts_in_s, ends_in_s=ends_in_s)
        error = await refusal(site.licensing().OpenSession(await site.request(licence)))
        assert (error.code(), header(error, "tessera-reason")) == (grpc.StatusCode.PERMISSION_DENIED, reason)


async def test_a_foreign_or_changed_licence_is_the_peers_failure(tmp_path: Path) -> None:
    """An unknown issuer and a broken signature are UNAUTHENTICATED, never DATA_LOSS."""
    async with running(tmp_path) as site:
        stub = site.licensing()
        foreign = site.licence(issuer=keys.OTHER_ISSUER)
        request = pb.OpenSessionRequest(licence=foreign.token, proof=await site.proof(foreign))
        assert header(await refusal(stub.OpenSession(request)), "tessera-reason") == "licence-issuer-unknown"
        good = await site.request(site.licence())
        head, _, signature = good.licence.rpartition(".")
        good.licence = f"{head}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"
        error = await refusal(stub.OpenSession(good))
        assert (error.code(), header(error, "tessera-reason")) == (grpc.StatusCode.UNAUTHENTICATED, "tampered")


async def test_seats_are_counted_and_freed(tmp_path: Path) -> None:
    """The session beyond the licence's seats is refused until one is closed."""
    async with running(tmp_path) as site:
        licence = site.licence(sessions=1)
        token = (await site.open(licence)).session_token
        error = await refusal(site.open(licence))
        assert (error.code(), header(error, "tessera-reason")) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "seats-full")
        await site.licensing().CloseSession(pb.CloseSessionRequest(), metadata=bearer(token))
        await site.open(licence)


async def test_grace_gives_a_notice(tmp_path: Path) -> None:
    """In its grace period a licence still opens a session, which says so."""
    async with running(tmp_path) as site:
        terms = Terms("digits", expiry=ExpiryPolicy("warn", 3600))
        opened = await site.open(site.licence(terms, starts_in_s=-DAY_S, ends_in_s=-60))
        assert "expired" in opened.notice
        assert opened.expires_at_ms <= (site.clock.now_s() + 3600 - 60 + 1) * 1000


async def test_the_first_grant_loads_the_model_and_stays(tmp_path: Path) -> None:
    """A model nobody has a key for is loaded by the first session's grant; later no grant need be sent, and it can be
    fetched, by its buyer only."""
    async with running(tmp_path) as site:
        assert site.appliance.node.models.entry("digits").state == "published"
        licence, stub = site.licence(), site.licensing()
        error = await refusal(stub.OpenSession(await site.request(licence, with_grant=False)))
        assert (error.code(), header(error, "tessera-reason")) == (grpc.StatusCode.NOT_FOUND, "grant-missing")
        first = await site.request(licence)
        await stub.OpenSession(first)
        assert site.appliance.node.models.entry("digits").state == "ready"
        await stub.OpenSession(await site.request(licence, with_grant=False))
        fetched = await stub.FetchGrant(
            pb.FetchGrantRequest(licence=licence.token, proof=await site.proof(licence, "fetch-grant"))
        )
        assert fetched.grant == first.grant
        theirs = await site.proof(licence, "fetch-grant", buyer=keys.OTHER_BUYER)
        error = await refusal(stub.FetchGrant(pb.FetchGrantRequest(licence=licence.token, proof=theirs)))
        assert header(error, "tessera-reason") == "licence-not-yours"
        other = site.licence()
        proof = await site.proof(other, "fetch-grant")
        error = await refusal(stub.FetchGrant(pb.FetchGrantRequest(licence=other.token, proof=proof)))
        assert header(error, "tessera-reason") == "grant-missing"


async def test_concurrent_openings_share_one_load(tmp_path: Path) -> None:
    """Sessions that arrive while the model is being loaded wait for the same load."""
    async with running(tmp_path) as site:
        requests = [await site.request(site.licence()) for _ in range(4)]
        stub = site.licensing()
        opened = await asyncio.gather(*(stub.OpenSession(request) for request in requests))
        assert len({response.session_token for response in opened}) == 4


async def test_one_vendor_does_not_license_anothers_model(tmp_path: Path) -> None:
    """A second trusted issuer's licence for this model's name covers nothing here."""
    async with running(tmp_path) as site:
        site.appliance.node.store.trust_issuer(PublicIdentity.from_json(keys.OTHER_ISSUER.public.to_json()))
        foreign = site.licence(issuer=keys.OTHER_ISSUER)
        request = pb.OpenSessionRequest(licence=foreign.token, proof=await site.proof(foreign))
        error = await refusal(site.licensing().OpenSession(request))
        assert (error.code(), header(error, "tessera-reason")) == (grpc.StatusCode.NOT_FOUND, "model-unknown")


async def test_a_rolled_back_clock_is_refused_and_recovers(tmp_path: Path) -> None:
    """A clock behind the newest recorded time by more than the tolerance opens nothing, also after a restart."""
    async with running(tmp_path) as site:
        site.appliance.node.store.note_time(int(site.clock.now_s() * 1e6))
        site.clock.wall_shift_s = -DAY_S / 2
        licence = site.licence()
        error = await refusal(site.licensing().OpenSession(await site.request(licence)))
        assert header(error, "tessera-reason") == "clock-rolled-back"
        site.clock.wall_shift_s = 0
        await site.open(licence)


async def test_a_slow_look_at_the_store_undoes_no_revocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node looks for other processes' lists now and then; what it saw before a list was applied is old."""
    async with running(tmp_path, limits=Limits(revocation_poll_s=0.01)) as site:
        licence, store = site.licence(), site.appliance.node.store
        look, seen, go_on, over = store.revoked, threading.Event(), threading.Event(), threading.Event()
        waits = [go_on, None]  # after the watcher's first look; the revocation's own; all later ones are after the test

        def slow_look() -> dict[tuple[str, str], str]:
            found = look()
            wait_for = waits.pop(0) if waits else over
            seen.set()
            if wait_for is not None:
                wait_for.wait(10)
            return found

        monkeypatch.setattr(store, "revoked", slow_look)
        assert await asyncio.to_thread(seen.wait, 10)
        listed = revocation.issue(1, {licence.licence_id: (1, "leaked")}, issuer=keys.ISSUER, now_s=site.clock.now_s())
        request = admin_pb2.RevokeLicencesRequest(revocation_list=listed.token)
        revoking = asyncio.ensure_future(site.admin().RevokeLicences(request))
        await asyncio.wait({revoking}, timeout=0.5)  # whether it waits for the look that has begun is its own matter
        go_on.set()
        try:
            await revoking
            assert header(await refusal(site.open(licence)), "tessera-reason") == "licence-revoked"
        finally:
            over.set()


async def test_revocation_ends_live_sessions(tmp_path: Path) -> None:
    """A revocation list in force closes the licence's sessions and lets no new one in; a list never goes back."""
    async with running(tmp_path) as site:
        licence, other = site.licence(), site.licence()
        token = (await site.open(licence)).session_token
        kept = (await site.open(other)).session_token
        first = revocation.issue(2, {licence.licence_id: (1, "leaked")}, issuer=keys.ISSUER, now_s=site.clock.now_s())
        answer = await site.admin().RevokeLicences(admin_pb2.RevokeLicencesRequest(revocation_list=first.token))
        assert (answer.number, answer.revoked, answer.sessions_closed) == (2, 1, 1)
        assert header(await refusal(usage(site, token)), "tessera-reason") == "session-unknown"
        await usage(site, kept)
        error = await refusal(site.open(licence))
        assert (error.code(), header(error, "tessera-reason")) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "licence-revoked",
        )
        older = revocation.issue(1, {}, issuer=keys.ISSUER, now_s=site.clock.now_s())
        error = await refusal(site.admin().RevokeLicences(admin_pb2.RevokeLicencesRequest(revocation_list=older.token)))
        assert (error.code(), header(error, "tessera-reason")) == (
            grpc.StatusCode.ALREADY_EXISTS,
            "revocation-rollback",
        )


async def test_revocations_of_another_process_are_followed(tmp_path: Path) -> None:
    """A list that somebody else puts into the store ends the licence's sessions within the poll's interval."""
    async with running(tmp_path, limits=Limits(revocation_poll_s=0.01)) as site:
        licence = site.licence()
        token = (await site.open(licence)).session_token
        issued = revocation.issue(1, {licence.licence_id: (1, "leaked")}, issuer=keys.ISSUER, now_s=site.clock.now_s())
        with Store.open(site.directory) as another:
            another.apply_revocations(issued)

        async def until_refused() -> None:
            while True:
                await usage(site, token)

        error = await refusal(asyncio.wait_for(until_refused(), 5))
        assert error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


async def test_sealed_answers_say_so(tmp_path: Path) -> None:
    """While the store is sealed the buyer's door answers UNAVAILABLE store-sealed."""
    async with running(tmp_path, sealed=True) as site:
        error = await refusal(site.licensing().CreateChallenge(pb.CreateChallengeRequest()))
        assert (error.code(), header(error, "tessera-reason")) == (grpc.StatusCode.UNAVAILABLE, "store-sealed")


async def test_an_oversize_request_is_refused_with_a_reason(tmp_path: Path) -> None:
    """4 MiB and one byte is INVALID_ARGUMENT message-too-large; the server stays up."""
    async with running(tmp_path) as site:
        request = pb.OpenSessionRequest(licence="x" * (4 * 1024 * 1024))
        error = await refusal(site.licensing().OpenSession(request))
        assert (error.code(), header(error, "tessera-reason")) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "message-too-large",
        )
        await site.open()


async def test_random_requests_end_in_typed_errors(tmp_path: Path) -> None:
    """Random bytes as a whole message or in any field are refused with a reason; never INTERNAL, never UNKNOWN."""
    async with running(tmp_path) as site:
        raw: Any = site.channel().unary_unary("/tessera.v1.LicensingService/OpenSession")
        licence = site.licence()

        async def ask(message: bytes) -> None:
            error = await refusal(raw(message))
            assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED)
            assert header(error, "tessera-reason") not in ("", "internal")

        loop, messages = asyncio.get_running_loop(), st.binary(max_size=200)
        fields = st.builds(
            pb.OpenSessionRequest,
            licence=st.sampled_from(["", "a.b.c", licence.token, licence.token[:-1]]) | st.text(max_size=50),
            grant=st.text(max_size=50),
            key_confirmation=st.binary(max_size=40),
            proof=st.builds(
                pb.PossessionProof,
                nonce=st.binary(max_size=40) | st.binary(min_size=32, max_size=32),
                buyer_public_key=st.binary(max_size=40) | st.just(keys.BUYER.public.verify_key),
                signature=st.binary(max_size=70) | st.binary(min_size=64, max_size=64),
            ),
        )

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(messages | fields.map(lambda message: message.SerializeToString()))
        def every(message: bytes) -> None:
            asyncio.run_coroutine_threadsafe(ask(message), loop).result(10)

        await asyncio.to_thread(every)
        await site.open(licence)


async def test_two_versions_are_told_apart(tmp_path: Path) -> None:
    """A licence that ends at version 1 is served version 1 though version 2 is published."""
    second = Kind(version=2)
    async with running(tmp_path, (PLAIN, second)) as site:
        licence = site.licence(max_version=1)
        assert (await site.open(licence)).contract.version == 1
        newer = site.licence(kind=second)
        assert (await site.open(newer, kind=second)).contract.version == 2


def test_the_licences_of_these_tests_are_real(tmp_path: Path) -> None:
    """What the helper issues verifies against the issuer that the store trusts."""
    assert licences.verify(keys.licence().token, keys.ISSUERS).licence_id == "lic-1"
