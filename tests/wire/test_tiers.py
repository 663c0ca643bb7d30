"""Tiers end to end over a real appliance: what a licence says is what its buyer gets, from one package."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from support import keys
from support.appliance import PASSPHRASE, TIERED, Site, bearer, header, running, sealed_bytes
from support.tiers import TIERS, Tiered, expected, seal_tiered, tier_key
from tessera.keystore import grant as grants
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.licence import ExpiryPolicy, Licence
from tessera.keystore.package import UnlockedPackage
from tessera.oip.v1 import inference_pb2 as pb
from tessera.server.engine import LoadedProgram, load_variant
from tessera.v1 import admin_pb2, licensing_pb2

PICTURES = np.random.default_rng(8).integers(0, 256, (3, 1, 8, 8), np.uint8)
SERVICE = "/inference.GRPCInferenceService/"


@pytest.fixture(scope="module")
def tiered(tmp_path_factory: pytest.TempPathFactory) -> Tiered:
    """The modules that the tiers of `TIERED` are made of."""
    return seal_tiered(tmp_path_factory.mktemp("tiered"))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """An appliance with one package of three tiers and the vendor's own arithmetic, so that bits can be compared."""
    async with running(tmp_path, (TIERED,), arithmetic="exact") as made:
        yield made


def request(
    pictures: "np.ndarray[Any, Any]" = PICTURES, *, number: int = 0, tier: int | None = None
) -> pb.ModelInferRequest:
    """Return a request, asking for a tier if one is given."""
    made = pb.ModelInferRequest(model_name="digits", raw_input_contents=[pictures.tobytes()])
    made.id = f"r-{number}" if number else ""
    tensor = made.inputs.add(name="image", datatype="UINT8")
    tensor.shape.extend(pictures.shape)
    if tier is not None:
        made.parameters["tessera_tier"].int64_param = tier
    return made


