"""Challenges: nonces that are ours, young, and good once (rule W-10).

A nonce carries its own expiry and a MAC under a key of this process, so handing one out costs no memory and a flood of
requests for challenges pushes nobody out. Only nonces that were *answered* are remembered, until they would have
expired anyway; whoever answers checks the signature between `check` and `redeem`, so that only holders of a buyer's key
fill that memory.

    nonce = expiry, monotonic microseconds (8 bytes, big-endian) ‖ random (8 bytes) ‖ first 16 bytes of HMAC-SHA256
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable

from tessera.keystore.errors import Exhausted, Unauthenticated

NONCE_BYTES = 32
_BODY_BYTES = 16
_MICROSECONDS = 1_000_000


class Challenges:
    """Issues nonces and takes each back at most once; every method is told the monotonic time."""

    def __init__(
        self, *, ttl_s: float, max_remembered: int, random_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._ttl_us = int(ttl_s * _MICROSECONDS)
        self._max_remembered = max_remembered
        self._random_bytes = random_bytes
        self._key = random_bytes(32)
        self._answered: dict[bytes, int] = {}

    def issue(self, monotonic_s: float) -> bytes:
        """Return a fresh 32-byte nonce, good until `ttl_s` from now."""
        expiry_us = int(monotonic_s * _MICROSECONDS) + self._ttl_us
        body = expiry_us.to_bytes(8, "big") + self._random_bytes(8)
        return body + self._mac(body)

    def check(self, nonce: bytes, monotonic_s: float) -> None:
        """Return when a nonce could be redeemed now. Raises `Unauthenticated` `challenge-unknown` unless it is ours,
        young and unused.
        """
        now_us = int(monotonic_s * _MICROSECONDS)
        body = nonce[:_BODY_BYTES]
        ours = len(nonce) == NONCE_BYTES and hmac.compare_digest(nonce[_BODY_BYTES:], self._mac(body))
        expiry_us = int.from_bytes(body[:8], "big")
        if not ours or now_us >= expiry_us or nonce in self._answered:
            raise Unauthenticated(
                "the challenge is not known here, was answered before or is too old",
                reason="challenge-unknown",
                remedy="ask for a new challenge and answer it at once",
            )

    def redeem(self, nonce: bytes, monotonic_s: float) -> None:
        """Take a nonce back. Raises as `check`, and `Exhausted` `sessions-full` when no more can be remembered."""
        self.check(nonce, monotonic_s)
        now_us, expiry_us = int(monotonic_s * _MICROSECONDS), int.from_bytes(nonce[:8], "big")
        if len(self._answered) >= self._max_remembered:
            self._answered = {old: until_us for old, until_us in self._answered.items() if until_us > now_us}
        if len(self._answered) >= self._max_remembered:
            # Forgetting one that is still young would make it good twice.
            raise Exhausted(
                "too many sessions are being opened at once", reason="sessions-full", remedy="try again in a minute"
            )
        self._answered[nonce] = expiry_us

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)[:_BODY_BYTES]
