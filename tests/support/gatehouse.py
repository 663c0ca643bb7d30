"""A gate with everything it asks for held in memory, and a buyer who answers its challenges."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from support import keys
from support.clock import ManualClock
from support.ledger import MemoryLedger
from tessera.keystore import grant as grants
from tessera.keystore import proof as proofs
from tessera.keystore.grant import Grant, PackageSecrets
from tessera.keystore.identity import Identity
from tessera.keystore.licence import Licence, Terms
from tessera.keystore.proof import Purpose
from tessera.keystore.secrets import InputKey
from tessera.server.admission import Gate, Offer, Opening, Permit, Session
from tessera.server.admission.opening import Answer
from tessera.server.admission.ports import ModelState
from tessera.server.config import Limits


def offer(version: int = 1, *, package_id: str = keys.PACKAGE_ID, keyed: bool = True, **changes: object) -> Offer:
    """Return a published package of the model `digits` by `keys.ISSUER`."""
    given: dict[str, object] = {
        "package_id": package_id,
        "issuer_id": keys.ISSUER.key_id,
        "model": "digits",
        "version": version,
        "tiers": frozenset({1, 2}),
        "input_key_id": proofs.input_key_id(keys.INPUT_KEY) if keyed else None,
        "max_batch": 16,
    }
    return Offer(**(given | changes))  # type: ignore[arg-type]


class Shelf:
    """The published packages; a `ModelDirectory` whose states the test sets."""

    def __init__(self, *offers: Offer) -> None:
        self.published = {entry.package_id: entry for entry in offers}
        self.states: dict[str, ModelState] = dict.fromkeys(self.published, "ready")
        self.missing: set[tuple[str, int]] = set()

    def offers(self, model: str) -> Sequence[Offer]:
        """Return the packages of this name, newest first."""
        found = [entry for entry in self.published.values() if entry.model == model]
        return sorted(found, key=lambda entry: -entry.version)

    def state(self, package_id: str) -> ModelState:
        """Return what the test has set."""
        return self.states[package_id]

    def serves(self, package_id: str, tier: int) -> bool:
        """Return whether the package is ready at this tier; at every one unless the test has said otherwise."""
        return self.states[package_id] == "ready" and (package_id, tier) not in self.missing


@dataclass
class Gatehouse:
    """A gate, its surroundings, and what a buyer does before it."""

    shelf: Shelf = field(default_factory=lambda: Shelf(offer()))
    limits: Limits = field(default_factory=Limits)
    clock: ManualClock = field(default_factory=ManualClock)
    ledger: MemoryLedger = field(default_factory=lambda: MemoryLedger(keys.NODE.key_id))
    revoked: dict[tuple[str, str], str] = field(default_factory=dict)
    installed: list[Grant] = field(default_factory=list)
    sealed: bool = False

    def __post_init__(self) -> None:
        self.gate = Gate(
            self.clock,
            self.limits,
            node_id=keys.NODE.key_id,
            issuers=lambda: keys.ISSUERS,
            models=self.shelf,
            ledger=self.ledger,
            revoked=lambda: self.revoked,
            open_grant=lambda grant: grants.open_for_node(grant, keys.NODE),
            installed=lambda _: self.installed,
            sealed=lambda: self.sealed,
        )

    def answer(self, licence: Licence, purpose: Purpose = "open-session", *, buyer: Identity = keys.BUYER) -> Answer:
        """Ask for a challenge and sign it."""
        nonce, _ = self.gate.challenge()
        signature = proofs.sign_proof(buyer, purpose, nonce, keys.NODE.key_id, licence.digest)
        return Answer(nonce, buyer.public.verify_key, signature)

    def prepare(
        self,
        licence: Licence,
        grant: Grant | None = None,
        *,
        answer: Answer | None = None,
        key: InputKey | None = keys.INPUT_KEY,
        send_grant: bool = True,
    ) -> Opening:
        """Go through steps 1 to 11 with a licence, its grant (a fresh one unless given) and an input key."""
        answer = answer or self.answer(licence)
        confirmation = b""
        if key is not None:
            confirmation = proofs.confirm(proofs.confirmation_key(key), answer.nonce, keys.NODE.key_id, licence.digest)
        token = (grant or keys.grant(licence)).token if send_grant else ""
        return self.gate.prepare(licence.token, token, answer, confirmation)

    def open(self, licence: Licence | None = None, **how: object) -> Session:
        """Open a session under a licence, `keys.licence()` unless given."""
        opening = self.prepare(licence or keys.licence(), **how)  # type: ignore[arg-type]
        return self.gate.complete(opening, self.gate.past_samples(opening))

    def admit(self, session: Session, samples: int = 1, request_id: str = "r-1") -> Permit:
        """Ask to run a request in a session."""
        return self.gate.admit(session.token.reveal().decode("ascii"), "digits", "", samples, request_id)


def plain_licence(**terms: object) -> Licence:
    """Return a licence `lic-1` for `digits` with plain inputs and these terms."""
    return keys.licence(Terms("digits", **terms))  # type: ignore[arg-type]


def plain_grant(licence: Licence, package_id: str = keys.PACKAGE_ID) -> Grant:
    """Return its grant."""
    return keys.grant(licence, secrets=PackageSecrets(package_id, keys.CONTENT_KEY, None))
