"""Licences: signed statements of what one buyer may do with one model (docs/spec.md, rules L-1 to L-9).

    licence = issue(Terms("digits"), issuer=vendor, buyer=buyer_public, node=None, …)
    licence = verify(token, {vendor.key_id: vendor.public.verify_key})
    standing(licence, now_s)        what the clock says; revocation, quota and seats are judged by the node

A licence is no secret: without the buyer's identity key it opens nothing. Verification says that a trusted issuer
wrote it; it says nothing about time, node or buyer, which the caller checks with `standing`, `node_id` and `buyer_id`.
"""

import hashlib
import secrets as _random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Self, get_args

from tessera.keystore import canonical, jws
from tessera.keystore._claims import (
    HEX_16_BYTES,
    KEY_ID,
    LICENCE_ID,
    MAX_TIME_S,
    NAME,
    check_choice,
    check_count,
    check_fields,
    check_integer,
    check_text,
    malformed_as,
)
from tessera.keystore._files import PUBLIC_MODE, read_limited, write_atomically
from tessera.keystore.canonical import Json
from tessera.keystore.copyright import CopyrightRecord
from tessera.keystore.errors import Malformed
from tessera.keystore.identity import PublicIdentity, Signer, require_role

TYP = "tessera-licence+jwt"
GRANT_TYP = "tessera-grant+jwt"
FILE_FORMAT = "tessera-licence-file/1"
MAX_FILE_BYTES = 262_144
ANY_NODE = "any-node"
"""The audience of a licence that names no node."""

MAX_VERSION = 2**31 - 1
MAX_TIER = 255
MAX_SESSIONS = 100_000
MAX_RATE = 10**9
MAX_GRACE_S = 10 * 366 * 86_400
MAX_FEATURES = 32

Period = Literal["total", "day", "month"]
Action = Literal["stop", "degrade", "warn"]


@dataclass(frozen=True, slots=True)
class Quota:
    """How many samples the licence pays for: in all, or in each UTC day or calendar month (rule L-5)."""

    samples: int
    period: Period = "total"

    def __post_init__(self) -> None:
        with malformed_as("licence-malformed"):
            check_count(self.samples, "quota.samples")
            check_choice(self.period, get_args(Period), "quota.period")


@dataclass(frozen=True, slots=True)
class ExpiryPolicy:
    """What happens for `grace_s` seconds after the end: `stop` and `warn` serve on as before (`warn` tells the client),
    `degrade` serves at `tier`. When the grace is over nothing is served, whatever the policy (rule L-6)."""

    action: Action = "stop"
    grace_s: int = 0
    tier: int | None = None

    def __post_init__(self) -> None:
        with malformed_as("licence-malformed"):
            check_choice(self.action, get_args(Action), "expiry.action")
            check_integer(self.grace_s, 0, MAX_GRACE_S, "expiry.grace_s")
            if (self.tier is not None) != (self.action == "degrade"):
                raise Malformed("expiry.tier belongs to the action degrade, and to it only")
            if self.tier is not None:
                check_integer(self.tier, 1, MAX_TIER, "expiry.tier")


