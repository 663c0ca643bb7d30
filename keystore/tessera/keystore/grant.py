"""Grants: the sealed keys that make a licence work (docs/spec.md, rules G-1 to G-7).

The issuer signs a grant for one licence, one package and one node. It carries up to four sealed boxes: the content key,
the key of the licence's tier and the confirmation key for the node, the input key for the buyer. The text in each box
begins with its purpose, the licence's digest and the package id, so a box that is moved to another place or another
grant is refused.
"""

import secrets as _random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tessera.keystore import jws
from tessera.keystore._claims import (
    HEX_16_BYTES,
    KEY_ID,
    LICENCE_ID,
    MAX_TIME_S,
    check_fields,
    check_integer,
    check_text,
    length_prefixed,
)
from tessera.keystore.canonical import Json
from tessera.keystore.copyright import MAX_RECORD_BYTES, CopyrightRecord, bound_key, buyer_input_key
from tessera.keystore.errors import Denied, Malformed, Tampered
from tessera.keystore.identity import Identity, PublicIdentity, Signer, require_role
from tessera.keystore.jws import b64u, b64u_decode
from tessera.keystore.keyfile import KdfCost, KeyFile, PassphraseSource, decode_key_file, read_key_file, write_key_file
from tessera.keystore.licence import Licence
from tessera.keystore.proof import confirmation_key, input_key_id
from tessera.keystore.secrets import (
    ConfirmationKey,
    ContentKey,
    InputKey,
    Key32,
    Passphrase,
    SecretBytes,
    TierSecret,
)
from tessera.keystore.tiers import MAX_TIERS, TierKey

TYP = "tessera-grant+jwt"
MAX_BOX_BYTES = 512
MAX_RECORD_BOX_BYTES = MAX_BOX_BYTES + MAX_RECORD_BYTES
"""Of the input key's box, which may hold a copyright record besides."""
DIGEST_BYTES = 32

_BOX_LABEL = b"tessera/v1/grant-box\n"
_CONTENT, _CONFIRMATION, _INPUT, _TIER = "content-key", "confirmation-key", "input-key", "tier-key"
_INPUT_AND_RECORD = "input-key+copyright"
_TIER_BYTES = {1: 0, 2: 33, 3: 0, 4: 33}
"""By version of package secrets; 3 and 4 hold a master key (rule G-6)."""


@dataclass(frozen=True, slots=True)
class PackageSecrets:
    """What the vendor keeps of a package: enough to write grants for it."""

    package_id: str
    content_key: ContentKey
    input_key: InputKey | None
    tier_key: TierKey | None = None
    """Key of the top tier, for a package whose tiers have keys."""
    by_record: bool = False
    """Whether the input key is a master that no buyer may have; theirs follow from it and their records (rule C-3)."""

    def __post_init__(self) -> None:
        check_text(self.package_id, HEX_16_BYTES, "package_id")
        if self.by_record and self.input_key is None:
            raise Malformed("package secrets for copyright records lack the master key")
        if self.tier_key is not None and self.tier_key.package_id != self.package_id:
            raise Malformed("the tier key is another package's")

    def to_secret(self) -> SecretBytes:
        """Return version, package id, content key, for a package with tier keys the top tier and its key, and the input
        key if there is one: rule G-6."""
        tier = b"" if self.tier_key is None else bytes([self.tier_key.tier]) + self.tier_key.secret.reveal()
        head = bytes([1 + bool(tier) + 2 * self.by_record]) + bytes.fromhex(self.package_id)
        tail = b"" if self.input_key is None else self.input_key.reveal()
        return SecretBytes(head + self.content_key.reveal() + tier + tail)

    @classmethod
    def from_secret(cls, secret: SecretBytes) -> Self:
        """Read what `to_secret` wrote. Raises `Malformed`."""
        raw = secret.reveal()
        tier_bytes = _TIER_BYTES.get(raw[0] if raw else 0)
        if tier_bytes is None or len(raw) not in (49 + tier_bytes, 81 + tier_bytes):
            raise Malformed("not the package secrets of a version that this software knows")
        package_id, tier, tail = raw[1:17].hex(), raw[49 : 49 + tier_bytes], raw[49 + tier_bytes :]
        return cls(
            package_id,
            ContentKey(raw[17:49]),
            InputKey(tail) if tail else None,
            TierKey(package_id, tier[0], TierSecret(tier[1:])) if tier else None,
            by_record=raw[0] > 2,
        )


