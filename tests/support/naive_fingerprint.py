"""Fingerprints once more, from docs/spec.md alone (F rules): the standard library, value by value, nothing of ours.

A tensor is (type, shape, values in row-major order); rules F-6 and F-7 leave readers free, so nothing is aligned here.
"""

import hashlib
import hmac
import math
import struct

Tensor = tuple[str, tuple[int, ...], list[float]]


def fingerprint_key(secret: bytes, record: bytes) -> bytes:
    """Rule F-1; one block of output is enough."""
    root = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(root, b"tessera/v1/fingerprint-key\n" + record + b"\x01", hashlib.sha256).digest()


def chips(key: bytes, name: str, count: int) -> list[int]:
    """Rule F-2."""
    label = f"tessera/v1/fingerprint-chips/tensor={hashlib.sha256(name.encode()).hexdigest()}"
    root = hmac.new(bytes(32), key, hashlib.sha256).digest()
    found: list[int] = []
    segment = 0
    while len(found) < count:
        info, block = f"{label}/segment={segment}".encode(), b""
        for counter in range(1, 256):
            block = hmac.new(root, block + info + bytes([counter]), hashlib.sha256).digest()
            found += [1 if byte >> place & 1 else -1 for byte in block for place in range(7, -1, -1)]
        segment += 1
    return found[:count]


def rounded(value: float, kind: str) -> float:
    """Return a value as its type knows it (rule F-4)."""
    if kind == "F64":
        return value
    value = float(struct.unpack("<f", struct.pack("<f", value))[0])
    if kind == "F16":
        return float(struct.unpack("<e", struct.pack("<e", value))[0])
    if kind == "BF16":
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        bits += 0x7FFF + (bits >> 16 & 1)
        return float(struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0])
    return value


def marked(tensors: dict[str, Tensor]) -> dict[str, list[str]]:
    """Rule F-3: the names that carry a mark, each with those tied to it."""
    found: dict[str, list[str]] = {}
    for name in sorted(tensors):
        kind, shape, values = tensors[name]
        if kind not in {"F16", "BF16", "F32", "F64"} or len(shape) < 2 or len(values) < 256:
            continue
        if not all(map(math.isfinite, values)) or not any(values):
            continue
        tied = next((first for first in found if tensors[first] == tensors[name]), None)
        found.setdefault(tied if tied is not None else name, []).append(name)
    return found


def scale(row: list[float]) -> float:
    """Return the scale of a row (rule F-4)."""
    filled = [value for value in row if value]
    mean = math.fsum(value * value for value in filled) / max(len(filled), 1)
    return rounded(math.sqrt(mean), "F32")


def scales(tensor: Tensor) -> list[float]:
    """Return the scale of each value's row."""
    _, shape, values = tensor
    width = len(values) // shape[0]
    rows = [scale(values[at : at + width]) for at in range(0, len(values), width)]
    return [rows[place // width] for place in range(len(values))]


def embed(tensors: dict[str, Tensor], secret: bytes, record: bytes, strength: float) -> dict[str, Tensor]:
    """Rule F-4."""
    key, found = fingerprint_key(secret, record), dict(tensors)
    for first, names in marked(tensors).items():
        kind, shape, values = tensors[first]
        signs = chips(key, first, len(values))
        sums = zip(values, scales(tensors[first]), signs, strict=True)
        made = [rounded(w + strength * a * s, kind) if w else w for w, a, s in sums]
        for name in names:
            found[name] = (kind, shape, made)
    return found


def weights(original: dict[str, Tensor], leaked: dict[str, Tensor]) -> dict[str, list[float]]:
    """Rule F-8, for tensors that are paired by name."""
    found = {}
    for name in marked(original):
        ours, theirs = original[name][2], leaked[name][2]
        triples = zip(ours, theirs, scales(original[name]), strict=True)
        apart = [(other - own) / a if own and other and math.isfinite(other) else 0.0 for own, other, a in triples]
        sizes = sorted(abs(one) for one in apart if one)
        middle = (sizes[(len(sizes) - 1) // 2] + sizes[len(sizes) // 2]) / 2 if sizes else 1.0
        found[name] = [max(-2.0, min(2.0, one / middle)) for one in apart]
    return found


def statistics(
    original: dict[str, Tensor], leaked: dict[str, Tensor], secret: bytes, record: bytes
) -> tuple[float, dict[str, float]]:
    """Rule F-9: of all tensors together, and of each."""
    key, spoken = fingerprint_key(secret, record), weights(original, leaked)
    signs = {name: chips(key, name, len(values)) for name, values in spoken.items()}
    fits = {name: math.fsum(s * g for s, g in zip(signs[name], spoken[name], strict=True)) for name in spoken}
    energies = {name: math.fsum(g * g for g in values) for name, values in spoken.items()}
    total = math.fsum(energies.values())
    each = {name: fits[name] / math.sqrt(energies[name]) if energies[name] else 0.0 for name in spoken}
    return math.fsum(fits.values()) / math.sqrt(total) if total else 0.0, each


def log10_p(z: float, each: dict[str, float], records: int) -> float:
    """Rule F-9: the decimal logarithm of the p-value."""
    furthest = max(abs(z), *map(abs, each.values()))
    return min(0.0, math.log10(2 * records * (len(each) + 1)) - furthest**2 / 2 / math.log(10))
