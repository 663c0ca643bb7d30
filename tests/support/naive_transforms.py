"""The keyed transforms once more, from docs/spec.md alone: slow loops, own HKDF, nothing of `tessera.transforms`.

It makes the vectors and is compared with the fast implementation. Images are nested lists,
`image[channel][row][column]`.
"""

import functools
import hashlib
import hmac
from collections.abc import Callable, Iterator

Image = list[list[list[int]]]
Step = tuple[str, int]


def hkdf_extract(salt: bytes, secret: bytes) -> bytes:
    """Return RFC 5869's PRK."""
    return hmac.new(salt or b"\x00" * 32, secret, hashlib.sha256).digest()


def hkdf_expand(prk: bytes, info: bytes, length: int) -> bytes:
    """Return RFC 5869's OKM."""
    blocks = [b""]
    while 32 * (len(blocks) - 1) < length:
        blocks.append(hmac.new(prk, blocks[-1] + info + bytes([len(blocks)]), hashlib.sha256).digest())
    return b"".join(blocks)[:length]


def parse(text: str) -> list[Step]:
    """Return the (kind, block) pairs of a spec's text form, unchecked."""
    return [(part.split(":")[0], int(part.split(":")[1])) for part in text.split(",")]


def words(key: bytes, label: str) -> Iterator[int]:
    """Yield the 32-bit words of the label's stream."""
    prk = hkdf_extract(b"", key)
    number = 0
    while True:
        stream = hkdf_expand(prk, (label + "/segment=" + str(number)).encode(), 255 * 32)
        while stream:
            yield (stream[0] << 24) | (stream[1] << 16) | (stream[2] << 8) | stream[3]
            stream = stream[4:]
        number += 1


def permutation(key: bytes, number: int, step: Step, channels: int) -> list[int]:
    """Return the permutation of step `number`."""
    kind, block = step
    source = words(key, f"tessera/v1/transform/step={number}/kind={kind}/block={block}/channels={channels}")
    order = list(range(block * block * channels))
    i = len(order) - 1
    while i >= 1:
        word = next(source)
        runs = 2**32 // (i + 1)
        if word >= runs * (i + 1):
            continue
        j = word % (i + 1)
        swap = order[i]
        order[i] = order[j]
        order[j] = swap
        i -= 1
    return order


def mask(key: bytes, number: int, step: Step, channels: int) -> list[bool]:
    """Return which values of a block step `number` inverts."""
    order = permutation(key, number, step, channels)
    chosen = set(order[: len(order) // 2])
    return [position in chosen for position in range(len(order))]


def transform_block(key: bytes, number: int, step: Step, channels: int, values: list[int]) -> list[int]:
    """Return what step `number` makes of one flattened block."""
    if step[0] == "shf":
        return [values[source] for source in permutation(key, number, step, channels)]
    inverted = mask(key, number, step, channels)
    return [255 - value if inverted[position] else value for position, value in enumerate(values)]


def untransform_block(key: bytes, number: int, step: Step, channels: int, values: list[int]) -> list[int]:
    """Return the flattened block from which step `number` makes `values`."""
    if step[0] != "shf":
        return transform_block(key, number, step, channels, values)
    plain = [0] * len(values)
    for position, source in enumerate(permutation(key, number, step, channels)):
        plain[source] = values[position]
    return plain


def apply(text: str, key: bytes, image: Image) -> Image:
    """Return the transformed image."""
    for number, step in enumerate(parse(text)):
        image = _each_block(image, step[1], functools.partial(transform_block, key, number, step, len(image)))
    return image


def invert(text: str, key: bytes, image: Image) -> Image:
    """Return the image that `apply` turns into `image`."""
    for number, step in reversed(list(enumerate(parse(text)))):
        image = _each_block(image, step[1], functools.partial(untransform_block, key, number, step, len(image)))
    return image


def _each_block(image: Image, block: int, change: Callable[[list[int]], list[int]]) -> Image:
    channels, height, width = len(image), len(image[0]), len(image[0][0])
    result = [[[0] * width for _ in range(height)] for _ in range(channels)]
    for top in range(0, height, block):
        for left in range(0, width, block):
            places = [
                (c, top + row, left + column)
                for row in range(block)
                for column in range(block)
                for c in range(channels)
            ]
            changed = change([image[c][y][x] for c, y, x in places])
            for (c, y, x), value in zip(places, changed, strict=True):
                result[c][y][x] = value
    return result
