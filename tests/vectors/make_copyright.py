"""Writes tests/vectors/copyright.json: `python tests/vectors/make_copyright.py`. Same bytes on every run.

The values come from the naive implementation in tests/support, never from the code they test.
"""

import hashlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from support import naive_copyright as naive  # noqa: E402 - the path above comes first

ABOUT = (
    "Copyright records, docs/spec.md rules C-1 to C-4. `master`, `buyer_key` and `bound_key` are 32 bytes in hex, "
    "`record` is the canonical form as text."
)

CASES = [
    (bytes(32), "Acme", "Globex", "L-17"),
    (bytes(range(32)), "Acme", "Globex", "L-17"),
    (bytes(range(32)), "Acme", "Globex", "L-18"),
    (bytes(range(32)), "Acme", "Initech", "L-17"),
    (bytes(range(32)), "Globex", "Acme", "L-17"),
    (b"\xff" * 32, "a", "b", "c"),
    (hashlib.sha256(b"alpha").digest(), "Müller & Söhne", "株式会社", "№ 5/2026"),
    (hashlib.sha256(b"beta").digest(), 'with "quotes"', "back\\slash", "a/b"),
    (hashlib.sha256(b"gamma").digest(), "x" * 128, "y" * 128, "z" * 128),
    (hashlib.sha256(b"delta").digest(), "Acme, Inc.", "Globex {LLC}", "L-17: 2026"),
]


def render() -> str:
    """Return the file's text."""
    vectors = []
    for master, owner, buyer, licence in CASES:
        record = naive.record_bytes(owner, buyer, licence)
        own = naive.buyer_key(master, record)
        vectors.append(
            {
                "master": master.hex(), "owner": owner, "buyer": buyer, "licence": licence, "record": record.decode(),
                "buyer_key": own.hex(), "bound_key": naive.bound_key(own, record).hex(),
            }
        )  # fmt: skip
    return json.dumps({"about": ABOUT, "vectors": vectors}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (HERE / "copyright.json").write_text(render(), encoding="utf-8")
    sys.stdout.write(f"{len(CASES)} vectors\n")
