"""The asyncio client against a real appliance on the same loop: the same plans, so the same answers."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from support import keys
from support.appliance import KEYED, PASSPHRASE, PLAIN, Site, make_site, running
from support.background import expected, file, images
from tessera.client import (
    Answer,
    AsyncClient,
    Cancelled,
    InvalidTensor,
    QuotaExhausted,
    RetryPolicy,
    ServerUnverified,
    Unreachable,
    WrongInputKey,
)
from tessera.keystore.errors import ApiMisuse
from tessera.keystore.licence import LicenceFile, Quota
from tessera.server.app import Appliance

pytestmark = pytest.mark.slow


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """An appliance with a plain and a keyed model; no task of a client outlives the test."""
    async with running(tmp_path, (PLAIN, KEYED)) as site:
        yield site
        left = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("tessera-client")]
        assert left == []


def client(site: Site, *licences: LicenceFile, **settings: Any) -> AsyncClient:
    """Return a client of `keys.BUYER` for a fresh licence, or the given ones."""
    given: dict[str, Any] = {
        "identity": keys.BUYER,
        "licence": licences or file(site),
        "root_certificates": site.root_certificates,
        "retries": 0,
    }
    return AsyncClient(site.target, **(given | settings))


async def collect(into: list[Any], outputs: AsyncIterator[Any]) -> None:
    """Append what comes, so that it survives an exception."""
    async for output in outputs:
        into.append(output)  # noqa: PERF401  a comprehension would lose what came before the exception


async def test_calls_from_end_to_end(site: Site) -> None:
    """Right answers, one session for many concurrent calls, receipts, usage, contract."""
    x = images(5)
    async with client(site, file(site), file(site, KEYED)) as c:
        outputs = await asyncio.gather(*(c.infer(model, x) for model in ("digits", "secret-digits") * 8))
        assert all(np.allclose(output, expected(x), atol=1e-5) for output in outputs)
        answer = await c.infer_detailed("digits", x[0], request_id="one")
        assert answer.receipt is not None
        assert answer.receipt.request_id == "one"
        assert (await c.usage("digits")).requests == 9
        assert (await c.contract("secret-digits")).input_key_id
        assert (await c.session_info("digits")).version == 1
        assert (await c.transformed("digits", x[0]))["image"].shape == (1, 1, 8, 8)
        assert dict(await c.session_metadata("digits"))["authorization"].startswith("Bearer ")


@pytest.mark.parametrize("options", [{}, {"streams": 3}, {"pack": 4, "window": 2}])
async def test_streams_answer_in_order(site: Site, options: dict[str, Any]) -> None:
    """From an asynchronous and from a plain source."""
    x = images(50)

    async def camera() -> AsyncIterator[Any]:
        for frame in x:
            yield frame

    async with client(site) as c:
        for source in (camera(), iter(x)):
            outputs = [output async for output in c.stream("digits", source, **options)]
            assert np.allclose(np.stack(outputs), expected(x), atol=1e-5)


async def test_leaving_a_stream_early_leaves_no_task(site: Site) -> None:
    """Closing the generator ends call and tasks at once; the caller's source stays the caller's."""

    async def camera() -> AsyncIterator[Any]:
        while True:
            yield images(1)[0]

    async with client(site) as c:
        async with aclosing(c.stream("digits", camera(), window=4)) as outputs:
            async for _ in outputs:
                break
        assert [task for task in asyncio.all_tasks() if task.get_name().startswith("tessera-client")] == []
        assert (await c.infer("digits", images(1))).shape == (1, 10)


async def test_refusals_raise_or_are_yielded(site: Site) -> None:
    """As in the blocking client."""
    async with client(site, file(site, quota=Quota(2))) as c:
        got: list[Any] = []
        with pytest.raises(QuotaExhausted):
            await collect(got, c.stream("digits", images(5), window=2))
        assert len(got) == 2
    frames = [images(1)[0], np.zeros(3, np.uint8), images(1)[0]]
    async with client(site) as c:
        kinds = [type(outcome) async for outcome in c.stream_detailed("digits", frames, on_error="yield")]
    assert kinds == [Answer, InvalidTensor, Answer]


async def test_a_source_that_fails_is_heard_after_its_answers(site: Site) -> None:
    """The exception is the caller's own."""

    def camera() -> Iterator[Any]:
        yield images(1)[0]
        raise KeyError("camera")

    got: list[Any] = []
    async with client(site) as c:
        with pytest.raises(KeyError):
            await collect(got, c.stream("digits", camera()))
    assert len(got) == 1


