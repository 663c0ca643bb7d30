"""Sessions: a bearer token for a proven licence, with seats per licence and a cap per node (rules W-15 to W-18).

The token itself is not stored; sessions are found by its SHA-256, so neither a look-up's timing nor a dump of the table
gives a token away. Time to live runs on the monotonic clock.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tessera.keystore.errors import Exhausted, Unauthenticated
from tessera.keystore.jws import b64u
from tessera.keystore.licence import Licence
from tessera.keystore.secrets import SecretBytes
from tessera.server.admission.accounts import Account
from tessera.server.admission.ports import Offer

TOKEN_BYTES = 32
SESSION_ID_BYTES = 8
MAX_TOKEN_CHARS = 64


class SessionToken(SecretBytes):
    """A bearer token in ASCII; refuses to be printed."""

    __slots__ = ()


@dataclass(eq=False)
class Session:
    """One buyer's access to one package. `tier`, `notice` and the two ends change over its life; the rest does not."""

    session_id: str
    """Names the session in logs and usage records; not secret, and opens nothing."""
    token: SessionToken = field(repr=False)
    """The bearer token."""
    licence: Licence = field(repr=False)
    """The verified licence."""
    offer: Offer
    """The package it runs."""
    tier: int
    """Tier to serve at now."""
    account: Account = field(repr=False)
    """Quota and rate, shared by all sessions of the licence."""
    expires_at_s: float
    """Unix time of its end, for showing."""
    until_s: float
    """Monotonic time of its end, for judging."""
    notice: str = ""
    """Non-empty in the licence's grace period."""

    @property
    def model(self) -> str:
        """Model name."""
        return self.offer.model

    @property
    def version(self) -> int:
        """Model version."""
        return self.offer.version

    @property
    def package_id(self) -> str:
        """Package id."""
        return self.offer.package_id


class Sessions:
    """The table of live sessions."""

    def __init__(self, *, max_sessions: int, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._max_sessions = max_sessions
        self._random_bytes = random_bytes
        self._by_digest: dict[bytes, Session] = {}
        self._by_licence: dict[str, dict[bytes, Session]] = {}

    def __len__(self) -> int:
        return len(self._by_digest)

    def live(self, monotonic_s: float) -> int:
        """Return how many sessions have not expired; any thread may ask."""
        return sum(monotonic_s < session.until_s for session in list(self._by_digest.values()))

    def new_token(self) -> SessionToken:
        """Return a fresh token: 32 random bytes in base64url."""
        return SessionToken(b64u(self._random_bytes(TOKEN_BYTES)).encode("ascii"))

    def new_id(self) -> str:
        """Return a fresh session id, 16 hexadecimal digits."""
        return self._random_bytes(SESSION_ID_BYTES).hex()

    def check_seats(self, licence: Licence, monotonic_s: float) -> None:
        """Raise `Exhausted` when the licence's seats or the node's table are full, after sweeping out the expired."""
        mine = self._by_licence.get(licence.licence_id, {})
        if len(mine) >= licence.terms.sessions:
            self._sweep(list(mine.values()), monotonic_s)
            if len(self._by_licence.get(licence.licence_id, {})) >= licence.terms.sessions:
                raise Exhausted(
                    f"the licence allows {licence.terms.sessions} sessions at a time",
                    reason="seats-full",
                    remedy="close a session, or wait until one expires",
                )
        if len(self._by_digest) >= self._max_sessions:
            self._sweep(list(self._by_digest.values()), monotonic_s)
            if len(self._by_digest) >= self._max_sessions:
                raise Exhausted("this node's sessions are all taken", reason="sessions-full", remedy="try again later")

    def add(self, session: Session) -> None:
        """Enter a session; `check_seats` has been asked in the same breath."""
        digest = _digest(session.token.reveal())
        self._by_digest[digest] = session
        self._by_licence.setdefault(session.licence.licence_id, {})[digest] = session

    def find(self, token: str | None, monotonic_s: float) -> Session:
        """Return the live session of a token.

        Raises `Unauthenticated` `session-missing`, `session-unknown` or `session-expired`; an expired one is forgotten.
        """
        if not token:
            raise Unauthenticated(
                "no session token was sent",
                reason="session-missing",
                remedy="open a session and send its token as `authorization: Bearer TOKEN`",
            )
        session = self._by_digest.get(_token_digest(token)) if len(token) <= MAX_TOKEN_CHARS else None
        if session is None:
            raise Unauthenticated(
                "the session token is not known here", reason="session-unknown", remedy="open a new session"
            )
        if monotonic_s >= session.until_s:
            self.remove(session)
            raise Unauthenticated("the session has expired", reason="session-expired", remedy="open a new session")
        return session

    def remove(self, session: Session) -> bool:
        """Forget a session and free its seat; False when it was not here."""
        digest = _digest(session.token.reveal())
        if self._by_digest.pop(digest, None) is None:
            return False
        seats = self._by_licence[session.licence.licence_id]
        del seats[digest]
        if not seats:
            del self._by_licence[session.licence.licence_id]
        return True

    def remove_licences(self, named: Iterable[tuple[str, str]]) -> int:
        """Forget every session of these licences, named by issuer id and licence id; return how many."""
        doomed = [
            session
            for issuer_id, licence_id in named
            for session in self._by_licence.get(licence_id, {}).values()
            if session.licence.issuer_id == issuer_id
        ]
        return sum(self.remove(session) for session in doomed)

    def clear(self) -> int:
        """Forget every session; return how many."""
        count = len(self._by_digest)
        self._by_digest.clear()
        self._by_licence.clear()
        return count

    def _sweep(self, candidates: list[Session], monotonic_s: float) -> None:
        for session in candidates:
            if monotonic_s >= session.until_s:
                self.remove(session)


def _token_digest(token: str) -> bytes:
    return _digest(token.encode("utf-8", "surrogatepass"))


def _digest(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()
