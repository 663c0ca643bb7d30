"""Fixed identities and keys, the same in every run: for tests and vectors, and for nothing that should stay secret."""

from typing import Any

from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore.grant import Grant, PackageSecrets
from tessera.keystore.identity import Identity, Role
from tessera.keystore.licence import Licence, Terms
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import ContentKey, InputKey, SecretBytes
from tessera.keystore.usage import UsageDraft, UsageRecord, genesis

NOW_S = 1_800_000_000
YEAR_S = 365 * 86_400


def identity(role: Role, name: str, fill: int) -> Identity:
    """Return the identity whose seed is 32 times `fill` and whose X25519 key is 32 times `fill + 1`."""
    return Identity.from_secret(role, name, SecretBytes(bytes([fill]) * 32 + bytes([fill + 1]) * 32))


ISSUER = identity("issuer", "vendor", 0x11)
OTHER_ISSUER = identity("issuer", "other vendor", 0x21)
NODE = identity("node", "node", 0x31)
OTHER_NODE = identity("node", "other node", 0x41)
BUYER = identity("buyer", "buyer", 0x51)
OTHER_BUYER = identity("buyer", "other buyer", 0x61)

ISSUERS = {ISSUER.key_id: ISSUER.public.verify_key}
NODES = {NODE.key_id: NODE.public.verify_key}

INPUT_KEY = InputKey(bytes(range(32)))
OTHER_INPUT_KEY = InputKey(bytes(range(1, 33)))
CONTENT_KEY = ContentKey(bytes(range(32, 64)))
PACKAGE_ID = "00112233445566778899aabbccddeeff"
SECRETS = PackageSecrets(PACKAGE_ID, CONTENT_KEY, INPUT_KEY)
RECORD_SECRETS = PackageSecrets(PACKAGE_ID, CONTENT_KEY, INPUT_KEY, by_record=True)
"""With `INPUT_KEY` as the master of buyers by copyright record."""
PLAIN_SECRETS = PackageSecrets(PACKAGE_ID, CONTENT_KEY, None)

TERMS = Terms("digits", input_key_id=input_key_id(INPUT_KEY))
"""Terms for the model `digits`, any version, with `INPUT_KEY`."""


def licence(
    terms: Terms = TERMS, *, buyer: Identity = BUYER, node: Identity | None = NODE, **overrides: int
) -> Licence:
    """Return a licence `lic-1` by `ISSUER` that is valid from an hour before `NOW_S` for a year.

    `overrides` may hold `not_before_s` and `expires_at_s`.
    """
    times = {"not_before_s": NOW_S - 3600, "expires_at_s": NOW_S + YEAR_S} | overrides
    return licences.issue(
        terms,
        issuer=ISSUER,
        buyer=buyer.public,
        node=None if node is None else node.public,
        not_before_s=times["not_before_s"],
        expires_at_s=times["expires_at_s"],
        now_s=NOW_S,
        licence_id="lic-1",
    )


def grant(of: Licence, *, secrets: PackageSecrets = SECRETS, buyer: Identity = BUYER, node: Identity = NODE) -> Grant:
    """Return a grant by `ISSUER` for the licence `of`."""
    return grants.issue(of, issuer=ISSUER, secrets=secrets, buyer=buyer.public, node=node.public, now_s=NOW_S)


def draft(number: int = 1, **overrides: Any) -> UsageDraft:
    """Return the usage of request `req-<number>`: `number` samples, `number` seconds after `NOW_S`."""
    fields: dict[str, Any] = {
        "time_us": (NOW_S + number) * 1_000_000,
        "licence_id": "lic-1",
        "buyer_id": BUYER.key_id,
        "package_id": PACKAGE_ID,
        "model": "digits",
        "version": 1,
        "tier": 1,
        "samples": number,
        "bytes_in": 64 * number,
        "compute_us": 1000 * number,
        "request_id": f"req-{number}",
        "payload_digest": f"{number:064x}",
        "session_id": "session-1",
    }
    return UsageDraft(**(fields | overrides))


def chain(length: int) -> list[UsageRecord]:
    """Return the first `length` records of `NODE`'s ledger."""
    head, records = genesis(NODE.key_id), []
    for sequence in range(1, length + 1):
        records.append(draft(sequence).recorded(sequence, head))
        head = records[-1].digest
    return records
