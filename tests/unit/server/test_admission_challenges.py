"""Challenges: ours, young, once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.keystore.errors import Exhausted, Unauthenticated
from tessera.server.admission import Challenges


def challenges(max_remembered: int = 4) -> Challenges:
    """Challenges that live ten seconds."""
    return Challenges(ttl_s=10, max_remembered=max_remembered)


def test_a_nonce_is_good_once() -> None:
    """The second answer to one challenge is refused."""
    mine = challenges()
    nonce = mine.issue(0.0)
    assert len(nonce) == 32
    mine.redeem(nonce, 1.0)
    with pytest.raises(Unauthenticated) as caught:
        mine.redeem(nonce, 2.0)
    assert caught.value.reason == "challenge-unknown"


def test_a_nonce_grows_old() -> None:
    """At its expiry a nonce is refused, just before it is not."""
    mine = challenges()
    mine.redeem(mine.issue(0.0), 9.999)
    with pytest.raises(Unauthenticated):
        mine.redeem(mine.issue(0.0), 10.0)


def test_another_process_does_not_know_it() -> None:
    """A nonce of another instance is not ours."""
    with pytest.raises(Unauthenticated):
        challenges().redeem(challenges().issue(0.0), 1.0)


def test_memory_is_bounded_and_frees_itself() -> None:
    """More answers than can be remembered are refused, until the first have expired; asking costs nothing."""
    mine = challenges(max_remembered=2)
    waiting = [mine.issue(0.0) for _ in range(1000)]
    mine.redeem(waiting[0], 1.0)
    mine.redeem(waiting[1], 1.0)
    with pytest.raises(Exhausted) as caught:
        mine.redeem(waiting[2], 1.0)
    assert caught.value.reason == "sessions-full"
    late = mine.issue(9.0)
    mine.redeem(late, 11.0)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 31), st.integers(1, 255))
def test_no_other_bytes_are_a_nonce(noise: bytes, place: int, mask: int) -> None:
    """Random bytes, and a nonce with any byte changed, are refused with the typed error."""
    mine = challenges()
    forged = bytearray(mine.issue(0.0))
    forged[place] ^= mask
    for nonce in (noise, bytes(forged)):
        with pytest.raises(Unauthenticated):
            mine.redeem(nonce, 1.0)
