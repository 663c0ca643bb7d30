"""The container: a safetensors header that follows, byte for byte, from the manifest and its signature (P-1 to P-6).

Reading never trusts what the header says about itself: the manifest is taken out and checked, the header is built anew
from it, and both must be the same bytes. So a reader accepts exactly what the writer writes.
"""

import base64
import binascii
import re
import struct
from typing import Final, NamedTuple

from tessera.keystore import canonical
from tessera.keystore.errors import Malformed
from tessera.keystore.package import fields
from tessera.keystore.package.manifest import FORMAT, Manifest
from tessera.keystore.package.parts import extents

LENGTH_BYTES: Final = 8
ALIGNMENT: Final = 8
MAX_HEADER_BYTES: Final = 8 * 2**20
SIGNATURE_BYTES: Final = 64
SIGNATURE_LABEL: Final = b"tessera/v1/package-manifest\n"

_LENGTH = struct.Struct("<Q")
_SIGNATURE = re.compile(r"[A-Za-z0-9_-]{86}")
_METADATA_FIELDS = frozenset({"format", "tessera.issuer", "tessera.manifest", "tessera.signature"})


class Header(NamedTuple):
    """A header that has the right form; whether the signature holds has not been asked yet."""

    manifest: Manifest
    manifest_json: bytes
    signature: bytes


def signed_message(manifest_json: bytes) -> bytes:
    """Return what the issuer signs: a label and the manifest's canonical JSON (rule P-5)."""
    return SIGNATURE_LABEL + manifest_json


def header_length(first_bytes: bytes) -> int:
    """Return the header's length from the file's first 8 bytes. Raises `Malformed` when it is none of ours."""
    if len(first_bytes) != LENGTH_BYTES:
        raise Malformed("the file is too short for a package")
    (length,) = _LENGTH.unpack(first_bytes)
    if not 0 < length <= MAX_HEADER_BYTES or length % ALIGNMENT:
        raise Malformed("the header's length is not one of a package")
    return int(length)


def build_header(manifest: Manifest, signature: bytes, manifest_json: bytes | None = None) -> bytes:
    """Return length ‖ header ‖ padding, everything before the body. Raises `Malformed` beyond 8 MiB.

    `manifest_json` is what `manifest.to_json()` gives, for a caller who has it.
    """
    text = manifest.to_json() if manifest_json is None else manifest_json
    tensors = {
        part.key: {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for part, begin, end in extents(manifest.parts)
    }
    metadata = {
        "format": FORMAT,
        "tessera.issuer": manifest.issuer_id,
        "tessera.manifest": text.decode("utf-8"),
        "tessera.signature": base64.urlsafe_b64encode(signature).rstrip(b"=").decode("ascii"),
    }
    raw = canonical.encode({"__metadata__": metadata, **tensors})  # of checked texts and numbers
    padded = raw + b" " * (-len(raw) % ALIGNMENT)
    if len(padded) > MAX_HEADER_BYTES:
        raise Malformed(f"the header would exceed {MAX_HEADER_BYTES} bytes: too many parts or too long a text")
    return _LENGTH.pack(len(padded)) + padded


def parse_header(raw: bytes) -> Header:
    """Return the checked header of `raw` (without the 8 length bytes). Raises `Malformed`."""
    document = canonical.scan(raw.rstrip(b" "), max_bytes=MAX_HEADER_BYTES)  # the comparison below settles its form
    if not isinstance(document, dict):
        raise Malformed("the header is not an object")
    metadata = fields.record(document.get("__metadata__"), _METADATA_FIELDS, "the header's metadata")
    manifest_json = _utf8(metadata["tessera.manifest"])
    manifest = Manifest.from_json(manifest_json)
    signature = _signature(metadata["tessera.signature"])
    if build_header(manifest, signature, manifest_json) != _LENGTH.pack(len(raw)) + raw:
        raise Malformed("the header does not follow from the manifest")
    return Header(manifest, manifest_json, signature)


def _utf8(text: object) -> bytes:
    if not isinstance(text, str):
        raise Malformed("the manifest is not a string")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:  # an escaped half of a surrogate pair
        raise Malformed("the manifest is no text") from error


def _signature(text: object) -> bytes:
    encoded = fields.text(text, _SIGNATURE, "the signature")
    try:
        return base64.b64decode(encoded + "==", altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise Malformed("the signature is not base64url") from error
