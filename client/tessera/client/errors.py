"""What can go wrong for a buyer's program: one class wherever a caller would act differently.

    ClientError                      every refusal and failure that comes out of a call
    ├── Unreachable                  nothing answers at that address; try later, check the address
    ├── ServerUnverified             something answers and cannot prove to be the right server; do not go on
    ├── ServerUnavailable            the server cannot answer now (starting, draining, sealed); nothing was charged
    │   └── ServerBusy               … because its queue or its session table is full
    ├── DeadlineExceeded             no answer in time; the same request id may be sent again without a second charge
    ├── Cancelled                    the call was cancelled on this side or by a proxy
    ├── ServerFault                  a fault of the server's; nothing was charged
    ├── ProtocolError                an answer that no Tessera server writes
    ├── InvalidRequest               the request does not fit the model; fix the request
    │   ├── InvalidTensor            … one tensor of it, named by `tensor`
    │   └── MessageTooLarge          … it is larger than the server's limit
    ├── SessionError                 the session does not hold; the client opens another by itself once
    │   ├── SessionMissing           … no token was sent
    │   ├── SessionUnknown           … the server does not know the token (restarted, closed)
    │   ├── SessionExpired           … it was not renewed in time
    │   └── ProofRefused             … the proof of possession was refused
    ├── LicenceError                 the licence does not open this door; another licence is needed
    │   ├── LicenceMissing           … there is none for this model
    │   ├── LicenceInvalid           … it is not well-formed, altered, or of an issuer the node does not trust
    │   ├── NotYourLicence           … it is bound to another buyer's key
    │   ├── LicenceNotYetValid       … it begins later
    │   ├── LicenceExpired           … it has ended
    │   ├── LicenceRevoked           … the vendor withdrew it
    │   ├── LicenceOtherNode         … it is for another node
    │   ├── LicenceUnknown           … the node has not installed it
    │   └── GrantInvalid             … its grant is missing or belongs to something else
    ├── WrongInputKey                the input key is not the one the licence names; refused before anything is charged
    ├── PermissionRefused            not allowed, for a reason that has no class of its own
    ├── LimitReached                 allowed, and used up for now
    │   ├── QuotaExhausted           … the licence's samples
    │   ├── RateLimited              … the licence's rate; wait a second
    │   └── SeatsFull                … the licence's concurrent sessions; close one
    ├── RequestConflict              the request id was used before with another payload
    ├── ModelError                   the model cannot be called
    │   ├── ModelUnknown             … not published here, or not covered by the licence
    │   ├── ModelNotReady            … published and not loaded; try later
    │   └── TierUnavailable          … it has no such tier
    └── ReceiptInvalid               the receipt does not verify or speaks of another request; keep it as evidence

Each carries `reason` (a slug of `tessera.keystore.errors.REASONS`), `remedy` (what to do), `status` (the name of the
gRPC status, or None when the client itself refused) and `request_id`. Files that do not open (identity, licence, input
key) raise the errors of `tessera.keystore.errors`; misuse of this API raises its `ApiMisuse`. Their root,
`TesseraError`, is also the root of `ClientError`.
"""

from tessera.keystore import errors as base


class ClientError(base.TesseraError):
    """Root of what a call can raise. `status` is the name of a gRPC status, or None for the client's own refusals."""

    status: str | None
    request_id: str | None

    def __init__(
        self,
        public: str,
        *,
        reason: str | None = None,
        remedy: str = "",
        status: str | None = None,
        request_id: str | None = None,
    ) -> None:
        base.TesseraError.__init__(self, public, reason=reason, remedy=remedy)
        self.status = status
        self.request_id = request_id


class Unreachable(ClientError, base.Unavailable):
    """Nothing answers at the address; `detail` is what the transport said."""

    default_reason = "unreachable"
    detail: str = ""


class ServerUnverified(ClientError, base.Unauthenticated):
    """Certificate or node identity do not prove the server to be the right one; `detail` is the transport's word."""

    default_reason = "server-unverified"
    detail: str = ""


class ServerUnavailable(ClientError, base.Unavailable):
    """The server cannot answer now; nothing was charged and the same request may be sent again."""

    default_reason = "unavailable"


class ServerBusy(ServerUnavailable, base.Exhausted):
    """The server's queue or session table is full; send the same request again later."""

    default_reason = "queue-full"


class DeadlineExceeded(ClientError, base.Unavailable):
    """No answer came in time; the same request id may be sent again without being charged twice."""

    default_reason = "deadline-exceeded"


class Cancelled(ClientError):
    """The call was cancelled before an answer came."""

    default_reason = "cancelled"


