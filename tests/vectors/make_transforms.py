"""Writes tests/vectors/transforms.json: `python tests/vectors/make_transforms.py`. Same bytes on every run.

The values come from the naive implementation in tests/support, never from the code they test.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from support import naive_transforms as naive  # noqa: E402 - the path above comes first

TARGET = HERE / "transforms.json"
SHORT_BYTES = 192

ABOUT = (
    "Keyed input transforms, docs/spec.md rules T-1 to T-24. `keys` names 32-byte keys in hex. Byte i of every input "
    "image, flattened channel by channel, row by row, is (i * i + 7 * i + seed) mod 256. `output` is the transformed"
    "image in the same order in hex; images above 192 bytes have only its SHA-256. `tables` are those of an ffx step, "
    "256 bytes in hex each: the one of a step without positions, or those of the first masked positions. `isnn` holds "
    "the signs of a block in the order of rule T-10 and, by content, the weights of its cells, channel by channel."
)

KEYS = {
    "zeros": bytes(32),
    "ones": b"\xff" * 32,
    "counting": bytes(range(32)),
    "alpha": hashlib.sha256(b"alpha").digest(),
    "beta": hashlib.sha256(b"beta").digest(),
}

CASES = [
    # spec, channels, height, width
    ("shf:1", 3, 2, 3), ("shf:2", 1, 2, 2), ("shf:2", 1, 4, 4), ("shf:2", 3, 4, 4), ("shf:2", 4, 2, 6),
    ("shf:4", 1, 8, 8), ("shf:4", 3, 4, 8), ("shf:4", 3, 32, 32), ("shf:7", 1, 28, 28), ("shf:8", 1, 8, 8),
    ("shf:8", 3, 16, 24), ("shf:16", 3, 32, 32), ("shf:32", 3, 32, 32), ("shf:3", 1, 3, 9), ("shf:28", 1, 28, 28),
    ("np:1", 3, 2, 2), ("np:2", 1, 2, 2), ("np:2", 3, 4, 4), ("np:3", 1, 3, 6), ("np:4", 1, 8, 8),
    ("np:4", 3, 8, 4), ("np:5", 1, 10, 5), ("np:8", 3, 8, 8), ("np:16", 1, 16, 32), ("np:32", 3, 64, 32),
    ("shf:4,np:4", 1, 8, 8), ("np:4,shf:4", 1, 8, 8), ("shf:4,np:4", 3, 32, 32), ("shf:2,np:4", 1, 8, 8),
    ("shf:8,np:8", 1, 8, 8), ("shf:2,shf:4", 1, 8, 8), ("np:2,np:4", 3, 8, 8), ("np:4,np:4", 1, 4, 4),
    ("shf:4,shf:4", 1, 4, 4), ("shf:2,np:2,shf:4,np:4", 3, 8, 8), ("shf:8,np:8,shf:4,np:4,shf:2,np:2", 1, 8, 8),
    ("shf:1,np:1,shf:2,np:2,shf:4,np:4,shf:8,np:8", 3, 8, 8), ("shf:16,np:4", 3, 32, 32), ("np:16,shf:2", 2, 16, 16),
    ("shf:4,np:4", 5, 4, 4), ("shf:6,np:3", 3, 6, 12),
    ("ffx:1", 2, 2, 2), ("ffx:2", 1, 2, 2), ("ffx:2", 3, 4, 4), ("ffx:3", 1, 3, 6), ("ffx:4", 1, 8, 8),
    ("ffx:4", 3, 32, 32), ("ffx:8", 3, 16, 24), ("ffx:16", 1, 16, 32), ("ffx:32", 3, 32, 64), ("ffx:7", 1, 28, 28),
    ("ffx:1:positions", 3, 2, 2), ("ffx:2:positions", 1, 2, 2), ("ffx:2:positions", 3, 4, 4),
    ("ffx:4:positions", 1, 8, 8), ("ffx:4:positions", 3, 8, 8), ("ffx:16:positions", 2, 16, 32),
    ("shf:4,ffx:4", 3, 8, 8), ("ffx:4,shf:4", 3, 8, 8), ("np:4,ffx:4", 1, 8, 8), ("ffx:4,np:4", 1, 8, 8),
    ("shf:4,np:4,ffx:4", 3, 32, 32), ("ffx:4,ffx:4", 1, 4, 4), ("ffx:4,np:2,ffx:2", 1, 8, 8),
    ("ffx:2,shf:8,ffx:4", 3, 8, 8),
    ("np:4,ffx:4:positions,np:4", 1, 8, 8), ("shf:2,ffx:4:positions,shf:8", 1, 8, 8),
    ("ffx:4:positions,ffx:2", 3, 8, 8), ("ffx:4,ffx:8:positions", 1, 8, 8), ("shf:16,np:4,ffx:8", 3, 32, 32),
    ("ffx:8:positions,ffx:4:positions,np:2,shf:8", 3, 8, 16),
    ("ffx:1,np:1,shf:1,ffx:2,np:2,shf:2,ffx:4,ffx:8", 3, 8, 8),
    ("isnn:1:1", 3, 2, 2), ("isnn:2:8", 1, 4, 4), ("isnn:3:5", 3, 3, 6), ("isnn:4:12", 3, 32, 32),
    ("isnn:8:64", 1, 8, 8), ("isnn:16:4", 3, 16, 32), ("isnn:28:12", 1, 28, 28), ("isnn:32:16", 4, 32, 64),
    ("isnn:4:12:content", 1, 8, 8), ("isnn:4:12:content", 3, 8, 8), ("isnn:6:3:content", 1, 6, 12),
    ("isnn:8:12:content", 3, 32, 32), ("isnn:8:12:content", 3, 8, 8), ("isnn:14:16:content", 1, 28, 28),
    ("isnn:16:64:content", 3, 16, 32), ("isnn:32:1:content", 5, 32, 32),
]  # fmt: skip

REFUSED_TEXTS = [
    "", "shf", "shf:", ":4", "shf:0", "shf:04", "shf:-4", "shf:+4", "shf:4.0", "shf:33", "shf:4,", ",shf:4",
    "shf:4,,np:4", "shf:4;np:4", "SHF:4", "shf :4", "shf:4 ", " shf:4", "ffx", "ffx:4:", "ffx:4:position",
    "ffx:4:positions:",
    "ffx:positions", "shf:4:positions", "np:4:positions", "FFX:4", "ffx:33", "ffx:4 :positions",
    "xor:4", "shf:4\n",
    "shf:\u0664", "shf:99999", "isnn:8", "isnn:8:0", "isnn:8:65", "isnn:8:012", "isnn:8:12:", "isnn:8:12:fixed",
    "isnn:8:content", "isnn:6:12:positions", "isnn:7:12:content", "isnn:2:12:content", "isnn:33:12", "shf:4:12",
    "np:4:12:content", "ffx:4:content", "isnn:8:12,shf:4", "np:4,isnn:8:12", "isnn:8:12,isnn:8:12",
    "shf:4,np:4,shf:4,np:4,shf:4,np:4,shf:4,np:4,shf:4",
]  # fmt: skip

REFUSED_SHAPES = [
    ("shf:4", 1, 6, 8), ("shf:4", 1, 8, 6), ("np:8", 3, 4, 4), ("shf:4,np:3", 1, 8, 8), ("shf:1", 1, 8, 8),
    ("shf:2", 0, 4, 4), ("shf:2", 1, 0, 4), ("shf:32", 65, 32, 32), ("ffx:4", 1, 6, 8), ("ffx:1", 1, 4, 4),
    ("ffx:8:positions", 3, 8, 4), ("isnn:8:12", 3, 12, 8), ("isnn:4:12:content", 1, 4, 6), ("isnn:1:12", 1, 4, 4),
]  # fmt: skip


def input_bytes(count: int, seed: int) -> bytes:
    """Return the input image of a vector, flattened."""
    return bytes((i * i + 7 * i + seed) % 256 for i in range(count))


def vector(spec: str, channels: int, height: int, width: int, key_name: str, seed: int) -> dict[str, Any]:
    """Return one vector, made by the naive implementation."""
    flat = iter(input_bytes(channels * height * width, seed))
    image = [[[next(flat) for _ in range(width)] for _ in range(height)] for _ in range(channels)]
    output = naive.apply(spec, KEYS[key_name], image)
    raw = bytes(value for plane in output for row in plane for value in row)
    found = {"spec": spec, "key": key_name, "shape": [channels, height, width], "seed": seed}
    found["output_sha256"] = hashlib.sha256(raw).hexdigest()
    return found | ({"output": raw.hex()} if len(raw) <= SHORT_BYTES else {})


def schedule(kind: str, block: int, channels: int, number: int, key_name: str) -> dict[str, Any]:
    """Return the permutation and the mask of one step."""
    order = naive.permutation(KEYS[key_name], number, (kind, block, False), channels)
    inverted = naive.mask(KEYS[key_name], number, (kind, block, False), channels)
    bits = "".join("1" if bit else "0" for bit in inverted)
    named = {"kind": kind, "block": block, "channels": channels, "step": number, "key": key_name}
    return named | {"permutation": order, "mask": bits}


def tables(block: int, channels: int, number: int, key_name: str, count: int) -> dict[str, Any]:
    """Return the masked positions and tables of one ffx step; with `count`, its first tables for positions."""
    key, step = KEYS[key_name], ("ffx", block, count > 0)
    masked = [place for place, chosen in enumerate(naive.mask(key, number, step, channels)) if chosen]
    rows = []
    for place in masked[: max(count, 1)]:
        blocks = [[value] * (block * block * channels) for value in range(256)]
        rows.append([naive.replace(key, number, step, channels, values, False)[place] for values in blocks])
    named = {"block": block, "channels": channels, "step": number, "key": key_name, "positions": count > 0}
    return named | {"masked": masked, "tables": [bytes(row).hex() for row in rows]}


def isnn(block: int, channels: int, key_name: str) -> dict[str, Any]:
    """Return the pattern and, where the form by content takes the block, the weights of one isnn step."""
    signs = "".join("+" if sign > 0 else "-" for sign in naive.isnn_signs(KEYS[key_name], block, channels))
    found: dict[str, Any] = {"block": block, "channels": channels, "key": key_name, "signs": signs}
    if block >= 4 and block % 2 == 0:
        found["cells"] = [list(weights) for weights in naive.isnn_cells(KEYS[key_name], block, channels)]
    return found


def document() -> dict[str, Any]:
    """Return the whole file."""
    names = list(KEYS)
    return {
        "about": ABOUT,
        "keys": {name: key.hex() for name, key in KEYS.items()},
        "schedules": [
            schedule("shf", 2, 1, 0, "zeros"), schedule("shf", 2, 1, 1, "zeros"), schedule("np", 2, 1, 0, "zeros"),
            schedule("shf", 4, 1, 0, "alpha"), schedule("np", 4, 1, 1, "alpha"), schedule("shf", 4, 3, 0, "counting"),
            schedule("np", 3, 1, 7, "beta"), schedule("ffx", 4, 1, 0, "alpha"), schedule("ffx", 2, 3, 2, "ones"),
        ],
        "tables": [
            tables(4, 1, 0, "alpha", 0), tables(2, 3, 2, "ones", 0), tables(2, 3, 2, "ones", 2),
            tables(4, 3, 0, "zeros", 3),
        ],
        "isnn": [isnn(3, 1, "zeros"), isnn(4, 1, "alpha"), isnn(8, 3, "counting"), isnn(14, 1, "beta")],
        "vectors": [vector(*case, names[at % len(names)], at * 11 % 256) for at, case in enumerate(CASES)],
        "refused_texts": REFUSED_TEXTS,
        "refused_shapes": [{"spec": spec, "shape": list(shape)} for spec, *shape in REFUSED_SHAPES],
    }  # fmt: skip


def render() -> str:
    """Return the file's text: one line for each entry."""
    lines = ["{"]
    for name, value in document().items():
        if isinstance(value, list):
            entries = ",\n  ".join(json.dumps(entry, separators=(",", ":")) for entry in value)
            lines.append(f' "{name}": [\n  {entries}\n ],')
        else:
            lines.append(f' "{name}": {json.dumps(value)},')
    lines[-1] = lines[-1].removesuffix(",")
    return "\n".join([*lines, "}"]) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"{len(CASES)} vectors, {TARGET.stat().st_size} bytes\n")