async def infer(site: Site, token: str, made: pb.ModelInferRequest | None = None) -> list[float]:
    """Ask once and return the logits, flat."""
    call = site.channel().unary_unary(
        SERVICE + "ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    answer = await call(made or request(), metadata=bearer(token))
    return floats(answer)


def floats(answer: pb.ModelInferResponse) -> list[float]:
    """Return the logits of an answer, flat."""
    return [float(value) for value in np.frombuffer(answer.raw_output_contents[0], np.float32)]


async def refused(site: Site, token: str, made: pb.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
    """Return status and reason of a request that is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await infer(site, token, made)
    return caught.value.code(), header(caught.value, "tessera-reason")


def served(site: Site) -> list[bool]:
    """Return which tiers are in memory."""
    package_id = sealed_bytes(TIERED)[1].package_id
    return [site.appliance.node.models.serves(package_id, tier.tier) for tier in TIERS]


async def usage(site: Site) -> list[tuple[int, int]]:
    """Return tier and samples of every record."""
    records = await asyncio.to_thread(site.appliance.node.store.usage_records)
    return [(record.tier, record.samples) for record in records]


async def test_three_buyers_get_three_qualities_from_one_package(site: Site, tiered: Tiered) -> None:
    """Each licence's tier is what its buyer is answered with, to the bit; the top one is the vendor's model."""
    found: list[Sequence[float]] = []
    for number in (1, 2, 3):
        opened = await site.open(kind=TIERED, tier=number)
        assert opened.contract.tier == number
        assert served(site) == [tier.tier <= number for tier in TIERS]
        found.append(await infer(site, opened.session_token))
        assert found[-1] == expected(tiered, number, PICTURES)
    assert len({tuple(answers) for answers in found}) == 3
    assert await usage(site) == [(1, 3), (2, 3), (3, 3)]
    page = site.appliance.metrics.render()[0].decode()
    for number in (1, 2, 3):
        assert f'tessera_samples_total{{model="digits",tier="{number}"}} 3.0' in page


async def test_mixed_tiers_side_by_side(site: Site, tiered: Tiered) -> None:
    """Requests of three tiers at once: every answer is of the tier that its session is for."""
    tokens = {tier: (await site.open(kind=TIERED, tier=tier)).session_token for tier in (1, 2, 3)}
    order = [1 + number % 3 for number in range(30)]
    answers = await asyncio.gather(*(infer(site, tokens[tier]) for tier in order))
    right = {tier: expected(tiered, tier, PICTURES) for tier in (1, 2, 3)}
    for tier, answer in zip(order, answers, strict=True):
        assert np.allclose(answer, right[tier], atol=1e-5)  # who shares a batch may change the last bits (W-58)
    assert sorted(await usage(site)) == sorted((tier, 3) for tier in order)


async def test_an_upgrade_is_a_licence_and_no_package(site: Site, tiered: Tiered) -> None:
    """With a licence for tier 3 and its grant the same buyer gets the full model; the session of before stays."""
    before = await site.open(kind=TIERED, tier=1)
    published = site.appliance.node.store.packages()
    after = await site.open(kind=TIERED, tier=3)
    assert await infer(site, after.session_token) == expected(tiered, 3, PICTURES)
    assert await infer(site, before.session_token) == expected(tiered, 1, PICTURES)
    assert site.appliance.node.store.packages() == published


async def test_nobody_asks_for_more_than_the_licence_says(site: Site, tiered: Tiered) -> None:
    """A parameter may ask for less, never for more, and nothing is charged for trying."""
    token = (await site.open(kind=TIERED, tier=2)).session_token
    for tier in (3, 16):
        assert await refused(site, token, request(tier=tier)) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "tier-not-licensed",
        )
    for wrong in (0, -1, 17, 2**40):
        assert await refused(site, token, request(tier=wrong)) == (grpc.StatusCode.INVALID_ARGUMENT, "malformed")
    other = request()
    other.parameters["tessera_tier"].string_param = "3"
    assert await refused(site, token, other) == (grpc.StatusCode.INVALID_ARGUMENT, "malformed")
    assert await usage(site) == []
    assert await infer(site, token, request(tier=1)) == expected(tiered, 1, PICTURES)
    assert await infer(site, token, request(tier=2)) == expected(tiered, 2, PICTURES)
    assert await usage(site) == [(1, 3), (2, 3)]


async def test_degrading_in_mid_stream_loses_no_request(site: Site, tiered: Tiered) -> None:
    """At the licence's end the stream goes on at the lower tier, whose key follows from the one that is here."""
    policy = ExpiryPolicy("degrade", 3600, 1)
    opened = await site.open(site.licence(kind=TIERED, tier=3, expiry=policy, ends_in_s=1800), kind=TIERED)
    assert (opened.contract.tier, opened.notice) == (3, "")
    assert served(site) == [True, False, True]  # what the session will need in its lifetime is there before it does
    stream = site.channel().stream_stream(
        SERVICE + "ModelStreamInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )(metadata=bearer(opened.session_token))
    answers: list[list[float]] = []
    for number in range(1, 13):
        if number == 7:
            site.clock.wall_shift_s += 1801
        await stream.write(request(PICTURES[:1], number=number))
        item = await stream.read()
        assert isinstance(item, pb.ModelStreamInferResponse)
        assert item.error_message == ""
        answers.append(floats(item.infer_response))
    await stream.done_writing()
    full, less = (expected(tiered, tier, PICTURES[:1]) for tier in (3, 1))
    assert answers == [full] * 6 + [less] * 6
    assert await usage(site) == [(3, 1)] * 6 + [(1, 1)] * 6
    asked = request(number=99, tier=3)
    assert (await refused(site, opened.session_token, asked))[1] == "tier-not-licensed"


async def test_a_buyer_who_goes_away_while_a_lower_tier_loads_keeps_no_seat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session that nobody was told of ends at once: the only seat is free for the next attempt."""
    entered, go = threading.Event(), threading.Event()

    def slow(package: UnlockedPackage, device: Any, **how: Any) -> LoadedProgram:
        if how["tier_key"].tier == 1:
            entered.set()
            go.wait(10)
        return load_variant(package, device, **how)

    monkeypatch.setattr("tessera.server.node.load_variant", slow)
    async with running(tmp_path, (TIERED,)) as site:
        policy = ExpiryPolicy("degrade", 3600, 1)
        licence = site.licence(kind=TIERED, tier=3, expiry=policy, ends_in_s=1800, sessions=1)
        call = site.licensing().OpenSession(await site.request(licence, kind=TIERED))
        call.add_done_callback(lambda _: None)  # a call starts when something is asked of it
        assert await asyncio.to_thread(entered.wait, 10)
        assert site.appliance.node.gate.session_count == 1
        call.cancel()
        async with asyncio.timeout(10):
            while site.appliance.node.gate.session_count:  # noqa: ASYNC110 -- the gate wakes nobody
                await asyncio.sleep(0)
        go.set()
        assert (await site.open(licence, kind=TIERED)).session_token


async def test_degrading_with_requests_in_flight_loses_none(site: Site) -> None:
    """The clock passes the end while many are on their way, and the first that needs the lower tier has it loaded."""
    policy = ExpiryPolicy("degrade", 7200, 2)
    opened = await site.open(site.licence(kind=TIERED, tier=3, expiry=policy, ends_in_s=7000), kind=TIERED)
    assert served(site) == [False, False, True]  # the licence outlives the session, so nothing was prepared
    await infer(site, opened.session_token, request(number=1))
    first = [asyncio.create_task(infer(site, opened.session_token, request(number=n))) for n in range(2, 22)]
    await asyncio.sleep(0)
    site.clock.wall_shift_s += 7001
    second = [asyncio.create_task(infer(site, opened.session_token, request(number=n))) for n in range(22, 42)]
    answers = await asyncio.gather(*first, *second)
    assert len(answers) == 40
    assert served(site) == [False, True, True]
    records = await asyncio.to_thread(site.appliance.node.store.usage_records)
    tiers = {int(record.request_id[2:]): record.tier for record in records}
    assert sorted(tiers) == list(range(1, 42))
    assert tiers[1] == 3
    assert {tiers[number] for number in range(22, 42)} == {2}


def unusual_grant(site: Site, licence: Licence, secrets: PackageSecrets) -> str:
    """Return a grant that the issuer really signed, for keys that are not the licence's."""
    now_s = site.clock.now_s()
    return grants.issue(
        licence, issuer=keys.ISSUER, secrets=secrets, buyer=keys.BUYER.public, node=site.node, now_s=now_s
    ).token


async def opening(site: Site, licence: Licence, secrets: PackageSecrets) -> str:
    """Try to open a session with a grant for `secrets`; return the reason of the refusal."""
    made = licensing_pb2.OpenSessionRequest(
        licence=licence.token, grant=unusual_grant(site, licence, secrets), proof=await site.proof(licence)
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await site.licensing().OpenSession(made)
    return header(caught.value, "tessera-reason")


async def test_a_licence_for_a_tier_that_the_package_lacks(site: Site) -> None:
    """It cannot be granted, and with a grant that pretends it is refused; nothing is loaded or charged."""
    package_id = sealed_bytes(TIERED)[1].package_id
    licence = site.licence(kind=TIERED, tier=4)
    plain = PackageSecrets(package_id, keys.CONTENT_KEY, None)
    assert await opening(site, licence, plain) == "tier-unavailable"
    assert served(site) == [False] * 3
    assert await usage(site) == []


async def test_tier_keys_that_are_not_the_tiers(site: Site, tiered: Tiered) -> None:
    """A grant without a tier key, or with a wrong one, opens no tier; it harms nobody whose keys are right."""
    package_id = sealed_bytes(TIERED)[1].package_id
    good = await site.open(kind=TIERED, tier=1)
    plain = PackageSecrets(package_id, keys.CONTENT_KEY, None)
    assert await opening(site, site.licence(kind=TIERED, tier=3), plain) == "grant-mismatch"
    wrong = PackageSecrets(package_id, keys.CONTENT_KEY, None, tier_key(package_id=package_id, fill=0x72))
    assert await opening(site, site.licence(kind=TIERED, tier=3), wrong) == "model-not-ready"
    assert served(site) == [True, False, False]
    assert await infer(site, good.session_token) == expected(tiered, 1, PICTURES)
    assert await infer(site, (await site.open(kind=TIERED, tier=3)).session_token) == expected(tiered, 3, PICTURES)


async def test_after_a_restart_and_sealing_keys_come_from_the_grants(tmp_path: Path, tiered: Tiered) -> None:
    """Unsealing loads the highest tier that a grant here opens; the others follow from its key when they are used."""
    async with running(tmp_path, (TIERED,), arithmetic="exact") as site:
        tokens = [(await site.open(kind=TIERED, tier=tier)).session_token for tier in (1, 2)]
        assert served(site) == [True, True, False]
        await site.admin().Seal(admin_pb2.SealRequest())
        assert served(site) == [False] * 3
        await site.admin().Unseal(admin_pb2.UnsealRequest(passphrase=PASSPHRASE.reveal()))
        assert served(site) == [False, True, False]
        with pytest.raises(grpc.aio.AioRpcError):
            await infer(site, tokens[0])
        again = await site.open(kind=TIERED, tier=1)
        assert await infer(site, again.session_token) == expected(tiered, 1, PICTURES)
