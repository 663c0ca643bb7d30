"""The gate: every decision about who may enter and who may run, on one reading of the clock each.

    nonce, until = gate.challenge()
    opening = gate.prepare(licence, grant, answer, confirmation)      # steps 1 to 11 of `opening`
    …                                                                 # load the package, install the grant: I/O, not
    ours session = gate.complete(opening, past_samples)                    # step 13 permit = gate.admit(token,
    "digits", "", samples=8, request_id=…) # each request permit.charge()
    # or permit.release()

Order of `admit` (rule W-19): open for business → session → model → clock → revocation → standing → rate → quota. All
methods but the settling of permits belong to the event loop's thread.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from tessera.keystore.errors import Denied, Malformed, NotFound, SealedError, Unavailable
from tessera.keystore.grant import Grant, NodeKeys
from tessera.keystore.licence import Licence
from tessera.server.admission.accounts import Account, Reservation, period_start_us
from tessera.server.admission.challenges import Challenges
from tessera.server.admission.opening import Answer, Desk, Opening, tier_and_notice
from tessera.server.admission.permits import Permit
from tessera.server.admission.ports import ModelDirectory, UsageView
from tessera.server.admission.sessions import Session, Sessions
from tessera.server.clock import Clock
from tessera.server.config import Limits


class Gate:
    """Sessions, accounts and challenges of one node. See the module for the order of its checks."""

    def __init__(
        self,
        clock: Clock,
        limits: Limits,
        *,
        node_id: str,
        issuers: Callable[[], Mapping[str, bytes]],
        models: ModelDirectory,
        ledger: UsageView,
        revoked: Callable[[], Mapping[tuple[str, str], str]],
        open_grant: Callable[[Grant], NodeKeys],
        installed: Callable[[str], Sequence[Grant]],
        sealed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._clock = clock
        self._limits = limits
        self._ledger = ledger
        self._models = models
        self._sealed = sealed
        self._draining = False
        self._newest_s = 0.0
        self._accounts: dict[str, Account] = {}
        self._outstanding: set[Permit] = set()
        self._sessions = Sessions(max_sessions=limits.max_sessions)
        self._challenges = Challenges(ttl_s=limits.challenge_ttl_s, max_remembered=limits.max_challenges)
        self._desk = Desk(
            node_id=node_id,
            issuers=issuers,
            models=models,
            revoked=revoked,
            open_grant=open_grant,
            installed=installed,
            challenges=self._challenges,
            max_licence_bytes=limits.max_licence_bytes,
        )

    @property
    def session_count(self) -> int:
        """Live sessions; those in the table that have expired and were not met since do not count. Any thread."""
        return self._sessions.live(self._clock.monotonic_s())

    @property
    def outstanding(self) -> int:
        """Permits that are neither charged nor released."""
        return len(self._outstanding)

    @property
    def draining(self) -> bool:
        """Whether `drain` was called."""
        return self._draining

    def drain(self) -> None:
        """Refuse every new challenge, session and request from now on with `Unavailable` `draining`."""
        self._draining = True

    def challenge(self) -> tuple[bytes, float]:
        """Return a nonce and the Unix time in seconds after which it is refused."""
        self._guard()
        nonce = self._challenges.issue(self._clock.monotonic_s())
        return nonce, self._clock.now_s() + self._limits.challenge_ttl_s

    def prepare(self, licence_token: str, grant_token: str, answer: Answer, confirmation: bytes) -> Opening:
        """Return the opening that has passed steps 1 to 11; the nonce is spent from step 4 on, whatever follows.

        Raises the errors of the module `opening`, `SealedError` and `Unavailable` `draining`.
        """
        self._guard()
        now_s = self._clock.now_s()
        licence = self._desk.prove(licence_token, "open-session", answer, self._clock.monotonic_s())
        self._check_clock(now_s, self._ledger.clock_mark_us() / 1_000_000)
        tier, notice = tier_and_notice(licence, now_s)
        grant, offer, keys, install = self._desk.choose_package(licence, grant_token, confirmation, answer.nonce, tier)
        return Opening(
            licence=licence,
            grant=grant,
            offer=offer,
            keys=keys,
            tier=tier,
            notice=notice,
            install=install,
            needs_load=self._models.state(offer.package_id) in ("published", "loading", "ready")
            and not self._models.serves(offer.package_id, tier),
        )

    def past_samples(self, opening: Opening) -> int:
        """Return what the ledger has charged to the licence in its quota period. Reads the ledger; any thread may
        ask."""
        licence = opening.licence
        if licence.terms.quota is None or licence.licence_id in self._accounts:
            return 0
        since_us = period_start_us(licence.terms.quota.period, self._clock.now_s())
        return self._ledger.samples_used(licence.licence_id, since_us)

    def complete(self, opening: Opening, past_samples: int) -> Session:
        """Return a new session. Raises `Unavailable` `model-not-ready`, `Exhausted` `seats-full` or `sessions-full`.

        `past_samples` only counts when the licence has no account yet; from then on the account keeps itself.
        """
        self._guard()
        now_s, monotonic_s = self._clock.now_s(), self._clock.monotonic_s()
        licence, offer = opening.licence, opening.offer
        if self._models.state(offer.package_id) != "ready" or not self._models.serves(offer.package_id, opening.tier):
            raise Unavailable(
                f"model {offer.model} version {offer.version} is not loaded",
                reason="model-not-ready",
                remedy="ask the operator to load it",
            )
        self._sessions.check_seats(licence, monotonic_s)
        account = self._accounts.get(licence.licence_id)
        if account is None:
            account = Account(
                licence.licence_id, licence.terms, used=past_samples, max_batch=offer.max_batch, now_s=now_s
            )
            self._accounts[licence.licence_id] = account
        else:
            account.adopt(licence.terms, max_batch=offer.max_batch)
        token = self._sessions.new_token()
        ttl_s = self._ttl_s(licence, now_s)
        session = Session(
            session_id=self._sessions.new_id(),
            token=token,
            licence=licence,
            offer=offer,
            tier=opening.tier,
            account=account,
            expires_at_s=now_s + ttl_s,
            until_s=monotonic_s + ttl_s,
            notice=opening.notice,
        )
        self._sessions.add(session)
        return session

    def open_session(
        self,
        licence_token: str,
        grant_token: str,
        nonce: bytes,
        buyer_public_key: bytes,
        signature: bytes,
        confirmation: bytes,
    ) -> Session:
        """`prepare` and `complete` in one, for a package that is loaded already."""
        opening = self.prepare(licence_token, grant_token, Answer(nonce, buyer_public_key, signature), confirmation)
        return self.complete(opening, self.past_samples(opening))

    def fetch_grant(self, licence_token: str, answer: Answer) -> Licence:
        """Return the licence whose buyer asks for its grant, after steps 1 to 6 for the purpose `fetch-grant`."""
        self._guard()
        return self._desk.prove(licence_token, "fetch-grant", answer, self._clock.monotonic_s())

    def renew(self, token: str | None, answer: Answer) -> Session:
        """Extend the session of `token` by a fresh proof, steps 3 to 8 (rule W-17); the token stays.

        A token alone therefore dies with its time to live.
        """
        self._guard()
        now_s, monotonic_s = self._clock.now_s(), self._clock.monotonic_s()
        session = self._sessions.find(token, monotonic_s)
        self._desk.check_answer(session.licence, "renew-session", answer, monotonic_s)
        self._check_live(session, now_s)
        ttl_s = self._ttl_s(session.licence, now_s)
        session.expires_at_s, session.until_s = now_s + ttl_s, monotonic_s + ttl_s
        return session

    def close(self, token: str | None) -> None:
        """End the session of `token` and free its seat. Raises `Unauthenticated` when there is none."""
        self._sessions.remove(self._sessions.find(token, self._clock.monotonic_s()))

    def session(self, token: str | None) -> Session:
        """Return the live session of `token`. Raises `Unauthenticated`, `SealedError` or `Unavailable` `draining`."""
        self._guard()
        return self._sessions.find(token, self._clock.monotonic_s())

    def admit(
        self, token: str | None, model: str, version: str, samples: int, request_id: str, *, tier: int | None = None
    ) -> Permit:
        """Return the permit of one request, in the order of rule W-19. `version` "" means the session's own, `tier`
        None what the licence gives now.

        Raises the `Refused` family; then nothing is reserved.
        """
        self._guard()
        now_s, monotonic_s = self._clock.now_s(), self._clock.monotonic_s()
        session = self._sessions.find(token, monotonic_s)
        if samples < 1:
            raise Malformed("a request holds at least one sample")
        self._check_model(session, model, version)
        self._check_live(session, now_s)
        served = session.tier if tier is None else _check_tier(session, tier)
        account = session.account
        account.take_rate(samples, monotonic_s)
        reservation = account.reserve(samples, request_id, now_s)
        if reservation is None and self._ledger.find_usage(session.licence.licence_id, request_id) is None:
            raise account.refusal()
        permit = Permit(session, samples, request_id, reservation, self._settle, tier=served)
        self._outstanding.add(permit)
        return permit

    def drop(self, session: Session) -> None:
        """End a session that its buyer was never told of, and free its seat."""
        self._sessions.remove(session)

    def drop_licences(self, named: Iterable[tuple[str, str]]) -> int:
        """Close every session of these licences, named by issuer id and licence id; return how many."""
        return self._sessions.remove_licences(named)

    def drop_all(self) -> int:
        """Close every session, for sealing; return how many. Accounts stay: what is in flight still settles."""
        return self._sessions.clear()

    def samples_left(self, session: Session) -> int | None:
        """Return what the session's licence has left in its quota period; None when it sets no quota."""
        return session.account.samples_left(self._clock.now_s())

    def _guard(self) -> None:
        if self._sealed():
            raise SealedError("the store is sealed", remedy="ask the operator to unseal it")
        if self._draining:
            raise Unavailable("the server is shutting down", reason="draining", remedy="try again, or another node")

    def _check_model(self, session: Session, model: str, version: str) -> None:
        if model != session.model or (version and version != str(session.version)):
            raise NotFound(
                "the session is for another model or version",
                reason="model-unknown",
                remedy="name the model that the session's contract names, or open a session with another licence",
            )

    def _check_live(self, session: Session, now_s: float) -> None:
        """Judge the licence again: it may have been revoked or have run out since the session was opened."""
        self._check_clock(now_s, 0.0)
        self._desk.check_revocation(session.licence)
        tier, notice = tier_and_notice(session.licence, now_s)
        if tier != session.tier:
            if tier not in session.offer.tiers:
                raise Denied(f"the package has no tier {tier}", reason="tier-unavailable")
            session.tier = tier
        session.notice = notice

    def _check_clock(self, now_s: float, mark_s: float) -> None:
        if now_s < max(mark_s, self._newest_s) - self._limits.clock_tolerance_s:
            raise Unavailable(
                "the node's clock is behind a time it has already recorded, so licences cannot be judged",
                reason="clock-rolled-back",
                remedy="ask the operator to set the clock",
            )
        self._newest_s = max(self._newest_s, now_s)

    def _ttl_s(self, licence: Licence, now_s: float) -> float:
        """Seconds until the session's end, never past the end of the licence's grace period (rule W-16)."""
        end_s = licence.expires_at_s + licence.terms.expiry.grace_s
        return max(0.0, min(self._limits.session_ttl_s, end_s - now_s))

    def _settle(self, permit: Permit, reservation: Reservation | None, charged: bool) -> None:
        self._outstanding.discard(permit)
        if reservation is None:
            return
        account = permit.session.account
        if charged:
            account.charge(reservation, self._clock.now_s())
        else:
            account.release(reservation)


def _check_tier(session: Session, tier: int) -> int:
    """Return the tier that a request asks for: one that the package has, at or below what the licence gives now."""
    if tier > session.tier:
        raise Denied(
            f"the licence is served at tier {session.tier}, not above",
            reason="tier-not-licensed",
            remedy="leave the tier out, or ask the vendor for a licence for a higher one",
        )
    if tier not in session.offer.tiers:
        raise Denied(f"the package has no tier {tier}", reason="tier-unavailable")
    return tier