async def test_a_source_that_is_cancelled_is_heard_too(site: Site) -> None:
    """A source that awaits what somebody else has cancelled ends the stream; nobody waits for its next frame."""

    async def camera() -> AsyncIterator[Any]:
        yield images(1)[0]
        gone: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        gone.cancel()
        yield await gone

    got: list[Any] = []
    async with client(site) as c:
        reading = asyncio.create_task(collect(got, c.stream("digits", camera())))
        done, _ = await asyncio.wait([reading], timeout=20)
        assert done == {reading}
        assert reading.cancelled()
    assert len(got) == 1


async def test_a_caller_who_keeps_the_loop_busy_is_not_told_that_the_server_is_late(site: Site) -> None:
    """Answers that arrived while the caller worked without awaiting are in time."""
    x = images(12)
    busy_s = 0.15
    async with client(site) as c:
        await c.contract("digits")
        got: list[Any] = []
        async for output in c.stream("digits", x, window=12, timeout_s=3 * busy_s):
            until_s = time.monotonic() + busy_s
            while time.monotonic() < until_s:
                pass
            got.append(output)
    assert len(got) == 12


@pytest.mark.parametrize("streams", [1, 3])
async def test_a_lost_session_is_reopened(site: Site, streams: int) -> None:
    """In a stream and between calls; each frame is charged once."""
    x = images(40)
    async with client(site) as c:
        licence_id = c.whoami().licences[0].licence_id

        def camera() -> Iterator[Any]:
            for number, frame in enumerate(x):
                if number == 20:
                    site.appliance.node.gate.drop_licences([(keys.ISSUER.key_id, licence_id)])
                yield frame

        outputs = [output async for output in c.stream("digits", camera(), window=8, streams=streams)]
        assert np.allclose(np.stack(outputs), expected(x), atol=1e-5)
        assert (await c.usage("digits")).samples == 40
        site.appliance.node.gate.drop_licences([(keys.ISSUER.key_id, licence_id)])
        assert (await c.infer_detailed("digits", x[0])).attempts == 2


async def test_a_caller_who_is_cancelled_leaves_no_seat_taken(site: Site) -> None:
    """The session that the server has opened by then is kept for the next caller, and the licence has but one seat."""
    gate = site.appliance.node.gate
    async with client(site, file(site, sessions=1)) as c, asyncio.timeout(20):
        first = asyncio.create_task(c.contract("digits"))
        while gate.session_count == 0:  # noqa: ASYNC110  the server tells nobody, it is watched
            await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await c.contract("digits")).name == "digits"


async def test_callers_share_the_news_that_nobody_answers(site: Site) -> None:
    """One attempt to open a session is enough for all who wait, those without the time to see its end included."""
    patience = RetryPolicy(3, base_s=0.2)
    gone = AsyncClient("localhost:1", identity=keys.BUYER, licence=file(site), retry=patience, timeout_s=2.0)
    async with gone as c:
        calls = (c.infer("digits", images(1), timeout_s=seconds) for seconds in [None] * 20 + [0.1])
        refusals = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(refusal) for refusal in refusals} == {Unreachable}
    assert len({id(refusal) for refusal in refusals}) == len(refusals)