def save_package_secrets(
    path: str | Path,
    secrets: PackageSecrets,
    passphrase: Passphrase | None = None,
    *,
    overwrite: bool = False,
    cost: KdfCost = KdfCost.interactive,
) -> None:
    """Write a key file of kind `package-secrets`. Raises as `write_key_file`."""
    public: dict[str, Json] = {"package_id": secrets.package_id}
    if secrets.input_key is not None:
        public["input_key_id"] = input_key_id(secrets.input_key)
    secret = secrets.to_secret()
    write_key_file(path, "package-secrets", public, secret, passphrase=passphrase, overwrite=overwrite, cost=cost)


def load_package_secrets(path: str | Path, passphrase: PassphraseSource | None = None) -> PackageSecrets:
    """Read what `save_package_secrets` wrote. Raises as `read_key_file`; `Tampered` for an id not the secret's."""
    return _checked_secrets(read_key_file(path, "package-secrets", passphrase))


def decode_package_secrets(raw: bytes, passphrase: PassphraseSource | None = None) -> PackageSecrets:
    """Read the bytes of a file that `save_package_secrets` wrote. Raises as `load_package_secrets`."""
    return _checked_secrets(decode_key_file(raw, "package-secrets", passphrase))


def _checked_secrets(file: KeyFile) -> PackageSecrets:
    secrets = PackageSecrets.from_secret(file.secret)
    expected: dict[str, Json] = {"package_id": secrets.package_id}
    if secrets.input_key is not None:
        expected["input_key_id"] = input_key_id(secrets.input_key)
    if file.public != expected:
        raise Tampered("the public part of the key file does not belong to its secret")
    return secrets


@dataclass(frozen=True, slots=True)
class Grant:
    """One grant as its token states it. The boxes are sealed, and still no business of a log."""

    grant_id: str
    issuer_id: str
    licence_digest: bytes
    package_id: str
    node_id: str
    buyer_id: str
    issued_at_s: int
    content_key_box: bytes = field(repr=False)
    confirmation_key_box: bytes | None = field(repr=False)
    input_key_box: bytes | None = field(repr=False)
    token: str = field(repr=False)
    tier: int | None = None
    """The tier whose key it carries: the licence's; None for a package whose tiers have no keys."""
    tier_key_box: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_text(self.grant_id, LICENCE_ID, "jti")
        check_text(self.package_id, HEX_16_BYTES, "package_id")
        for key_id in (self.issuer_id, self.node_id, self.buyer_id):
            check_text(key_id, KEY_ID, "a key id of a grant")
        check_integer(self.issued_at_s, 0, MAX_TIME_S, "iat")
        if len(self.licence_digest) != DIGEST_BYTES:
            raise Malformed(f"licence_digest has {DIGEST_BYTES} bytes")
        if (self.confirmation_key_box is None) != (self.input_key_box is None):
            raise Malformed("a grant carries confirmation key and input key together, or neither")
        if (self.tier is None) != (self.tier_key_box is None):
            raise Malformed("a grant carries a tier and its key together, or neither")
        if self.tier is not None:
            check_integer(self.tier, 1, MAX_TIERS, "a grant's tier")


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """What a node learns from a grant: never the input key."""

    content_key: ContentKey
    confirmation_key: ConfirmationKey | None
    tier_key: TierKey | None = None
    """Key of the licence's tier; None for a package whose tiers have no keys."""


