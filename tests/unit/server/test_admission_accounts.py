"""Accounts: quota with reservations, periods, rate."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.keystore.errors import Exhausted
from tessera.keystore.licence import Quota, Terms
from tessera.server.admission import Account, period_start_us

NOW_S = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC
DAY_S = 86_400


def account(samples: int | None = 10, period: str = "total", *, used: int = 0, rate: int | None = None) -> Account:
    """An account with a quota and a rate."""
    quota = None if samples is None else Quota(samples, period)  # type: ignore[arg-type]
    terms = Terms("digits", quota=quota, rate_samples_per_s=rate)
    return Account("lic-1", terms, used=used, max_batch=4, now_s=NOW_S)


def test_the_last_sample_goes_to_one_of_two_parallel_consumers() -> None:
    """Two threads ask for the last sample at once; exactly one gets it."""
    mine = account(1)
    barrier = threading.Barrier(2)
    got: list[bool] = []

    def ask(name: str) -> None:
        barrier.wait()
        got.append(mine.reserve(1, name, NOW_S) is not None)

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False, True]


def test_released_samples_can_be_had_again() -> None:
    """A reservation that is released leaves no trace."""
    mine = account(1)
    held = mine.reserve(1, "a", NOW_S)
    assert held is not None
    mine.release(held)
    assert mine.samples_left(NOW_S) == 1
    assert mine.reserve(1, "b", NOW_S) is not None


def test_requests_with_one_id_share_a_reservation_and_are_charged_once() -> None:
    """A retry in flight reserves nothing of its own, and its charge counts once."""
    mine = account(1)
    first, retry = mine.reserve(1, "a", NOW_S), mine.reserve(1, "a", NOW_S)
    assert first is not None
    assert retry is first
    assert mine.reserve(1, "b", NOW_S) is None
    mine.charge(first, NOW_S)
    mine.release(first)
    assert mine.samples_left(NOW_S) == 0


def test_a_shared_reservation_ends_with_its_last_holder() -> None:
    """When the first of two holders gives up, the other one's samples stay set aside."""
    mine = account(1)
    first, retry = mine.reserve(1, "a", NOW_S), mine.reserve(1, "a", NOW_S)
    assert first is not None
    assert retry is not None
    mine.release(first)
    assert mine.reserve(1, "b", NOW_S) is None
    mine.release(retry)
    assert mine.reserve(1, "b", NOW_S) is not None


def test_one_id_with_another_size_reserves_for_itself() -> None:
    """The same id with other samples is another payload; the ledger will refuse it, and meanwhile both are counted."""
    mine = account(3)
    assert mine.reserve(1, "a", NOW_S) is not None
    assert mine.reserve(2, "a", NOW_S) is not None
    assert mine.samples_left(NOW_S) == 0


def test_past_use_counts() -> None:
    """An account begins with what the ledger says."""
    assert account(10, used=9).samples_left(NOW_S) == 1
    assert account(10, used=12).samples_left(NOW_S) == 0


def test_no_quota_means_no_end() -> None:
    """Without a quota any number is admitted and nothing is left to tell."""
    mine = account(None)
    assert mine.samples_left(NOW_S) is None
    assert mine.reserve(10**9, "a", NOW_S) is not None


@pytest.mark.parametrize(("period", "start"), [("total", 0), ("day", 1_799_971_200), ("month", 1_798_761_600)])
def test_periods_begin_in_utc(period: str, start: int) -> None:
    """Days and months are UTC's, whatever the host's time zone."""
    assert period_start_us(period, NOW_S) == start * 1_000_000
    if start:
        assert period_start_us(period, start - 0.001) < start * 1_000_000
        assert period_start_us(period, start) == start * 1_000_000


def test_a_new_day_opens_the_quota_and_a_clock_set_back_does_not() -> None:
    """The quota is fresh at the next UTC midnight; stepping back over it and forth again gives nothing."""
    mine = account(1, "day")
    held = mine.reserve(1, "a", NOW_S)
    assert held is not None
    mine.charge(held, NOW_S)
    assert mine.reserve(1, "b", NOW_S) is None
    held = mine.reserve(1, "c", NOW_S + DAY_S)
    assert held is not None
    mine.charge(held, NOW_S + DAY_S)
    assert mine.reserve(1, "d", NOW_S) is None
    assert mine.reserve(1, "e", NOW_S + DAY_S) is None


def test_a_charge_counts_in_the_period_in_which_it_happens() -> None:
    """Reserved before midnight and charged after it counts for the new day, as the ledger's record will say."""
    mine = account(2, "day")
    held = mine.reserve(1, "a", NOW_S)
    assert held is not None
    mine.charge(held, NOW_S + DAY_S)
    assert mine.samples_left(NOW_S + DAY_S) == 1


def test_new_terms_keep_what_was_used() -> None:
    """A larger quota under the same licence id adds room and forgives nothing."""
    mine = account(1, used=1)
    mine.adopt(Terms("digits", quota=Quota(3)), max_batch=4)
    assert mine.samples_left(NOW_S) == 2


def test_rate_lets_one_second_through_and_refills() -> None:
    """The bucket holds a second's worth at first, refuses the next sample, and refills with time."""
    mine = account(None, rate=10)
    mine.take_rate(10, 0.0)
    with pytest.raises(Exhausted) as caught:
        mine.take_rate(1, 0.0)
    assert caught.value.reason == "rate-limited"
    mine.take_rate(1, 0.1)
    with pytest.raises(Exhausted):
        mine.take_rate(2, 0.2)
    mine.take_rate(10, 100.0)


def test_rate_never_refuses_a_legal_request_for_ever() -> None:
    """A bucket holds at least one largest batch, even where the rate is lower."""
    mine = account(None, rate=1)
    mine.take_rate(4, 0.0)
    mine.take_rate(4, 4.0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["charge", "release", "hold"])), max_size=30))
def test_use_and_reservations_never_exceed_the_quota(steps: list[tuple[int, str]]) -> None:
    """Whatever is asked, charged and released, the sum of charged and held samples stays within the quota."""
    mine, charged, held = account(20), 0, 0
    for number, (samples, fate) in enumerate(steps):
        reservation = mine.reserve(samples, f"r-{number}", NOW_S)
        assert (reservation is not None) == (charged + held + samples <= 20)
        if reservation is None:
            continue
        if fate == "charge":
            mine.charge(reservation, NOW_S)
            charged += samples
        elif fate == "release":
            mine.release(reservation)
        else:
            held += samples
    assert mine.samples_left(NOW_S) == 20 - charged - held
