"""Writes tests/vectors/fingerprint.json: `python tests/vectors/make_fingerprint.py`. Same bytes on every run.

The values come from the naive implementation in tests/support, never from the code they test.
"""

import hashlib
import json
import math
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from support import naive_copyright  # noqa: E402 - the path above comes first
from support import naive_fingerprint as naive  # noqa: E402

ABOUT = (
    "Fingerprints, docs/spec.md rules F-1 to F-9. Value i of tensor t (in the order listed, from 0) of the original is "
    "(((7919 * i * i + 104729 * i + 31 * t) mod 2003) - 1001) / 4096, in the tensor's type, without the division in "
    "I32; a tensor with `tied_to` has that one's values. `chips` are the first 64 of the first tensor, highest bit "
    "first in hex, 1 for +1. `marked` is SHA-256 over all tensors by name: the name, then each value as a big-endian "
    "double. The leaked file is the marked copy in whose floating tensors values with i mod 7 = 3 are 0, else those "
    "with i mod 11 = 5 are 4096, and the others have ((i * 13) mod 9 - 4) / 8192 added, in the tensor's type. Nothing "
    "is aligned. `z` and `each` are the buyer's statistics, `z_stranger` that of the same record with ` II` behind the "
    "buyer; `log10_p` is the logarithm of the buyer's p-value when both records are tried."
)

SHAPES: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {
    "float32": [("conv.weight", "F32", (16, 8, 3, 3)), ("conv.bias", "F32", (256,)), ("head.weight", "F32", (10, 40))],
    "names": [("größe.weight", "F32", (32, 32)), ("größe.weight2", "F32", (32, 32)), ("a/segment=0", "F64", (4, 80))],
    "half": [("a.weight", "F16", (24, 48)), ("b.weight", "F16", (4, 2, 40))],
    "brain": [("a.weight", "BF16", (24, 48)), ("b.weight", "F32", (8, 32))],
    "tied": [("z.weight", "F32", (40, 30)), ("a.weight", "F32", (30, 40)), ("head.weight", "F32", (40, 30))],
    "small": [("large", "F32", (70, 1000)), ("small", "F32", (5, 51)), ("integers", "I32", (20, 20))],
}

TIED = {("tied", "head.weight"): "z.weight"}

CASES = [
    ("float32", bytes(32), ("Acme", "Globex", "L-17"), 0.01),
    ("float32", bytes(range(32)), ("Acme", "Globex", "L-18"), 0.001),
    ("names", hashlib.sha256(b"alpha").digest(), ("Müller & Söhne", "株式会社", "№ 5/2026"), 0.02),
    ("half", b"\xff" * 32, ("a", "b", "c"), 0.01),
    ("brain", bytes(range(32)), ("Acme", "Globex", "L-17"), 0.05),
    ("tied", bytes(range(32)), ("Acme", "Globex", "L-17"), 0.01),
    ("small", bytes(range(1, 33)), ("Acme", "Initech", "L-17"), 0.1),
]


def original(model: str) -> dict[str, naive.Tensor]:
    """Return the unmarked tensors that `ABOUT` describes."""
    found: dict[str, naive.Tensor] = {}
    for number, (name, kind, shape) in enumerate(SHAPES[model]):
        if (model, name) in TIED:
            found[name] = found[TIED[model, name]]
            continue
        whole = [(7919 * i * i + 104729 * i + 31 * number) % 2003 - 1001 for i in range(math.prod(shape))]
        values = [float(one) if kind == "I32" else naive.rounded(one / 4096, kind) for one in whole]
        found[name] = (kind, shape, values)
    return found


def leak(tensors: dict[str, naive.Tensor]) -> dict[str, naive.Tensor]:
    """Return what a thief made of a copy."""

    def spoilt(place: int, value: float, kind: str) -> float:
        if kind == "I32":
            return value
        if place % 7 == 3:
            return 0.0
        return 4096.0 if place % 11 == 5 else naive.rounded(value + (place * 13 % 9 - 4) / 8192, kind)

    return {
        name: (kind, shape, [spoilt(place, value, kind) for place, value in enumerate(values)])
        for name, (kind, shape, values) in tensors.items()
    }


def digest(tensors: dict[str, naive.Tensor]) -> str:
    """Return SHA-256 over all values."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(struct.pack(f">{len(tensors[name][2])}d", *tensors[name][2]))
    return found.hexdigest()


def render() -> str:
    """Return the file's text."""
    vectors = []
    for model, secret, (owner, buyer, licence), strength in CASES:
        record = naive_copyright.record_bytes(owner, buyer, licence)
        stranger = naive_copyright.record_bytes(owner, buyer + " II", licence)
        tensors = original(model)
        copy = naive.embed(tensors, secret, record, strength)
        leaked, first = leak(copy), next(iter(tensors))
        chips = naive.chips(naive.fingerprint_key(secret, record), first, 64)
        bits = "".join("1" if chip > 0 else "0" for chip in chips)
        z, each = naive.statistics(tensors, leaked, secret, record)
        vectors.append(
            {
                "tensors": [
                    {"name": name, "type": kind, "shape": shape}
                    | ({"tied_to": TIED[model, name]} if (model, name) in TIED else {})
                    for name, kind, shape in SHAPES[model]
                ],
                "secret": secret.hex(), "owner": owner, "buyer": buyer, "licence": licence, "strength": strength,
                "key": naive.fingerprint_key(secret, record).hex(), "carriers": sorted(naive.marked(tensors)),
                "chips": f"{int(bits, 2):016x}", "marked": digest(copy),
                "z": z, "each": each, "log10_p": naive.log10_p(z, each, 2),
                "z_stranger": naive.statistics(tensors, leaked, secret, stranger)[0],
            }
        )  # fmt: skip
    return json.dumps({"about": ABOUT, "vectors": vectors}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (HERE / "fingerprint.json").write_text(render(), encoding="utf-8")
    sys.stdout.write(f"{len(CASES)} vectors\n")