def issue(
    licence: Licence,
    *,
    issuer: Signer,
    secrets: PackageSecrets,
    buyer: PublicIdentity,
    node: PublicIdentity,
    now_s: float,
) -> Grant:
    """Seal the package's keys for the licence's buyer and for `node`, and sign the whole.

    Of a package with tier keys the node gets the key of the licence's tier, which gives those below it. With a
    copyright record in the licence the package's input key is the master: the buyer gets the key that follows from it
    and their record, and the record, and the node the confirmation key of the two bound together. Raises `Denied`
    with reason `grant-mismatch` when issuer, buyer, node or input key is not the licence's, or when one of licence and
    secrets is for copyright records and the other is not; `tier-unavailable` for a tier above the package's top.
    """
    require_role(buyer, "buyer")
    require_role(node, "node")
    record = licence.terms.copyright
    own, bound = _buyer_keys(secrets, record)
    key_id = None if bound is None else input_key_id(bound)
    _match(licence.issuer_id == issuer.key_id, "the licence is another issuer's")
    _match(licence.buyer_id == buyer.key_id, "the licence is another buyer's")
    _match(licence.node_id in (None, node.key_id), "the licence is for another node")
    _match(
        licence.terms.input_key_id == key_id,
        "the licence and the package secrets name different input keys, or bind them to different copyright records",
        _KEY_REMEDY if record is None else _RECORD_REMEDY,
    )
    tier_key = _tier_key(secrets, licence)
    place = (licence.digest, secrets.package_id)
    grant: dict[str, Json] = {
        "licence_digest": licence.digest.hex(),
        "package_id": secrets.package_id,
        "content_key_box": _seal(node, _CONTENT, place, secrets.content_key),
    }
    if own is not None and bound is not None:
        grant["confirmation_key_box"] = _seal(node, _CONFIRMATION, place, confirmation_key(bound))
        purpose, tail = (_INPUT, b"") if record is None else (_INPUT_AND_RECORD, record.to_bytes())
        grant["input_key_box"] = _seal(buyer, purpose, place, own, tail)
    if tier_key is not None:
        grant["tier"] = tier_key.tier
        grant["tier_key_box"] = _seal(node, f"{_TIER}/{tier_key.tier}", place, tier_key.secret)
    claims: dict[str, Json] = {
        "iss": issuer.key_id,
        "sub": buyer.key_id,
        "aud": node.key_id,
        "jti": _random.token_hex(16),
        "iat": int(now_s),
        "tessera": grant,
    }
    return _from_claims(claims, issuer.key_id, jws.sign(TYP, claims, issuer))


def verify(token: str, licence: Licence, issuers: Mapping[str, bytes]) -> Grant:
    """Return the grant that the licence's own issuer has signed for this licence.

    Raises `Malformed`, `Unauthenticated` (reason `licence-issuer-unknown`), `Tampered`, or `Denied` with reason
    `grant-mismatch` when it belongs to another licence, buyer or issuer, or to a node that the licence does not allow.
    """
    parsed = jws.verify_parsed(token, typ=TYP, keys=issuers)
    grant = _from_claims(parsed.claims, parsed.key_id, token)
    _match(grant.licence_digest == licence.digest, "the grant belongs to another licence")
    _match(grant.issuer_id == licence.issuer_id, "the grant is signed by another issuer than the licence")
    _match(grant.buyer_id == licence.buyer_id, "the grant names another buyer than the licence")
    _match(licence.node_id in (None, grant.node_id), "the grant is for another node than the licence")
    _match(grant.tier in (None, licence.terms.tier), "the grant carries the key of another tier than the licence's")
    return grant


def parse_without_verification(token: str) -> Grant:
    """Return what a token claims, for display and for the buyer's own use; anybody may have written it."""
    parsed = jws.parse(token, typ=TYP)
    return _from_claims(parsed.claims, parsed.key_id, token)


def open_for_node(grant: Grant, node: Identity) -> NodeKeys:
    """Open the node's boxes of a verified grant.

    Raises `Denied` with reason `grant-mismatch` when the grant is another node's or a box was moved here from another
    grant, `WrongKey` when a box does not open.
    """
    _match(grant.node_id == node.key_id, "the grant is for another node")
    confirmation = None
    if grant.confirmation_key_box is not None:
        confirmation = ConfirmationKey(_open(grant, node, _CONFIRMATION, grant.confirmation_key_box).reveal())
    tier_key = None
    if grant.tier is not None and grant.tier_key_box is not None:
        secret = _open(grant, node, f"{_TIER}/{grant.tier}", grant.tier_key_box)
        tier_key = TierKey(grant.package_id, grant.tier, TierSecret(secret.reveal()))
    return NodeKeys(ContentKey(_open(grant, node, _CONTENT, grant.content_key_box).reveal()), confirmation, tier_key)


def open_for_buyer(grant: Grant, buyer: Identity, record: CopyrightRecord | None = None) -> InputKey | None:
    """Open the buyer's box of a verified grant; `None` when the model takes plain inputs.

    `record` is the licence's, where it has one: the key returned is then the buyer's own, not yet bound to the record
    (rule C-4), and the box must hold the same record. Raises as `open_for_node`.
    """
    _match(grant.buyer_id == buyer.key_id, "the grant is for another buyer")
    if grant.input_key_box is None:
        return None
    if record is None:
        return InputKey(_open(grant, buyer, _INPUT, grant.input_key_box).reveal())
    tail = record.to_bytes()
    return InputKey(_open(grant, buyer, _INPUT_AND_RECORD, grant.input_key_box, tail).reveal())