async def test_a_client_belongs_to_one_event_loop(site: Site) -> None:
    """A second loop is told so, and does not disturb the first."""
    async with client(site) as c:
        await c.contract("digits")
        for misuse in (c.infer("digits", images(1)), c.close()):
            with pytest.raises(ApiMisuse, match="event loop"):
                await asyncio.to_thread(asyncio.run, misuse)
        assert (await c.infer("digits", images(1))).shape == (1, 10)


async def test_sessions_are_renewed(site: Site) -> None:
    """After seven tenths of its life, by the client's clock, a session is renewed and keeps its token."""
    async with client(site) as c:
        before = await c.session_info("digits")
        (slot,) = c._slots.values()
        assert slot.session is not None
        object.__setattr__(slot.session, "renew_at_s", 0.0)
        site.clock.wall_shift_s += 60
        site.clock.steady_shift_s += 60
        after = await c.session_info("digits")
        assert after.session_id == before.session_id
        assert after.expires_at_s > before.expires_at_s


async def test_a_wrong_key_a_wrong_server_and_no_server(site: Site) -> None:
    """Three different errors."""
    async with client(site, file(site, KEYED), input_key=keys.OTHER_INPUT_KEY) as c:
        with pytest.raises(WrongInputKey):
            await c.contract("secret-digits")
    async with client(site, root_certificates=None) as c:
        with pytest.raises(ServerUnverified):
            await c.contract("digits")
    gone = AsyncClient("localhost:1", identity=keys.BUYER, licence=file(site), retries=1)
    async with gone as c:
        with pytest.raises(Unreachable):
            await c.contract("digits")


async def test_closing_ends_sessions_and_further_calls(site: Site) -> None:
    """Closing twice is fine."""
    c = client(site)
    await c.contract("digits")
    await c.close()
    await c.close()
    assert site.appliance.node.gate.drop_licences([(keys.ISSUER.key_id, c.whoami().licences[0].licence_id)]) == 0
    with pytest.raises(ApiMisuse, match="closed"):
        await c.infer("digits", images(1))


async def test_closing_ends_what_is_under_way(site: Site) -> None:
    """A stream that waits for frames and a call that waits for an answer end with `Cancelled`: nobody cancelled their
    tasks, and nobody waits for ever."""

    async def camera() -> AsyncIterator[Any]:
        yield images(1)[0]
        await asyncio.get_running_loop().create_future()

    got = asyncio.Event()
    c = client(site)

    async def watch() -> None:
        async for _ in c.stream("digits", camera()):
            got.set()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        other = AsyncClient(target, identity=keys.BUYER, licence=file(site), danger_plaintext=True)
        stream = asyncio.create_task(watch())
        call = asyncio.create_task(other.contract("digits"))
        connection, _ = await asyncio.get_running_loop().sock_accept(silent)
        await got.wait()
        for closing, task in ((c, stream), (other, call)):
            await closing.close()
            with pytest.raises(Cancelled, match="closed"):
                await asyncio.wait_for(task, 20)
        connection.close()


async def test_a_restart_of_the_server_is_bridged(tmp_path: Path) -> None:
    """The server goes away in the middle of a stream and comes back: every frame is answered and charged once."""
    x = images(30)
    site = make_site(tmp_path)
    first = Appliance(site.settings(), passphrase=PASSPHRASE, clock=site.clock)
    await first.__aenter__()
    site.running = first
    again = Appliance(site.settings(port=first.port), passphrase=PASSPHRASE, clock=site.clock)

    async def camera() -> AsyncIterator[Any]:
        for number, frame in enumerate(x):
            if number == 15:
                await first.__aexit__(None, None, None)
                await again.__aenter__()
            yield frame

    async with client(site, retry=RetryPolicy(20, base_s=0.05, cap_s=0.5)) as c:
        outputs = [output async for output in c.stream("digits", camera(), window=8)]
        assert np.allclose(np.stack(outputs), expected(x), atol=1e-5)
        assert (await c.usage("digits")).samples == 30
    await again.__aexit__(None, None, None)