@dataclass(frozen=True, slots=True)
class Terms:
    """What a licence allows; the private claim `tessera` (rule L-4). Raises `Malformed` for values outside the rule."""

    model: str
    min_version: int = 1
    max_version: int | None = None
    tier: int = 1
    input_key_id: str | None = None
    """Of the bound key, when there is a copyright record (rule C-4)."""
    copyright: CopyrightRecord | None = None
    quota: Quota | None = None
    rate_samples_per_s: int | None = None
    sessions: int = 4
    expiry: ExpiryPolicy = ExpiryPolicy()
    features: tuple[str, ...] = ()

    @malformed_as("licence-malformed")
    def __post_init__(self) -> None:
        check_text(self.model, NAME, "model")
        check_integer(self.min_version, 1, MAX_VERSION, "min_version")
        if self.max_version is not None:
            check_integer(self.max_version, self.min_version, MAX_VERSION, "max_version")
        check_integer(self.tier, 1, MAX_TIER, "tier")
        if self.input_key_id is not None:
            check_text(self.input_key_id, HEX_16_BYTES, "input_key_id")
        elif self.copyright is not None:
            raise Malformed("a copyright record stands beside an input_key_id, and there is none")
        if self.rate_samples_per_s is not None:
            check_integer(self.rate_samples_per_s, 1, MAX_RATE, "rate_samples_per_s")
        check_integer(self.sessions, 1, MAX_SESSIONS, "sessions")
        if self.expiry.tier is not None and self.expiry.tier > self.tier:
            raise Malformed("expiry.tier is above the licence's tier")
        for feature in self.features:
            check_text(feature, NAME, "a feature")
        if len(self.features) > MAX_FEATURES or len(set(self.features)) != len(self.features):
            raise Malformed(f"features are at most {MAX_FEATURES} different names")

    def to_claims(self) -> dict[str, Json]:
        """Return the claim; what is `None` is left out. `from_claims(x.to_claims()) == x`."""
        expiry: dict[str, Json] = {"action": self.expiry.action, "grace_s": self.expiry.grace_s}
        if self.expiry.tier is not None:
            expiry["tier"] = self.expiry.tier
        claims: dict[str, Json] = {
            "model": self.model,
            "min_version": self.min_version,
            "max_version": self.max_version,
            "tier": self.tier,
            "input_key_id": self.input_key_id,
            "copyright": None if self.copyright is None else self.copyright.to_json(),
            "quota": None if self.quota is None else {"samples": self.quota.samples, "period": self.quota.period},
            "rate_samples_per_s": self.rate_samples_per_s,
            "sessions": self.sessions,
            "expiry": expiry,
            "features": list(self.features),
        }
        return {name: value for name, value in claims.items() if value is not None}

    @classmethod
    @malformed_as("licence-malformed")
    def from_claims(cls, claims: object) -> Self:
        """Read the claim: `model` is required, the rest defaults as in the constructor, an unknown field is refused."""
        fields = dict(check_fields(claims, frozenset({"model"}), _OPTIONAL_TERMS, "terms"))
        if "copyright" in fields:
            fields["copyright"] = CopyrightRecord.from_json(fields["copyright"])
        if "quota" in fields:
            fields["quota"] = Quota(**check_fields(fields["quota"], {"samples", "period"}, frozenset(), "quota"))
        if "expiry" in fields:
            expiry = check_fields(fields["expiry"], {"action"}, {"grace_s", "tier"}, "expiry")
            fields["expiry"] = ExpiryPolicy(**expiry)
        if "features" in fields:
            if not isinstance(fields["features"], list):
                raise Malformed("features is not a list")
            fields["features"] = tuple(check_text(feature, NAME, "a feature") for feature in fields["features"])
        return cls(**fields)


_OPTIONAL_TERMS = frozenset(Terms.__dataclass_fields__) - {"model"}


@dataclass(frozen=True, slots=True)
class Licence:
    """One licence as its token states it; times are Unix seconds, `not_before_s` included, `expires_at_s` not."""

    licence_id: str
    issuer_id: str
    buyer_id: str
    node_id: str | None
    """Key id of the only node that may serve it; `None` for any node that trusts the issuer."""
    issued_at_s: int
    not_before_s: int
    expires_at_s: int
    terms: Terms
    token: str = field(repr=False)

    @malformed_as("licence-malformed")
    def __post_init__(self) -> None:
        check_text(self.licence_id, LICENCE_ID, "jti")
        check_text(self.issuer_id, KEY_ID, "iss")
        check_text(self.buyer_id, KEY_ID, "cnf.jkt")
        if self.node_id is not None:
            check_text(self.node_id, KEY_ID, "aud")
        check_integer(self.issued_at_s, 0, MAX_TIME_S, "iat")
        check_integer(self.not_before_s, 0, MAX_TIME_S, "nbf")
        check_integer(self.expires_at_s, self.not_before_s + 1, MAX_TIME_S, "exp")

    @property
    def digest(self) -> bytes:
        """SHA-256 of the token's ASCII bytes; grants and proofs are bound to it (rule L-8)."""
        return hashlib.sha256(self.token.encode("ascii")).digest()

    def covers(self, model: str, version: int) -> bool:
        """Tell whether the terms name `model` and a range that holds `version`."""
        terms = self.terms
        below_end = terms.max_version is None or version <= terms.max_version
        return model == terms.model and terms.min_version <= version and below_end


def issue(
    terms: Terms,
    *,
    issuer: Signer,
    buyer: PublicIdentity,
    node: PublicIdentity | None,
    not_before_s: int,
    expires_at_s: int,
    now_s: float,
    licence_id: str | None = None,
) -> Licence:
    """Sign a licence; a random id is chosen when none is given. Raises `Malformed` for values outside the rules."""
    require_role(buyer, "buyer")
    if node is not None:
        require_role(node, "node")
    claims: dict[str, Json] = {
        "iss": issuer.key_id,
        "sub": buyer.key_id,
        "aud": ANY_NODE if node is None else node.key_id,
        "jti": _random.token_hex(16) if licence_id is None else licence_id,
        "iat": int(now_s),
        "nbf": not_before_s,
        "exp": expires_at_s,
        "cnf": {"jkt": buyer.key_id},
        "tessera": terms.to_claims(),
    }
    _from_claims(claims, issuer.key_id, "")
    return _from_claims(claims, issuer.key_id, jws.sign(TYP, claims, issuer))


