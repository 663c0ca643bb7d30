"""From a failed call to the exception that says what to do: the only place that reads statuses and reasons.

Order of trust: the trailing metadata `tessera-reason`, then a `<reason>: <sentence>` in the status message (proxies may
drop metadata), then the status alone (servers and proxies that are not ours).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tessera.client import errors as e
from tessera.keystore.errors import REASONS

MAX_TEXT_CHARS: Final = 500


@dataclass
class RpcFailed(Exception):
    """What a driver throws into a plan when a call fails: status name, status message, trailing metadata."""

    status: str
    details: str = ""
    trailing: Mapping[str, str] = field(default_factory=dict)


BY_STATUS: Final[dict[str, type[e.ClientError]]] = {
    "CANCELLED": e.Cancelled,
    "UNKNOWN": e.ServerFault,
    "INVALID_ARGUMENT": e.InvalidRequest,
    "DEADLINE_EXCEEDED": e.DeadlineExceeded,
    "NOT_FOUND": e.ModelError,
    "ALREADY_EXISTS": e.RequestConflict,
    "PERMISSION_DENIED": e.PermissionRefused,
    "RESOURCE_EXHAUSTED": e.LimitReached,
    "FAILED_PRECONDITION": e.PermissionRefused,
    "ABORTED": e.ServerFault,
    "OUT_OF_RANGE": e.InvalidRequest,
    "UNIMPLEMENTED": e.ProtocolError,
    "INTERNAL": e.ServerFault,
    "UNAVAILABLE": e.ServerUnavailable,
    "DATA_LOSS": e.ServerFault,
    "UNAUTHENTICATED": e.SessionError,
}
"""Every gRPC status but OK, for answers without a reason that we know."""

BY_REASON: Final[dict[str, type[e.ClientError]]] = {
    "internal": e.ServerFault,
    "api-misuse": e.ServerFault,
    "malformed": e.InvalidRequest,
    "invalid-tensor": e.InvalidTensor,
    "message-too-large": e.MessageTooLarge,
    "refused": e.PermissionRefused,
    "denied": e.PermissionRefused,
    "session-missing": e.SessionMissing,
    "session-unknown": e.SessionUnknown,
    "session-expired": e.SessionExpired,
    "challenge-unknown": e.ProofRefused,
    "bad-proof": e.ProofRefused,
    "licence-missing": e.LicenceMissing,
    "licence-malformed": e.LicenceInvalid,
    "copyright-malformed": e.LicenceInvalid,
    "licence-issuer-unknown": e.LicenceInvalid,
    "licence-not-yours": e.NotYourLicence,
    "licence-not-yet-valid": e.LicenceNotYetValid,
    "licence-expired": e.LicenceExpired,
    "licence-revoked": e.LicenceRevoked,
    "licence-other-node": e.LicenceOtherNode,
    "licence-unknown": e.LicenceUnknown,
    "grant-missing": e.GrantInvalid,
    "grant-mismatch": e.GrantInvalid,
    "wrong-input-key": e.WrongInputKey,
    "clock-rolled-back": e.ServerUnavailable,
    "exhausted": e.LimitReached,
    "quota-exhausted": e.QuotaExhausted,
    "rate-limited": e.RateLimited,
    "seats-full": e.SeatsFull,
    "sessions-full": e.ServerBusy,
    "queue-full": e.ServerBusy,
    "conflict": e.RequestConflict,
    "request-id-conflict": e.RequestConflict,
    "not-found": e.ModelError,
    "model-unknown": e.ModelUnknown,
    "model-not-ready": e.ModelNotReady,
    "tier-unavailable": e.TierUnavailable,
    "tier-not-licensed": e.TierUnavailable,
    "issuer-absent": e.ServerFault,
    "tampered": e.LicenceInvalid,
    "package-tampered": e.ServerFault,
    "key-file-exposed": e.ServerFault,
    "extra-missing": e.ServerFault,
    "store-newer": e.ServerFault,
    "ledger-broken": e.ServerFault,
    "receipt-invalid": e.ReceiptInvalid,
    "revocation-rollback": e.RequestConflict,
    "wrong-key": e.ServerFault,
    "wrong-passphrase": e.ServerFault,
    "store-sealed": e.ServerUnavailable,
    "already-initialised": e.RequestConflict,
    "not-initialised": e.ServerUnavailable,
    "unavailable": e.ServerUnavailable,
    "draining": e.ServerUnavailable,
    "ledger-unavailable": e.ServerUnavailable,
    "deadline-exceeded": e.DeadlineExceeded,
    "cancelled": e.Cancelled,
    "transform-invalid": e.InvalidRequest,
    "server-unverified": e.ServerUnverified,
    "unreachable": e.Unreachable,
    "training-diverged": e.ServerFault,
    "not-lockable": e.ServerFault,
}
"""Every reason of `REASONS`; a test holds the two tables equal."""

_NEEDS_OPERATOR = frozenset({"not-initialised", "clock-rolled-back", "sessions-full"})
"""Not among them: a sealed store, for every server that restarts is sealed until it has opened its store."""
_TAGGED = re.compile(r"([a-z][a-z0-9]*(?:-[a-z0-9]+)*): (.+)", re.DOTALL)
_UNVERIFIED = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|Hostname Verification Check|handshake failed|SSL_ERROR", re.IGNORECASE
)
_NEVER_RAN = re.compile(r"failed to connect|errors resolving|name resolution|Connection refused", re.IGNORECASE)
_BROKEN = re.compile(r"Internal error from Core|RST_STREAM", re.IGNORECASE)
_TOO_LARGE = re.compile(r"(?:received|sent) message larger than max", re.IGNORECASE)


def refusal(failed: RpcFailed, *, request_id: str | None = None) -> e.ClientError:
    """Return the exception for a failed call; never raises, whatever the peer wrote."""
    found, sentence = _reason(failed)
    if not found:
        special = _transport(failed)
        if special is not None:
            special.request_id = request_id
            return special
    # An unknown slug is a newer server's: the class follows the status, the slug is kept for logs.
    kind = BY_REASON.get(found) or BY_STATUS.get(failed.status, e.ServerFault)
    remedy = _printable(failed.trailing.get("tessera-remedy", ""))
    error = kind(sentence, reason=found or None, remedy=remedy, status=failed.status, request_id=request_id)
    if isinstance(error, e.InvalidTensor):
        error.tensor = _printable(failed.trailing.get("tessera-tensor", ""))
    return error


def retryable(error: e.ClientError) -> bool:
    """Whether the same request with the same id may soon be sent again: nobody answered, and nothing was charged.

    So may a handshake whose challenge the server does not know: it was restarted in between, or the way took too long,
    and a repetition begins with another challenge.
    """
    if isinstance(error, e.ProofRefused):
        return error.reason == "challenge-unknown"
    return isinstance(error, e.ServerUnavailable | e.Unreachable) and error.reason not in _NEEDS_OPERATOR


def session_lost(error: e.ClientError) -> bool:
    """Whether a fresh session is the remedy."""
    return isinstance(error, e.SessionUnknown | e.SessionExpired)


def _reason(failed: RpcFailed) -> tuple[str, str]:
    """Return (slug or empty, sentence)."""
    told = failed.trailing.get("tessera-reason", "")
    match = _TAGGED.fullmatch(_printable(failed.details))
    if match and (match[1] == told or (not told and match[1] in REASONS)):
        return match[1], match[2]
    if told and re.fullmatch(r"[a-z0-9-]{1,64}", told):
        return told, _printable(failed.details) or REASONS.get(told, told)
    return "", _printable(failed.details) or f"the call failed with status {failed.status}"


def _transport(failed: RpcFailed) -> e.ClientError | None:
    """Return the error of a call that the transport, not a Tessera server, ended; None for any other."""
    detail = _printable(failed.details)
    if failed.status == "UNAVAILABLE" and _UNVERIFIED.search(detail):
        unverified = e.ServerUnverified(
            "the server's certificate does not prove that it is the server you asked for",
            remedy="Check the address, and that root_certificates is the CA file of this very node (ca.pem).",
            status=failed.status,
        )
        unverified.detail = detail
        return unverified
    # A connection that ends at the wrong moment is INTERNAL to gRPC; ids make it safe to send the request again.
    if failed.status == "UNAVAILABLE" or (failed.status == "INTERNAL" and _BROKEN.search(detail)):
        refused = bool(_NEVER_RAN.search(detail))
        unreachable = e.Unreachable(
            "nothing answers at the server's address" if refused else "the connection to the server broke",
            remedy="Check host, port and that the server is running; it speaks TLS unless told otherwise.",
            status=failed.status,
        )
        unreachable.detail = detail
        return unreachable
    if failed.status == "RESOURCE_EXHAUSTED" and _TOO_LARGE.search(detail):
        return e.MessageTooLarge(
            "the message is larger than the receiving side's limit",
            remedy="Send fewer samples in one request.",
            status=failed.status,
        )
    if failed.status == "INTERNAL" and "deserializing" in detail:
        return e.ProtocolError("the answer cannot be decoded", status=failed.status)
    if failed.status == "DEADLINE_EXCEEDED":
        return e.DeadlineExceeded(
            "no answer came before the deadline",
            remedy="Send the same request id again, or give a longer timeout_s.",
            status=failed.status,
        )
    return None


def _printable(text: str) -> str:
    """Return peer text, cut to `MAX_TEXT_CHARS`, without the control characters that could play with a terminal."""
    return "".join(char if char.isprintable() else " " for char in text[:MAX_TEXT_CHARS]).strip()
