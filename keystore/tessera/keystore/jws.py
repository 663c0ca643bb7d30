"""Compact JWS with EdDSA and nothing else (RFC 7515, RFC 8037; docs/spec.md, rules K-2 and K-9).

    token = sign("tessera-licence+jwt", claims, issuer)
    claims = verify(token, typ="tessera-licence+jwt", keys={issuer.key_id: issuer.public.verify_key})

The header has exactly the fields `alg` = "EdDSA", `kid` and `typ`; the caller names the `typ` it expects, so one kind
of document can never be presented as another. Header and payload are canonical JSON, base64url is canonical, and what
is verified are the bytes that were received. `verify` goes: form → key by `kid` → signature; what the claims say is the
caller's to judge.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tessera.keystore import _ed25519, canonical
from tessera.keystore._claims import KEY_ID
from tessera.keystore.canonical import Json
from tessera.keystore.errors import Malformed, Tampered, Unauthenticated

if TYPE_CHECKING:
    from tessera.keystore.identity import Signer

ALGORITHM = "EdDSA"
MAX_TOKEN_BYTES = 65_536
MAX_HEADER_BYTES = 256

_ALPHABET = re.compile(r"[A-Za-z0-9_-]*")


def b64u(raw: bytes) -> str:
    """Return base64url without padding (RFC 4648 section 5)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def b64u_decode(text: str, *, max_bytes: int) -> bytes:
    """Return the bytes that `b64u` writes as exactly `text`.

    Raises `Malformed` for padding, foreign characters, spare bits in the last character, or more than `max_bytes`.
    """
    if len(text) * 3 // 4 > max_bytes:
        raise Malformed(f"base64url value exceeds {max_bytes} bytes")
    if _ALPHABET.fullmatch(text) is None or len(text) % 4 == 1:
        raise Malformed("not base64url without padding")
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64u(raw) != text:  # the last character may carry bits that decoders drop
        raise Malformed("base64url is not canonical")
    return raw


@dataclass(frozen=True, slots=True)
class Parsed:
    """A token whose form is right and whose signature nobody has looked at."""

    key_id: str
    typ: str
    claims: dict[str, Any]
    signing_input: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def sign(typ: str, claims: dict[str, Json], signer: "Signer") -> str:
    """Return the compact JWS of `claims`. Raises `ApiMisuse` for claims that have no canonical form."""
    header = canonical.dumps({"alg": ALGORITHM, "kid": signer.key_id, "typ": typ})
    signing_input = f"{b64u(header)}.{b64u(canonical.dumps(claims))}"
    return f"{signing_input}.{b64u(signer.sign(signing_input.encode('ascii')))}"


def parse(token: str, *, typ: str, max_bytes: int = MAX_TOKEN_BYTES) -> Parsed:
    """Return the parts of a token of kind `typ` without looking at the signature. Raises `Malformed`."""
    if not isinstance(token, str) or len(token) > max_bytes or not token.isascii():
        raise Malformed(f"not a compact JWS of at most {max_bytes} ASCII characters")
    parts = token.split(".", 3)
    if len(parts) != 3:
        raise Malformed("a compact JWS has three parts")
    header, payload, signature = parts
    key_id = _key_id(header, typ)
    claims = canonical.loads(b64u_decode(payload, max_bytes=max_bytes), max_bytes=max_bytes)
    if not isinstance(claims, dict):
        raise Malformed("the payload is not a JSON object")
    raw_signature = b64u_decode(signature, max_bytes=_ed25519.SIGNATURE_BYTES)
    if len(raw_signature) != _ed25519.SIGNATURE_BYTES:
        raise Malformed("an Ed25519 signature has 64 bytes")
    return Parsed(key_id, typ, claims, f"{header}.{payload}".encode("ascii"), raw_signature)


def verify(token: str, *, typ: str, keys: Mapping[str, bytes], max_bytes: int = MAX_TOKEN_BYTES) -> dict[str, Any]:
    """Return the claims of a token of kind `typ` that one of `keys` (key id → 32-byte Ed25519 public key) has signed.

    Raises `Malformed` (form), `Unauthenticated` with reason `licence-issuer-unknown` (`kid` not in `keys`) or
    `Tampered` (the signature does not verify, or the key is of small order or not canonical: rule K-4).
    """
    return verify_parsed(token, typ=typ, keys=keys, max_bytes=max_bytes).claims


def verify_parsed(token: str, *, typ: str, keys: Mapping[str, bytes], max_bytes: int = MAX_TOKEN_BYTES) -> Parsed:
    """Return all parts of a token whose signature verifies. Raises as `verify`."""
    parsed = parse(token, typ=typ, max_bytes=max_bytes)
    public_key = keys.get(parsed.key_id)
    if public_key is None:
        raise Unauthenticated("the signer's key is not trusted here", reason="licence-issuer-unknown")
    if not _ed25519.verifies(public_key, parsed.signing_input, parsed.signature):
        raise Tampered("the signature does not verify")
    return parsed


@lru_cache(maxsize=256)  # a header says who signed what kind of thing; every receipt of a node has the same one
def _key_id(encoded_header: str, typ: str) -> str:
    raw_header = b64u_decode(encoded_header, max_bytes=MAX_HEADER_BYTES)
    header = canonical.loads(raw_header, max_bytes=MAX_HEADER_BYTES)
    if not isinstance(header, dict) or header.keys() != {"alg", "kid", "typ"}:
        raise Malformed("the header has fields other than alg, kid and typ")
    if header["alg"] != ALGORITHM:
        raise Malformed("the header's alg is not EdDSA")
    if header["typ"] != typ:
        raise Malformed(f"the header's typ is not {typ}")
    key_id = header["kid"]
    if not isinstance(key_id, str) or KEY_ID.fullmatch(key_id) is None:
        raise Malformed("the header's kid is not a key id")
    return key_id