@malformed_as("licence-malformed")
def verify(token: str, issuers: Mapping[str, bytes]) -> Licence:
    """Return the licence that one of `issuers` (key id → Ed25519 public key) has signed.

    Raises `Malformed` (reason `licence-malformed`), `Unauthenticated` (reason `licence-issuer-unknown`) or `Tampered`.
    """
    parsed = jws.verify_parsed(token, typ=TYP, keys=issuers)
    return _from_claims(parsed.claims, parsed.key_id, token)


@malformed_as("licence-malformed")
def parse_without_verification(token: str) -> Licence:
    """Return what a token claims, for display and for the buyer's own use; anybody may have written it."""
    parsed = jws.parse(token, typ=TYP)
    return _from_claims(parsed.claims, parsed.key_id, token)


class Standing(Enum):
    """Where a licence stands in time (rule L-6)."""

    NOT_YET = "not-yet"
    VALID = "valid"
    GRACE = "grace"
    EXPIRED = "expired"


def standing(licence: Licence, now_s: float) -> Standing:
    """Tell where `now_s` falls: NOT_YET | nbf | VALID | exp | GRACE | exp + grace | EXPIRED; a bound opens a span."""
    if now_s < licence.not_before_s:
        return Standing.NOT_YET
    if now_s < licence.expires_at_s:
        return Standing.VALID
    if now_s < licence.expires_at_s + licence.terms.expiry.grace_s:
        return Standing.GRACE
    return Standing.EXPIRED


_CLAIMS = frozenset({"iss", "sub", "aud", "jti", "iat", "nbf", "exp", "cnf", "tessera"})


@malformed_as("licence-malformed")
def _from_claims(claims: dict[str, Any], key_id: str, token: str) -> Licence:
    check_fields(claims, _CLAIMS, frozenset(), "licence")
    confirmation = check_fields(claims["cnf"], {"jkt"}, frozenset(), "cnf")
    if claims["iss"] != key_id:
        raise Malformed("iss is not the key that signed")
    if claims["sub"] != confirmation["jkt"]:
        raise Malformed("sub is not the buyer of cnf.jkt")
    return Licence(
        licence_id=claims["jti"],
        issuer_id=claims["iss"],
        buyer_id=confirmation["jkt"],
        node_id=None if claims["aud"] == ANY_NODE else claims["aud"],
        issued_at_s=claims["iat"],
        not_before_s=claims["nbf"],
        expires_at_s=claims["exp"],
        terms=Terms.from_claims(claims["tessera"]),
        token=token,
    )


@dataclass(frozen=True, slots=True)
class LicenceFile:
    """What a buyer carries: a licence and, unless the node holds it already, its grant; both compact JWTs."""

    licence: str = field(repr=False)
    grant: str | None = field(repr=False)


def read_licence_file(path: str | Path) -> LicenceFile:
    """Read a licence file (rule L-9): the JSON form, or a bare licence token. Looks at form only, verifies nothing.

    Raises `NotFound`, `Denied` (not readable) or `Malformed` (reason `licence-malformed`).
    """
    with malformed_as("licence-malformed"):
        raw = read_limited(Path(path), max_bytes=MAX_FILE_BYTES).strip()
        if not raw.startswith(b"{"):
            return LicenceFile(_token(raw.decode("ascii", errors="replace"), TYP), None)
        fields = check_fields(canonical.parse(raw, max_bytes=MAX_FILE_BYTES), {"format", "licence"}, {"grant"}, "file")
        if fields["format"] != FILE_FORMAT:
            raise Malformed(f"not a licence file of format {FILE_FORMAT}")
        grant = _token(fields["grant"], GRANT_TYP) if "grant" in fields else None
        return LicenceFile(_token(fields["licence"], TYP), grant)


def write_licence_file(path: str | Path, file: LicenceFile, *, overwrite: bool = False) -> None:
    """Write the JSON form of rule L-9, mode 0644: both tokens are worthless without the identity key.

    Raises `Conflict` when the file exists and `overwrite` is false, or as `read_licence_file`.
    """
    document: dict[str, Json] = {"format": FILE_FORMAT, "licence": _token(file.licence, TYP)}
    if file.grant is not None:
        document["grant"] = _token(file.grant, GRANT_TYP)
    write_atomically(Path(path), canonical.dumps(document) + b"\n", mode=PUBLIC_MODE, overwrite=overwrite)


def _token(value: object, typ: str) -> str:
    if not isinstance(value, str):
        raise Malformed("a token is not a string")
    jws.parse(value, typ=typ)
    return value
