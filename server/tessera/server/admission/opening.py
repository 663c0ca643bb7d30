"""The checks of a licence that is shown to us, in their fixed order (rule W-11).

     1. form          every field has its shape and stays under its limit    malformed, licence-missing
     2. issuer        the licence is signed by an issuer this node trusts    licence-malformed, licence-issuer-unknown
     3. challenge     the nonce is ours, young and unused                    challenge-unknown
     4. possession    the buyer's key of `cnf.jkt` signed it for this use    licence-not-yours, bad-proof
                      the nonce is spent now                                 sessions-full
     5. node          the licence is for any node, or for this one           licence-other-node
     6. revocation    its id is not on a list in force                       licence-revoked
     7. clock         our clock is not behind what the ledger has seen       clock-rolled-back
     8. standing      valid, or in its grace period                          licence-not-yet-valid, licence-expired
     9. model         a covered version is published here                    model-unknown, tier-unavailable
    10. grant         sent or installed; its keys open for this node         grant-missing, grant-mismatch
    11. input key     the client holds the key that the licence names        wrong-input-key
    12. loading       the package is decrypted if only its key was missing   model-not-ready
    13. seats         the licence and the node have one left                 seats-full, sessions-full

Steps 1 to 8 are `Desk.admit_proof`, 9 to 11 are `Desk.choose_package`; 12 is done by the caller, off the event loop,
and 13 by the gate. Nothing is charged at any step. Who is asking comes before what they may do, so that a stolen
licence learns nothing about its standing; and standing before keys, so that a wrong key never hides an expired licence.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore import proof as proofs
from tessera.keystore.errors import Denied, Malformed, NotFound, Tampered, Unauthenticated, WrongKey
from tessera.keystore.grant import Grant, NodeKeys
from tessera.keystore.licence import Licence, Standing
from tessera.server.admission.challenges import Challenges
from tessera.server.admission.ports import ModelDirectory, Offer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tessera.keystore.proof import Purpose

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Answer:
    """A buyer's answer to a challenge, as it came."""

    nonce: bytes
    public_key: bytes
    signature: bytes


@dataclass(frozen=True)
class Opening:
    """A session that has passed steps 1 to 11. Made by `Gate.prepare` only; `Gate.complete` turns it into a session."""

    licence: Licence
    grant: Grant
    """The grant that counts, sent or installed."""
    offer: Offer
    """The package it runs."""
    keys: NodeKeys = field(repr=False)
    """What the grant's boxes held for this node."""
    tier: int
    notice: str
    install: bool
    """Whether the grant is news to this node and is to be installed, so that `FetchGrant` finds it."""
    needs_load: bool
    """Whether the package waits for exactly this content key."""


