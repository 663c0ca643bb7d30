"""The tree of errors, shared by every room; each class says who must act.

    TesseraError
    ├── ApiMisuse            our caller's bug; deterministic; never caused by what a peer or a file sends
    ├── Malformed            bytes from a peer or a file that no writer of ours could have written
    │   └── InvalidTensor    … a tensor of a request; names the tensor
    ├── Refused              well-formed, and the answer is no; `reason` says why
    │   ├── Unauthenticated  who are you? (no session, bad proof, foreign licence)
    │   ├── Denied           we know you; this you may not (expired, revoked, wrong input key)
    │   ├── Exhausted        you may, but not more of it (quota, rate, seats, queue)
    │   ├── Conflict         contradicts what is already there (same request id, other payload)
    │   └── NotFound         no such model, licence, package
    ├── Tampered             a sealed package, licence or ledger fails its authentication
    ├── WrongKey             well-formed secret material that does not fit this lock; try the next key
    ├── SealedError          the store is sealed: give the master key first
    └── Unavailable          our side cannot answer now (draining, disk full); nothing was charged

`str(error)` says what happened, `error.remedy` what to do about it, `error.reason` is the machine-readable slug that is
the same in gRPC details, logs and metrics. None of the three ever holds a secret: they are sent to peers verbatim.
"""

from typing import ClassVar


class TesseraError(Exception):
    """Root of every error that Tessera raises on purpose.

    `public` is one sentence without secrets, fit to be shown to a peer. `reason` is a kebab-case slug from `REASONS`;
    when it is not given the class default is used. `remedy` says what the reader can do; may be empty.
    """

    default_reason: ClassVar[str] = "internal"

    def __init__(self, public: str, *, reason: str | None = None, remedy: str = "") -> None:
        super().__init__(public)
        self.public = public
        self.reason = reason if reason is not None else self.default_reason
        self.remedy = remedy


class ApiMisuse(TesseraError):
    """The calling code broke a rule of the API; fix the caller."""

    default_reason = "api-misuse"


class Malformed(TesseraError):
    """Bytes from a peer or a file that no writer of ours could have written."""

    default_reason = "malformed"


class InvalidTensor(Malformed):
    """A tensor of a request does not fit the model's contract; `tensor` names it."""

    default_reason = "invalid-tensor"

    def __init__(self, public: str, *, tensor: str, reason: str | None = None, remedy: str = "") -> None:
        super().__init__(public, reason=reason, remedy=remedy)
        self.tensor = tensor


class Refused(TesseraError):
    """Well-formed, understood, and the answer is no."""

    default_reason = "refused"


class Unauthenticated(Refused):
    """The caller has not shown who it is."""

    default_reason = "session-missing"


class Denied(Refused):
    """The caller is known and may not do this."""

    default_reason = "denied"


class Exhausted(Refused):
    """A quota, a rate, a seat count or a queue is used up."""

    default_reason = "exhausted"


class Conflict(Refused):
    """The request contradicts what is already recorded."""

    default_reason = "conflict"


class NotFound(Refused):
    """No such model, version, licence or package here."""

    default_reason = "not-found"


class Tampered(TesseraError):
    """A sealed or signed artefact fails its authentication, whichever byte was changed."""

    default_reason = "tampered"


class WrongKey(TesseraError):
    """Secret material that is well-formed and does not open this lock; a caller with several keys tries the next."""

    default_reason = "wrong-key"


class SealedError(TesseraError):
    """The store is sealed; every operation on secrets is refused until the master key is given."""

    default_reason = "store-sealed"


class Unavailable(TesseraError):
    """Our side cannot answer now; nothing was charged and the same request may be sent again."""

    default_reason = "unavailable"


REASONS: dict[str, str] = {
    "internal": "A fault of ours; nothing was charged.",
    "api-misuse": "The calling code broke a rule of the API.",
    "malformed": "Bytes that no writer of ours could have written.",
    "invalid-tensor": "A tensor does not fit the model's contract.",
    "message-too-large": "A message is larger than the server's limit.",
    "refused": "Refused.",
    "denied": "Not allowed.",
    "session-missing": "No session token was sent.",
    "session-unknown": "The session token is not known here, or its session has ended.",
    "session-expired": "The session has outlived its time to live and was not renewed.",
    "challenge-unknown": "The nonce is not ours, was used before, or is too old.",
    "bad-proof": "The signature over the challenge does not verify.",
    "licence-missing": "No licence was sent.",
    "licence-malformed": "The licence is not a well-formed Tessera licence.",
    "copyright-malformed": "The copyright record is not owner, buyer and licence in canonical form.",
    "licence-issuer-unknown": "The licence is not signed by an issuer that this node trusts.",
    "licence-not-yours": "The licence is bound to another buyer's key.",
    "licence-not-yet-valid": "The licence's start lies in the future.",
    "licence-expired": "The licence has expired.",
    "licence-revoked": "The licence has been revoked.",
    "licence-other-node": "The licence is for another node.",
    "licence-unknown": "No such licence is installed here.",
    "grant-missing": "The node holds no grant for this licence and none was sent.",
    "grant-mismatch": "The grant does not belong to this licence, package or node.",
    "wrong-input-key": "The input key is not the one that the licence names.",
    "clock-rolled-back": "The node's clock is behind a time it has already recorded.",
    "exhausted": "A limit is used up.",
    "quota-exhausted": "The licence's quota of samples is used up.",
    "rate-limited": "The licence's rate is exceeded.",
    "seats-full": "The licence's number of concurrent sessions is reached.",
    "sessions-full": "The node's number of sessions is reached.",
    "queue-full": "The model's queue is full.",
    "conflict": "Contradicts what is already recorded.",
    "request-id-conflict": "The request id was used before with another payload.",
    "not-found": "Not here.",
    "model-unknown": "The licence does not cover this model, or it is not published here.",
    "model-not-ready": "The model is published and not loaded.",
    "tier-unavailable": "The package has no such tier.",
    "tier-not-licensed": "The request asks for a tier above the licence's.",
    "issuer-absent": "This store holds no issuer key.",
    "tampered": "A sealed or signed artefact fails its authentication.",
    "package-tampered": "The sealed package fails its authentication.",
    "ledger-broken": "The usage ledger's hash chain does not verify.",
    "receipt-invalid": "The usage receipt does not verify.",
    "revocation-rollback": "The revocation list is older than the one in force.",
    "wrong-key": "Secret material that does not open this lock.",
    "key-file-exposed": "The key file can be read or written by others.",
    "wrong-passphrase": "The passphrase does not open this store or key file.",
    "store-sealed": "The store is sealed.",
    "already-initialised": "There is a key store here already.",
    "store-newer": "The key store was written by a newer release.",
    "not-initialised": "There is no key store here.",
    "unavailable": "Cannot answer now; nothing was charged.",
    "draining": "The server is shutting down; nothing was charged.",
    "ledger-unavailable": "Usage cannot be recorded now, so nothing is answered or charged.",
    "deadline-exceeded": "The deadline passed before an answer was ready; nothing was charged.",
    "cancelled": "The caller went away.",
    "transform-invalid": "The transform spec or its key cannot be used on this input.",
    "training-diverged": "The training loss is no number any more.",
    "not-lockable": "The network's first layer cannot take this transform in.",
    "extra-missing": "An optional library is not installed; the remedy names the extra.",
    "server-unverified": "The server could not prove who it is.",
    "unreachable": "The server cannot be reached.",
}
"""Every reason slug and its meaning; docs/reasons.md is generated from it and a test holds the raise sites to it."""
