"""The account of one licence: quota with reservations, rate, and what is left (rules W-20 to W-24).

A request first *reserves* its samples, so that of two parallel consumers of the last sample exactly one passes; the
reservation then becomes use (`charge`) once the ledger holds the record, or is given back (`release`). Requests in
flight with the same request id share one reservation, because the ledger will charge them once. The ledger is the
truth: the account starts from it and is kept in step by `charge`.
"""

import datetime
import threading

from tessera.keystore.errors import Exhausted
from tessera.keystore.licence import Quota, Terms

_MICROSECONDS = 1_000_000


def period_start_us(period: str, now_s: float) -> int:
    """Return the Unix time in microseconds, UTC, at which the quota period of `now_s` began; 0 for `total`."""
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    match period:
        case "day":
            start = now.replace(hour=0, minute=0, second=0, microsecond=0)
        case "month":
            start = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        case _:
            return 0
    return int(start.timestamp()) * _MICROSECONDS


class Reservation:
    """Samples set aside for one request id, shared by the permits that carry it."""

    __slots__ = ("charged", "holders", "request_id", "samples")

    def __init__(self, request_id: str, samples: int) -> None:
        self.request_id = request_id
        self.samples = samples
        self.holders = 1
        self.charged = False


class Account:
    """What one licence has used and set aside; not tied to any session, so several share it.

    Thread-safe: requests are admitted on the event loop, and may be settled wherever the ledger's answer arrives.
    """

    def __init__(self, licence_id: str, terms: Terms, *, used: int, max_batch: int, now_s: float) -> None:
        self.licence_id = licence_id
        self._lock = threading.Lock()
        self._used = used
        self._reserved = 0
        self._in_flight: dict[str, Reservation] = {}
        self._quota: Quota | None = None
        self._rate: int | None = None
        self._burst = 0.0
        self._tokens = 0.0
        self._refilled_s: float | None = None
        self.adopt(terms, max_batch=max_batch)
        self._period_us = self._period_start(now_s)

    def adopt(self, terms: Terms, *, max_batch: int) -> None:
        """Take over the terms of a licence that was issued anew under the same id; what was used stays used."""
        self._quota = terms.quota
        self._rate = terms.rate_samples_per_s
        self._burst = max(self._burst, float(max(self._rate or 0, max_batch)))

    @property
    def quota_samples(self) -> int | None:
        """Samples that the quota allows in one period; None when the licence sets none."""
        return None if self._quota is None else self._quota.samples

    def samples_left(self, now_s: float) -> int | None:
        """Return the samples neither used nor set aside in the current period; None without a quota."""
        if self._quota is None:
            return None
        with self._lock:
            self._roll(now_s)
            return max(0, self._quota.samples - self._used - self._reserved)

    def take_rate(self, samples: int, monotonic_s: float) -> None:
        """Take `samples` from the token bucket. Raises `Exhausted` `rate-limited`, and takes nothing, when it holds
        fewer.

        The bucket holds one second's worth, at least one largest batch, and is full at first. Tokens are not given back
        when the request fails later: a request that was cancelled has cost the node its time.
        """
        if self._rate is None:
            return
        if self._refilled_s is None:
            self._tokens = self._burst
        else:
            self._tokens = min(self._burst, self._tokens + (monotonic_s - self._refilled_s) * self._rate)
        self._refilled_s = monotonic_s
        if samples > self._tokens:
            wait_s = (samples - self._tokens) / self._rate
            raise Exhausted(
                f"the licence allows {self._rate} samples a second",
                reason="rate-limited",
                remedy=f"wait {wait_s:.2f} seconds",
            )
        self._tokens -= samples

    def reserve(self, samples: int, request_id: str, now_s: float) -> Reservation | None:
        """Set `samples` aside, or join the reservation in flight for the same id; None when the quota has no room."""
        with self._lock:
            held = self._in_flight.get(request_id)
            if held is not None and held.samples == samples:
                held.holders += 1
                return held
            if not self._has_room(samples, now_s):
                return None
            reservation = Reservation(request_id, samples)
            self._reserved += samples
            if held is None:
                self._in_flight[request_id] = reservation
            return reservation

    def charge(self, reservation: Reservation, now_s: float) -> None:
        """Turn a reservation into use in the current period; of several holders the first one counts."""
        with self._lock:
            if not reservation.charged:
                reservation.charged = True
                self._roll(now_s)
                self._reserved -= reservation.samples
                self._used += reservation.samples
            self._let_go(reservation)

    def release(self, reservation: Reservation) -> None:
        """Give a reservation back; it ends when its last holder lets go."""
        with self._lock:
            if reservation.holders == 1 and not reservation.charged:
                self._reserved -= reservation.samples
            self._let_go(reservation)

    def refusal(self) -> Exhausted:
        """Return the error for a quota without room."""
        quota = self._quota
        period = {"day": " a day", "month": " a month"}.get(quota.period, "") if quota else ""
        allowed = quota.samples if quota else 0
        return Exhausted(
            f"the licence's quota of {allowed} samples{period} is used up",
            reason="quota-exhausted",
            remedy="wait for the next period" if period else "ask the vendor for a licence with a larger quota",
        )

    def _has_room(self, samples: int, now_s: float) -> bool:
        if self._quota is None:
            return True
        self._roll(now_s)
        return self._used + self._reserved + samples <= self._quota.samples

    def _let_go(self, reservation: Reservation) -> None:
        reservation.holders -= 1
        if reservation.holders == 0 and self._in_flight.get(reservation.request_id) is reservation:
            del self._in_flight[reservation.request_id]

    def _period_start(self, now_s: float) -> int:
        return 0 if self._quota is None else period_start_us(self._quota.period, now_s)

    def _roll(self, now_s: float) -> None:
        if self._quota is None or self._quota.period == "total":
            return
        start_us = period_start_us(self._quota.period, now_s)
        # A clock that steps back must not open an earlier period's quota again.
        if start_us > self._period_us:
            self._period_us = start_us
            self._used = 0
