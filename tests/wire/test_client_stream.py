"""Streams of both clients against a real appliance: order, packing, refusals, early exit, reopening."""

import gc
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from support import keys
from support.appliance import KEYED, Site
from support.background import Background, client, expected, file, images
from tessera.client import Answer, InvalidTensor, QuotaExhausted
from tessera.keystore.errors import ApiMisuse
from tessera.keystore.licence import Quota

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One appliance for all tests of this module."""
    with Background(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """After each test the client's threads are gone."""
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("tessera-client")] == []


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 1}, {"streams": 3}, {"pack": 4}, {"streams": 2, "pack": 8, "window": 4}],
    ids=["plain", "one-at-a-time", "three-streams", "packed", "packed-streams"],
)
def test_every_frame_has_its_own_answer_in_order(site: Site, options: dict[str, Any]) -> None:
    """However they travel, 101 frames give the 101 answers of the in-process model, and 101 samples are charged."""
    x = images(101)
    with client(site) as c:
        outputs = list(c.stream("digits", iter(x), **options))
        assert c.usage("digits").samples == 101
    assert np.allclose(np.stack(outputs), expected(x), atol=1e-5)


@pytest.mark.parametrize("pack", [1, 4])
def test_a_source_may_write_every_frame_into_one_buffer(site: Site, pack: int) -> None:
    """As cameras do: what was read stays what is sent, also while it waits for the rest of its request."""
    x = images(10)

    def camera() -> Iterator[Any]:
        buffer = np.empty_like(x[0])
        for frame in x:
            buffer[...] = frame
            yield buffer

    with client(site) as c:
        outputs = list(c.stream("digits", camera(), pack=pack))
    assert np.allclose(np.stack(outputs), expected(x), atol=1e-5)


def test_answers_carry_receipts(site: Site) -> None:
    """Each frame's answer has the verified receipt of the request it was in."""
    with client(site, file(site, KEYED)) as c:
        answers = list(c.stream_detailed("secret-digits", images(6), pack=3))
    assert [answer.receipt.samples for answer in answers if answer.receipt] == [3] * 6
    assert len({answer.request_id for answer in answers}) == 2


def test_frames_are_read_only_as_far_as_the_window(site: Site) -> None:
    """An endless source is fine; leaving the loop closes the generator, the call and the threads."""
    read = itertools.count()

    def camera() -> Iterator[Any]:
        frame = images(1)[0]
        for _ in read:
            yield frame

    with client(site) as c:
        for seen, _ in enumerate(c.stream("digits", camera(), window=4), start=1):
            if seen == 10:
                break
        gc.collect()
        assert next(read) <= 10 + 4 + 2
        assert c.infer("digits", images(1)).shape == (1, 10)


def test_a_stream_that_is_never_started_leaves_nothing(site: Site) -> None:
    """Making the generator opens no session and starts no thread."""
    with client(site) as c:
        c.stream("digits", images(3)).close()
        assert c._slots[c.whoami().licences[0].licence_id].session is None


def test_a_quota_ends_a_stream_at_its_place(site: Site) -> None:
    """Five samples are paid for: five answers, then the refusal; exactly five are charged."""
    with client(site, file(site, quota=Quota(5))) as c:
        got: list[Any] = []
        with pytest.raises(QuotaExhausted):
            got.extend(_collect(got, c.stream("digits", images(9), window=3)))
        assert len(got) == 5
        assert c.usage("digits").samples == 5


def _collect(into: list[Any], outputs: Iterator[Any]) -> list[Any]:
    into.extend(outputs)
    return []


def test_refused_frames_can_be_yielded(site: Site) -> None:
    """One bad frame does not stop the others: neither one of another shape nor one that is no array at all."""
    frames = [*images(2), np.zeros((3, 3), np.uint8), [[1], [2, 3]], *images(1)]
    with client(site) as c:
        outcomes = list(c.stream_detailed("digits", frames, on_error="yield"))
    assert [type(outcome) for outcome in outcomes] == [Answer, Answer, InvalidTensor, InvalidTensor, Answer]


def test_a_frame_source_that_fails_is_heard_after_its_answers(site: Site) -> None:
    """The caller's own exception arrives unchanged, after every answer before it."""

    def camera() -> Iterator[Any]:
        yield from images(3)
        raise KeyError("camera unplugged")

    got: list[Any] = []
    with client(site) as c, pytest.raises(KeyError, match="unplugged"):
        _collect(got, c.stream("digits", camera()))
    assert len(got) == 3


@pytest.mark.parametrize("streams", [1, 3])
def test_a_session_lost_in_the_middle_is_reopened(site: Site, streams: int) -> None:
    """The server forgets all sessions half-way; all answers still come, in order, and each is charged once."""
    x = images(60)
    with client(site) as c:
        licence_id = c.whoami().licences[0].licence_id

        def camera() -> Iterator[Any]:
            for number, frame in enumerate(x):
                if number == 30:
                    assert site.appliance.node.gate.drop_licences([(keys.ISSUER.key_id, licence_id)]) == 1
                yield frame

        outputs = list(c.stream("digits", camera(), window=8, streams=streams))
        assert np.allclose(np.stack(outputs), expected(x), atol=1e-5)
        assert c.usage("digits").samples == 60


def test_two_streams_of_one_client_do_not_mix(site: Site) -> None:
    """Streams are independent; their answers interleave in the caller only."""
    with client(site) as c:
        pairs = zip(c.stream("digits", images(9)), c.stream("digits", images(9)[::-1]), strict=True)
        left, right = zip(*pairs, strict=True)
    assert np.allclose(np.stack(left), np.stack(right)[::-1], atol=1e-5)


@pytest.mark.parametrize("options", [{"streams": 0}, {"streams": 65}, {"window": 0}, {"pack": 17}])
def test_options_out_of_range_are_refused(site: Site, options: dict[str, Any]) -> None:
    """The caller hears it at the first answer asked for."""
    with client(site) as c, pytest.raises(ApiMisuse):
        next(c.stream("digits", images(1), **options))