class Desk:
    """Steps 1 to 11, each a method of its own; knows nothing of sessions."""

    def __init__(
        self,
        *,
        node_id: str,
        issuers: Callable[[], Mapping[str, bytes]],
        models: ModelDirectory,
        revoked: Callable[[], Mapping[tuple[str, str], str]],
        open_grant: Callable[[Grant], NodeKeys],
        installed: Callable[[str], Sequence[Grant]],
        challenges: Challenges,
        max_licence_bytes: int,
    ) -> None:
        self._node_id = node_id
        self._issuers = issuers
        self._models = models
        self._revoked = revoked
        self._open_grant = open_grant
        self._installed = installed
        self._challenges = challenges
        self._max_licence_bytes = max_licence_bytes

    def prove(self, licence_token: str, purpose: "Purpose", answer: Answer, monotonic_s: float) -> Licence:
        """Steps 1 to 6: return the verified licence of a buyer who proved to be its own."""
        self._check_form(licence_token, answer)
        licence = self.verify_licence(licence_token)
        self.check_answer(licence, purpose, answer, monotonic_s)
        if licence.node_id is not None and licence.node_id != self._node_id:
            raise Denied("the licence is for another node", reason="licence-other-node")
        self.check_revocation(licence)
        return licence

    def verify_licence(self, token: str) -> Licence:
        """Step 2. A bad signature is the peer's failure to authenticate, not damage to anything of ours."""
        with blaming_the_peer():
            return licences.verify(token, self._issuers())

    def check_answer(self, licence: Licence, purpose: "Purpose", answer: Answer, monotonic_s: float) -> None:
        """Steps 3 and 4: know the nonce, check the signature over it, then spend it.

        A wrong signature spends nothing: it is nobody's, and licences are no secret, so anyone who has seen one could
        use up the memory for nonces and keep every buyer out.
        """
        self._challenges.check(answer.nonce, monotonic_s)
        proofs.check_proof(
            answer.public_key,
            answer.signature,
            purpose,
            answer.nonce,
            self._node_id,
            licence.digest,
            expected_buyer_id=licence.buyer_id,
        )
        self._challenges.redeem(answer.nonce, monotonic_s)

    def check_revocation(self, licence: Licence) -> None:
        """Step 6. Raises `Denied` `licence-revoked`."""
        if (licence.issuer_id, licence.licence_id) in self._revoked():
            raise Denied(
                "the licence has been revoked", reason="licence-revoked", remedy="ask the vendor for a new one"
            )

    def choose_package(
        self, licence: Licence, grant_token: str, confirmation: bytes, nonce: bytes, tier: int
    ) -> tuple[Grant, Offer, NodeKeys, bool]:
        """Steps 9 to 11: return grant, package, keys, and whether the grant was sent and is none of the installed.

        Of the sent and the installed grants the one for the newest covered package counts, one that can run before one
        that cannot, an installed one before one that was sent.
        """
        # One vendor must not license another's model, however many vendors this node trusts.
        offers = [
            offer
            for offer in self._models.offers(licence.terms.model)
            if licence.covers(offer.model, offer.version) and offer.issuer_id == licence.issuer_id
        ]
        if not offers:
            raise NotFound("no model that the licence covers is published here", reason="model-unknown")
        sent = self._verify_grant(grant_token, licence) if grant_token else None
        installed = self._installed(licence.licence_id)
        if sent is None and not installed:
            raise NotFound(
                "this node holds no grant for the licence and none was sent",
                reason="grant-missing",
                remedy="send the grant that came with the licence, or have the operator install it",
            )
        grant, offer = self._pick(offers, [*installed, *([] if sent is None else [sent])], licence)
        if tier not in offer.tiers:
            raise Denied(f"the package has no tier {tier}", reason="tier-unavailable")
        keys = self._open(grant)
        if offer.tier_keys and keys.tier_key is None:
            _mismatch()
        self._confirm_input_key(licence, offer, keys, confirmation, nonce)
        return grant, offer, keys, grant is sent

    def _check_form(self, licence_token: str, answer: Answer) -> None:
        if not licence_token:
            raise Unauthenticated("no licence was sent", reason="licence-missing", remedy="send the licence")
        if len(licence_token) > self._max_licence_bytes:
            raise Malformed(f"a licence has at most {self._max_licence_bytes} bytes", reason="licence-malformed")
        if len(answer.public_key) != PUBLIC_KEY_BYTES or len(answer.signature) != SIGNATURE_BYTES:
            raise Malformed("a proof holds a 32-byte public key and a 64-byte signature")

    def _verify_grant(self, token: str, licence: Licence) -> Grant:
        if len(token) > self._max_licence_bytes:
            raise Malformed(f"a grant has at most {self._max_licence_bytes} bytes")
        with blaming_the_peer():
            return grants.verify(token, licence, self._issuers())

    def _pick(self, offers: list[Offer], candidates: list[Grant], licence: Licence) -> tuple[Grant, Offer]:
        by_id = {offer.package_id: offer for offer in offers}
        matches = [(by_id[g.package_id], g) for g in candidates if g.package_id in by_id]
        # An installed grant was verified when it came in, against a licence that may have been issued anew since.
        matches = [(offer, g) for offer, g in matches if g.licence_digest == licence.digest]
        if not matches:
            raise Denied("the grant is for a package that the licence does not cover here", reason="grant-mismatch")

        def rank(match: tuple[Offer, Grant]) -> tuple[bool, int]:
            return self._models.state(match[0].package_id) in ("ready", "published", "loading"), match[0].version

        offer, grant = max(matches, key=rank)
        return grant, offer

    def _open(self, grant: Grant) -> NodeKeys:
        if grant.node_id != self._node_id:
            raise Denied("the grant is sealed to another node", reason="grant-mismatch")
        try:
            return self._open_grant(grant)
        except WrongKey:
            _mismatch()

    def _confirm_input_key(
        self, licence: Licence, offer: Offer, keys: NodeKeys, confirmation: bytes, nonce: bytes
    ) -> None:
        known = offer.input_key_ids or {offer.input_key_id}
        if licence.terms.input_key_id not in known:
            raise Denied(
                "the licence and the package name different input keys",
                reason="grant-mismatch",
                remedy="ask the vendor for a licence of this package, or for a package that was trained for this buyer",
            )
        if licence.terms.input_key_id is None:
            return
        if keys.confirmation_key is None:
            _mismatch()
        proofs.check_confirmation(keys.confirmation_key, confirmation, nonce, self._node_id, licence.digest)


@contextmanager
def blaming_the_peer() -> "Iterator[None]":
    """Turn `Tampered` into `Unauthenticated`: what a peer shows us is its claim, not an artefact of ours (rule W-8)."""
    try:
        yield
    except Tampered as error:
        raise Unauthenticated(error.public, reason=error.reason, remedy=error.remedy) from error


def tier_and_notice(licence: Licence, now_s: float) -> tuple[int, str]:
    """Return the tier to serve at and the notice to show, by the licence's standing (step 8; rule W-14).

    Raises `Denied` `licence-not-yet-valid` or `licence-expired`; `now >= exp` is already expired or in grace.
    """
    terms = licence.terms
    match licences.standing(licence, now_s):
        case Standing.VALID:
            return terms.tier, ""
        case Standing.GRACE if terms.expiry.action == "degrade" and terms.expiry.tier is not None:
            return terms.expiry.tier, f"the licence has expired; served at tier {terms.expiry.tier} in its grace period"
        case Standing.GRACE:
            return terms.tier, "the licence has expired; served in its grace period"
        case Standing.NOT_YET:
            raise Denied("the licence's start lies in the future", reason="licence-not-yet-valid")
        case _:
            raise Denied(
                "the licence has expired", reason="licence-expired", remedy="ask the vendor for a licence that runs on"
            )


def _mismatch() -> NoReturn:
    raise Denied("the grant's keys do not open for this node and package", reason="grant-mismatch")
