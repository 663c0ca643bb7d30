"""The permit: proof that one request was admitted, and the handle that settles its reservation exactly once."""

from collections.abc import Callable

from tessera.keystore.errors import ApiMisuse
from tessera.server.admission.accounts import Reservation
from tessera.server.admission.sessions import Session


class Permit:
    """One admitted request. Whoever holds it calls `charge` or `release`, one of them, once; only a `Gate` makes one.

    `tier` is the tier to serve *this* request at; it differs from the session's first one when the licence has since
    entered a grace period with the policy `degrade`, or when the request asked for less.
    """

    __slots__ = ("_on_settled", "_reservation", "_settled", "request_id", "samples", "session", "tier")

    def __init__(
        self,
        session: Session,
        samples: int,
        request_id: str,
        reservation: Reservation | None,
        on_settled: Callable[["Permit", Reservation | None, bool], None],
        *,
        tier: int | None = None,
    ) -> None:
        self.session = session
        self.samples = samples
        self.tier = session.tier if tier is None else tier
        self.request_id = request_id
        self._reservation = reservation
        self._on_settled = on_settled
        self._settled = False

    @property
    def settled(self) -> bool:
        """Whether `charge` or `release` was called."""
        return self._settled

    @property
    def reserved(self) -> int:
        """Samples set aside for it; 0 when the ledger already holds its request id and the quota has no room."""
        return 0 if self._reservation is None else self._reservation.samples

    def charge(self) -> None:
        """Turn the reservation into use: the ledger now holds a fresh record. Raises `ApiMisuse` when settled
        before."""
        self._settle(charged=True)

    def release(self) -> None:
        """Give the reservation back: nothing was charged. Raises `ApiMisuse` when settled before."""
        self._settle(charged=False)

    def _settle(self, *, charged: bool) -> None:
        if self._settled:
            raise ApiMisuse("a permit is settled once")
        self._settled = True
        self._on_settled(self, self._reservation, charged)
