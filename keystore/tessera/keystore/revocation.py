"""Revocation lists: signed, numbered, and never rolled back (docs/spec.md, rules R-1 to R-4).

A list names every licence of its issuer that is revoked, not only the new ones. A node replaces its list only by one
with a higher number that still names all that was revoked before, so neither an old list nor a shorter one brings a
licence back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tessera.keystore import jws
from tessera.keystore._claims import (
    KEY_ID,
    LICENCE_ID,
    MAX_TIME_S,
    check_fields,
    check_integer,
    check_printable,
    check_text,
)
from tessera.keystore.canonical import MAX_INTEGER, Json
from tessera.keystore.errors import Conflict, Malformed
from tessera.keystore.identity import Signer

TYP = "tessera-revocations+jwt"
MAX_TOKEN_BYTES = 4 << 20
MAX_REVOKED = 20_000
MAX_REASON_CHARACTERS = 128


class Revocation(NamedTuple):
    """Since when, in Unix seconds, and why a licence is revoked."""

    revoked_at_s: int
    reason: str


@dataclass(frozen=True, slots=True)
class RevocationList:
    """Every licence that an issuer has revoked, by licence id. Raises `Malformed` for values outside rule R-2."""

    number: int
    issuer_id: str
    issued_at_s: int
    revoked: Mapping[str, Revocation]
    token: str = field(repr=False)

    def __post_init__(self) -> None:
        check_integer(self.number, 1, MAX_INTEGER, "number")
        check_text(self.issuer_id, KEY_ID, "iss")
        check_integer(self.issued_at_s, 0, MAX_TIME_S, "iat")
        if len(self.revoked) > MAX_REVOKED:
            raise Malformed(f"a revocation list names at most {MAX_REVOKED} licences")
        for licence_id, (revoked_at_s, reason) in self.revoked.items():
            check_text(licence_id, LICENCE_ID, "a revoked licence id")
            check_integer(revoked_at_s, 0, MAX_TIME_S, "revoked_at_s")
            check_printable(reason, MAX_REASON_CHARACTERS, "the reason of a revocation")


def issue(number: int, revoked: Mapping[str, tuple[int, str]], *, issuer: Signer, now_s: float) -> RevocationList:
    """Sign list `number`; `revoked` is licence id → (Unix seconds, reason). Raises `Malformed` outside rule R-2."""
    claims: dict[str, Json] = {
        "iss": issuer.key_id,
        "iat": int(now_s),
        "tessera": {
            "number": number,
            "revoked": {
                licence_id: {"revoked_at_s": revoked_at_s, "reason": reason}
                for licence_id, (revoked_at_s, reason) in revoked.items()
            },
        },
    }
    token = jws.sign(TYP, claims, issuer)
    if len(token) > MAX_TOKEN_BYTES:
        raise Malformed(f"a revocation list has at most {MAX_TOKEN_BYTES} bytes")
    return _from_claims(claims, issuer.key_id, token)


def verify(token: str, issuers: Mapping[str, bytes]) -> RevocationList:
    """Return the list that one of `issuers` has signed.

    Raises `Malformed`, `Unauthenticated` (reason `licence-issuer-unknown`) or `Tampered`. The list speaks for licences
    of its own issuer only: whoever applies it checks `issuer_id` against the licence's.
    """
    parsed = jws.verify_parsed(token, typ=TYP, keys=issuers, max_bytes=MAX_TOKEN_BYTES)
    return _from_claims(parsed.claims, parsed.key_id, token)


def supersede(current: RevocationList | None, new: RevocationList) -> RevocationList:
    """Return `new` when it may replace `current` (rule R-3). Raises `Conflict` with reason `revocation-rollback`."""
    if current is None:
        return new
    if new.issuer_id != current.issuer_id:
        raise _rollback("the list is another issuer's")
    if new.number <= current.number:
        raise _rollback(f"list {new.number} does not come after list {current.number}")
    if current.revoked.keys() - new.revoked.keys():
        raise _rollback(f"list {new.number} leaves out a licence that list {current.number} revokes")
    return new


def _rollback(why: str) -> Conflict:
    return Conflict(why, reason="revocation-rollback", remedy="ask the issuer for the newest revocation list")


def _from_claims(claims: dict[str, Any], key_id: str, token: str) -> RevocationList:
    check_fields(claims, {"iss", "iat", "tessera"}, frozenset(), "revocation list")
    inner = check_fields(claims["tessera"], {"number", "revoked"}, frozenset(), "revocation list")
    if claims["iss"] != key_id:
        raise Malformed("iss is not the key that signed")
    if not isinstance(inner["revoked"], dict):
        raise Malformed("revoked is not an object")
    revoked = {}
    for licence_id, entry in inner["revoked"].items():
        fields = check_fields(entry, {"revoked_at_s", "reason"}, frozenset(), "a revocation")
        revoked[licence_id] = Revocation(fields["revoked_at_s"], fields["reason"])
    return RevocationList(inner["number"], claims["iss"], claims["iat"], revoked, token)
