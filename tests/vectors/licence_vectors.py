"""Write jws.json, licence.json and usage.json from fixed keys: `python tests/vectors/licence_vectors.py`.

Signatures are deterministic. Sealed boxes are not: a run writes other grants, and the suite checks what they open to.
"""

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from support import keys  # noqa: E402
from tessera.keystore import canonical, grant, jws, licence, proof, revocation, usage  # noqa: E402

TYP = "tessera-test+jwt"
RFC_8037 = {
    "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    "thumbprint": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    "signing_input": "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
    "signature": "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
}


def signed(header: bytes, payload: bytes) -> str:
    """Return the token of these bytes, really signed by the issuer."""
    signing_input = f"{jws.b64u(header)}.{jws.b64u(payload)}"
    return f"{signing_input}.{jws.b64u(keys.ISSUER.sign(signing_input.encode()))}"


def jws_vectors() -> dict[str, Any]:
    """Return tokens with what a verifier must answer."""
    kid = keys.ISSUER.key_id
    right = {"alg": "EdDSA", "kid": kid, "typ": TYP}
    head = canonical.dumps(right)
    body = canonical.dumps({"iss": kid, "n": 7})
    good = signed(head, body)
    other = jws.sign(TYP, {"n": 1}, keys.OTHER_ISSUER)
    parts = good.split(".")
    tokens = [
        ("ok", "ok", good),
        ("unknown-key", "Unauthenticated", other),
        ("other-payload", "Tampered", f"{parts[0]}.{jws.b64u(canonical.dumps({'iss': kid, 'n': 8}))}.{parts[2]}"),
        ("zero-signature", "Tampered", f"{parts[0]}.{parts[1]}.{jws.b64u(bytes(64))}"),
        ("alg-none", "Malformed", signed(canonical.dumps(right | {"alg": "none"}), body)),
        ("alg-hs256", "Malformed", signed(canonical.dumps(right | {"alg": "HS256"}), body)),
        ("other-typ", "Malformed", signed(canonical.dumps(right | {"typ": licence.TYP}), body)),
        ("extra-header-field", "Malformed", signed(canonical.dumps(right | {"crit": ["n"]}), body)),
        ("header-not-canonical", "Malformed", signed(json.dumps(right).encode(), body)),
        ("payload-not-canonical", "Malformed", signed(head, b'{"n": 7}')),
        ("duplicate-claim", "Malformed", signed(head, b'{"n":7,"n":8}')),
        ("payload-not-object", "Malformed", signed(head, b"[]")),
        ("padding", "Malformed", good + "=="),
        ("spare-bits", "Malformed", good[:-1] + ("B" if good[-1] == "A" else chr(ord(good[-1]) + 1))),
        ("two-parts", "Malformed", f"{parts[0]}.{parts[1]}"),
        ("empty-signature", "Malformed", f"{parts[0]}.{parts[1]}."),
    ]
    return {
        "rfc8037": RFC_8037,
        "keys": {kid: jws.b64u(keys.ISSUER.public.verify_key)},
        "tokens": [{"name": name, "expect": expect, "typ": TYP, "token": token} for name, expect, token in tokens],
    }


def licence_vectors() -> dict[str, Any]:
    """Return a licence, a grant, a revocation list, a proof and a confirmation, with the secrets behind them."""
    mine = keys.licence()
    nonce = bytes(range(100, 132))
    place = (nonce, keys.NODE.key_id, mine.digest)
    revoked = revocation.issue(3, {"lic-9": (keys.NOW_S, "key lost")}, issuer=keys.ISSUER, now_s=keys.NOW_S)
    people = (keys.ISSUER, keys.NODE, keys.BUYER)
    return {
        "identities": [
            {
                "name": person.public.role,
                "secret": person.export_secret().reveal().hex(),
                "key_id": person.key_id,
                "public": person.public.to_json().decode(),
            }
            for person in people
        ],
        "licence": {"token": mine.token, "digest": mine.digest.hex(), "terms": mine.terms.to_claims()},
        "grant": {
            "token": keys.grant(mine).token,
            "package_id": keys.PACKAGE_ID,
            "content_key": keys.CONTENT_KEY.reveal().hex(),
            "input_key": keys.INPUT_KEY.reveal().hex(),
            "input_key_id": proof.input_key_id(keys.INPUT_KEY),
            "confirmation_key": proof.confirmation_key(keys.INPUT_KEY).reveal().hex(),
            "package_secrets": keys.SECRETS.to_secret().reveal().hex(),
        },
        "revocations": {"token": revoked.token},
        "proofs": [
            {
                "name": purpose,
                "nonce": nonce.hex(),
                "node_id": keys.NODE.key_id,
                "message": proof.proof_message(purpose, *place).hex(),
                "signature": proof.sign_proof(keys.BUYER, purpose, *place).hex(),
            }
            for purpose in ("open-session", "renew-session", "fetch-grant")
        ],
        "confirmation": proof.confirm(proof.confirmation_key(keys.INPUT_KEY), *place).hex(),
    }


def usage_vectors() -> dict[str, Any]:
    """Return a chain of three records with digests, a receipt and a checkpoint."""
    node_id = keys.NODE.key_id
    head = usage.genesis(node_id)
    records = []
    for sequence in (1, 2, 3):
        record = keys.draft(sequence).recorded(sequence, head)
        head = record.digest
        records.append(record)
    return {
        "node_id": node_id,
        "node_key": keys.NODE.public.verify_key.hex(),
        "genesis": usage.genesis(node_id),
        "records": [
            {
                "name": f"record-{record.sequence}",
                "canonical": record.canonical_bytes().decode(),
                "digest": record.digest,
            }
            for record in records
        ],
        "receipt": usage.sign_receipt(records[1], keys.NODE),
        "checkpoint": usage.sign_checkpoint(node_id, 3, head, keys.NOW_S * 1_000_000, keys.NODE),
        "samples": sum(record.samples for record in records),
    }


def build() -> dict[str, dict[str, Any]]:
    """Return every document by file name."""
    return {"jws": jws_vectors(), "licence": licence_vectors(), "usage": usage_vectors()}


if __name__ == "__main__":
    assert grant.TYP == licence.GRANT_TYP
    for name, document in build().items():
        (FOLDER / f"{name}.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