_CLAIMS = frozenset({"iss", "sub", "aud", "jti", "iat", "tessera"})
_REQUIRED = frozenset({"licence_digest", "package_id", "content_key_box"})
_OPTIONAL = frozenset({"confirmation_key_box", "input_key_box", "tier", "tier_key_box"})


def _from_claims(claims: dict[str, Any], key_id: str, token: str) -> Grant:
    check_fields(claims, _CLAIMS, frozenset(), "grant")
    inner = check_fields(claims["tessera"], _REQUIRED, _OPTIONAL, "grant")
    if claims["iss"] != key_id:
        raise Malformed("iss is not the key that signed")
    digest = inner["licence_digest"]
    if not isinstance(digest, str) or len(digest) != 2 * DIGEST_BYTES or not set(digest) <= set("0123456789abcdef"):
        raise Malformed("licence_digest is not 64 hexadecimal digits")
    content_key_box = _box(inner, "content_key_box")
    if content_key_box is None:
        raise Malformed("a grant carries a content key")
    return Grant(
        grant_id=claims["jti"],
        issuer_id=claims["iss"],
        licence_digest=bytes.fromhex(digest),
        package_id=inner["package_id"],
        node_id=claims["aud"],
        buyer_id=claims["sub"],
        issued_at_s=claims["iat"],
        content_key_box=content_key_box,
        confirmation_key_box=_box(inner, "confirmation_key_box"),
        input_key_box=_box(inner, "input_key_box", MAX_RECORD_BOX_BYTES),
        token=token,
        tier=inner.get("tier"),
        tier_key_box=_box(inner, "tier_key_box"),
    )


def _tier_key(secrets: PackageSecrets, licence: Licence) -> TierKey | None:
    """Return the key that the licence's tier is worth; never one above it."""
    if secrets.tier_key is None:
        return None
    top, tier = secrets.tier_key.tier, licence.terms.tier
    if tier > top:
        raise Denied(
            f"the package has no tier {tier}; its tiers are 1 to {top}",
            reason="tier-unavailable",
            remedy="issue the licence for a tier that the package has",
        )
    return secrets.tier_key.at(tier)


def _buyer_keys(secrets: PackageSecrets, record: CopyrightRecord | None) -> tuple[InputKey | None, InputKey | None]:
    """Return the key that the buyer gets and the key that transforms are made from; the same one without a record."""
    if secrets.by_record:
        _match(record is not None, "the package is for buyers by copyright record; the licence has none", _KEY_REMEDY)
    else:
        _match(record is None, "the package was not made for copyright records; the licence has one", _RECORD_REMEDY)
    master = secrets.input_key
    if master is None or record is None:
        return master, master
    own = buyer_input_key(master, record)
    return own, bound_key(own, record)


def _box(fields: dict[str, Any], name: str, most: int = MAX_BOX_BYTES) -> bytes | None:
    text = fields.get(name)
    if text is None:
        return None
    if not isinstance(text, str):
        raise Malformed(f"{name} is not a string")
    return b64u_decode(text, max_bytes=most)


def _prefix(purpose: str, place: tuple[bytes, str]) -> bytes:
    licence_digest, package_id = place
    return _BOX_LABEL + length_prefixed(purpose.encode("ascii"), licence_digest, package_id.encode("ascii"))


def _seal(recipient: PublicIdentity, purpose: str, place: tuple[bytes, str], key: Key32, tail: bytes = b"") -> str:
    return b64u(recipient.seal(SecretBytes(_prefix(purpose, place) + key.reveal() + tail)))


def _open(grant: Grant, recipient: Identity, purpose: str, box: bytes, tail: bytes = b"") -> Key32:
    text = recipient.open(box)
    prefix = _prefix(purpose, (grant.licence_digest, grant.package_id))
    end = len(prefix) + 32
    _match(
        text.startswith(prefix) and len(text) == end + len(tail) and text[end:] == tail,
        "a sealed key was made for another grant or purpose",
    )
    return Key32(text[len(prefix) : end])


_REMEDY = "use the grant that was issued with this licence"
_KEY_REMEDY = (
    "give the package's own secrets; for a package that was trained for copyright records, issue the licence with the "
    "buyer's record"
)
_RECORD_REMEDY = (
    "give the package's own secrets and the buyer's record letter by letter; for a package that was not trained for "
    "copyright records, issue the licence without one"
)


def _match(holds: bool, otherwise: str, remedy: str = _REMEDY) -> None:
    if not holds:
        raise Denied(otherwise, reason="grant-mismatch", remedy=remedy)
