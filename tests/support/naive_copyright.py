"""Copyright records once more, from docs/spec.md alone (C rules): the standard library, nothing of ours."""

import hashlib
import hmac
import json


def record_bytes(owner: str, buyer: str, licence: str) -> bytes:
    """Return a record's canonical form."""
    members = {"owner": owner, "buyer": buyer, "licence": licence}
    return json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def buyer_key(master: bytes, record: bytes) -> bytes:
    """Return HKDF-SHA256 of the master for the record's buyer: one block of output is enough."""
    prk = hmac.new(bytes(32), master, hashlib.sha256).digest()
    return hmac.new(prk, b"tessera/v1/buyer-input-key\n" + record + b"\x01", hashlib.sha256).digest()


def bound_key(key: bytes, record: bytes) -> bytes:
    """Return the key bound to the record."""
    return hmac.new(key, b"tessera/v1/copyright-record\n" + record, hashlib.sha256).digest()