class ServerFault(ClientError):
    """The server failed on its own account; nothing was charged."""

    default_reason = "internal"


class ProtocolError(ClientError, base.Malformed):
    """The server answered what no Tessera server writes: another product or version, or altered on the way."""

    default_reason = "malformed"


class InvalidRequest(ClientError, base.Malformed):
    """The request does not fit the model; sending it again changes nothing."""

    default_reason = "malformed"


class InvalidTensor(InvalidRequest, base.InvalidTensor):
    """One tensor does not fit the model's contract; `tensor` names it, empty when the server did not say which."""

    default_reason = "invalid-tensor"

    def __init__(
        self,
        public: str,
        *,
        tensor: str = "",
        reason: str | None = None,
        remedy: str = "",
        status: str | None = None,
        request_id: str | None = None,
    ) -> None:
        ClientError.__init__(self, public, reason=reason, remedy=remedy, status=status, request_id=request_id)
        self.tensor = tensor


class MessageTooLarge(InvalidRequest):
    """The request is larger than the server accepts; send fewer samples at once."""

    default_reason = "message-too-large"


class SessionError(ClientError, base.Unauthenticated):
    """The session does not hold, also not after the client has opened another one."""

    default_reason = "session-missing"


class SessionMissing(SessionError):
    """The call carried no session token."""

    default_reason = "session-missing"


class SessionUnknown(SessionError):
    """The server does not know the session: it was restarted, or the session was closed."""

    default_reason = "session-unknown"


class SessionExpired(SessionError):
    """The session was not renewed in time."""

    default_reason = "session-expired"


class ProofRefused(SessionError):
    """The server does not accept the proof of possession; mostly a challenge that grew too old on the way."""

    default_reason = "bad-proof"


class LicenceError(ClientError, base.Denied):
    """The licence does not open this door; only another licence helps."""

    default_reason = "denied"


class LicenceMissing(LicenceError):
    """No licence was given for this model."""

    default_reason = "licence-missing"


class LicenceInvalid(LicenceError):
    """The licence is not well-formed, was altered, or comes from an issuer that the node does not trust."""

    default_reason = "licence-malformed"


class NotYourLicence(LicenceError):
    """The licence is bound to another buyer's key than this identity's."""

    default_reason = "licence-not-yours"


class LicenceNotYetValid(LicenceError):
    """The licence begins in the future, by the server's clock."""

    default_reason = "licence-not-yet-valid"


class LicenceExpired(LicenceError):
    """The licence has ended."""

    default_reason = "licence-expired"


class LicenceRevoked(LicenceError):
    """The vendor has withdrawn the licence."""

    default_reason = "licence-revoked"


class LicenceOtherNode(LicenceError):
    """The licence is for another node."""

    default_reason = "licence-other-node"


class LicenceUnknown(LicenceError):
    """The node has not installed the licence."""

    default_reason = "licence-unknown"


class GrantInvalid(LicenceError):
    """The grant is missing, or belongs to another licence, package or node."""

    default_reason = "grant-missing"


class WrongInputKey(ClientError, base.Denied):
    """The input key is not the one that the licence names; nothing was inferred and nothing charged."""

    default_reason = "wrong-input-key"


class PermissionRefused(ClientError, base.Denied):
    """Not allowed, for a reason that has no class of its own; see `reason`."""

    default_reason = "denied"


class LimitReached(ClientError, base.Exhausted):
    """Allowed in principle, and used up for now."""

    default_reason = "exhausted"


class QuotaExhausted(LimitReached):
    """The licence's samples are used up for this period."""

    default_reason = "quota-exhausted"


class RateLimited(LimitReached):
    """More samples a second than the licence allows."""

    default_reason = "rate-limited"


class SeatsFull(LimitReached):
    """The licence's concurrent sessions are all taken."""

    default_reason = "seats-full"


class RequestConflict(ClientError, base.Conflict):
    """The request id was used before with another payload."""

    default_reason = "request-id-conflict"


class ModelError(ClientError, base.NotFound):
    """The model cannot be called here."""

    default_reason = "not-found"


class ModelUnknown(ModelError):
    """The model is not published here, or the licence does not cover it."""

    default_reason = "model-unknown"


class ModelNotReady(ModelError):
    """The model is published and not loaded; the operator loads it."""

    default_reason = "model-not-ready"


class TierUnavailable(ModelError):
    """The package has no such tier, or the licence does not reach it."""

    default_reason = "tier-unavailable"


class ReceiptInvalid(ClientError, base.Tampered):
    """A receipt is missing, fails its signature, or speaks of another request; `token` holds it as evidence."""

    default_reason = "receipt-invalid"
    token: str = ""
