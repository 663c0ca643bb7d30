"""The keyed transforms once more, from docs/spec.md alone: slow loops, own HKDF and FF1, nothing of ours.

It makes the vectors and is compared with the fast implementation. Images are nested lists,
`image[channel][row][column]`.
"""

import functools
import hashlib
import hmac
from collections.abc import Callable, Iterator

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Image = list[list[list[int]]]
Step = tuple[str, int, bool]
"""Kind, block size, and whether each position has a table of its own."""


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
    """Return the steps of a spec's text form, unchecked."""
    return [(part.split(":")[0], int(part.split(":")[1]), part.endswith(":positions")) for part in text.split(",")]


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


def label(number: int, step: Step, channels: int) -> str:
    """Return the name of step `number`."""
    return f"tessera/v1/transform/step={number}/kind={step[0]}/block={step[1]}/channels={channels}"


@functools.cache
def permutation(key: bytes, number: int, step: Step, channels: int) -> list[int]:
    """Return the permutation of step `number`."""
    block = step[1]
    source = words(key, label(number, step, channels))
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


@functools.cache
def mask(key: bytes, number: int, step: Step, channels: int) -> list[bool]:
    """Return which values of a block step `number` inverts."""
    order = permutation(key, number, step, channels)
    chosen = set(order[: len(order) // 2])
    return [position in chosen for position in range(len(order))]


def aes_block(key: bytes, block: bytes) -> bytes:
    """Return one AES block; the only thing here that is not written out."""
    assert len(block) == 16
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)


def ff1_round(key: bytes, radix: int, tweak: bytes, length: int, number: int, half: list[int]) -> int:
    """Return y of SP 800-38G's algorithm 7, steps 6.i to 6.iv, for the numerals `half`."""
    u = length // 2
    v = length - u
    bits = 0
    while 2**bits < radix**v:
        bits += 1
    b = -(-bits // 8)
    d = 4 * -(-b // 4) + 4
    value = 0
    for numeral in half:
        value = value * radix + numeral
    p = bytes([1, 2, 1]) + radix.to_bytes(3, "big") + bytes([10, u % 256])
    p += length.to_bytes(4, "big") + len(tweak).to_bytes(4, "big")
    q = tweak
    while (len(q) + 1 + b) % 16 != 0:
        q += b"\x00"
    q += bytes([number]) + value.to_bytes(b, "big")
    r = bytes(16)
    for start in range(0, len(p + q), 16):
        r = aes_block(key, bytes(x ^ y for x, y in zip(r, (p + q)[start : start + 16], strict=True)))
    s, j = r, 1
    while len(s) < d:
        s += aes_block(key, bytes(x ^ y for x, y in zip(r, j.to_bytes(16, "big"), strict=True)))
        j += 1
    y = 0
    for byte in s[:d]:
        y = y * 256 + byte
    return y


def ff1(key: bytes, radix: int, tweak: bytes, text: list[int], *, decrypt: bool = False) -> list[int]:
    """Return FF1 of the numerals `text`, or what FF1 turns into `text`."""
    u = len(text) // 2
    a, b = text[:u], text[u:]
    for number in reversed(range(10)) if decrypt else range(10):
        m = u if number % 2 == 0 else len(text) - u
        known, changed = (a, b) if decrypt else (b, a)
        y = ff1_round(key, radix, tweak, len(text), number, known)
        total = 0
        for numeral in changed:
            total = total * radix + numeral
        total = (total - y if decrypt else total + y) % radix**m
        c: list[int] = []
        for _ in range(m):
            c = [total % radix, *c]
            total //= radix
        a, b = (c, a) if decrypt else (b, c)
    return a + b


@functools.cache
def ff1_byte(key: bytes, tweak: bytes, value: int, decrypt: bool) -> int:
    """Return FF1 of a byte as eight binary numerals, the highest bit first."""
    found = 0
    for bit in ff1(key, 2, tweak, [int(bit) for bit in f"{value:08b}"], decrypt=decrypt):
        found = found * 2 + bit
    return found


def replace(key: bytes, number: int, step: Step, channels: int, values: list[int], decrypt: bool) -> list[int]:
    """Return a block after an ffx step, or before it."""
    aes_key = hkdf_expand(hkdf_extract(b"", key), (label(number, step, channels) + "/ff1-key").encode(), 32)
    chosen = mask(key, number, step, channels)
    found = []
    for position, value in enumerate(values):
        tweak = bytes([0, 0, position // 256, position % 256]) if step[2] else b""
        found.append(ff1_byte(aes_key, tweak, value, decrypt) if chosen[position] else value)
    return found


def transform_block(key: bytes, number: int, step: Step, channels: int, values: list[int]) -> list[int]:
    """Return what step `number` makes of one flattened block."""
    if step[0] == "shf":
        return [values[source] for source in permutation(key, number, step, channels)]
    if step[0] == "ffx":
        return replace(key, number, step, channels, values, decrypt=False)
    inverted = mask(key, number, step, channels)
    return [255 - value if inverted[position] else value for position, value in enumerate(values)]


def untransform_block(key: bytes, number: int, step: Step, channels: int, values: list[int]) -> list[int]:
    """Return the flattened block from which step `number` makes `values`."""
    if step[0] == "np":
        return transform_block(key, number, step, channels, values)
    if step[0] == "ffx":
        return replace(key, number, step, channels, values, decrypt=True)
    plain = [0] * len(values)
    for position, source in enumerate(permutation(key, number, step, channels)):
        plain[source] = values[position]
    return plain


def isnn_signs(key: bytes, block: int, channels: int) -> list[int]:
    """Return the pattern of a block, value by value in the order of rule T-10."""
    return [-1 if lowered else 1 for lowered in mask(key, 0, ("isnn", block, False), channels)]


@functools.cache
def isnn_cells(key: bytes, block: int, channels: int) -> tuple[tuple[int, ...], ...]:
    """Return for each channel the weights of the 2x2 cells of a block, row by row."""
    cells = (block // 2) * (block // 2)
    found = []
    for channel in range(channels):
        source = words(key, label(0, ("isnn", block, False), channels) + "/measure=" + str(channel))
        order = list(range(cells))
        i = cells - 1
        while i >= 1:
            word = next(source)
            if word < 2**32 // (i + 1) * (i + 1):
                j = word % (i + 1)
                order[i], order[j] = order[j], order[i]
                i -= 1
        weights = [0] * cells
        for place in range(cells // 2):
            weights[order[place]] = 1
            weights[order[cells // 2 + place]] = -1
        found.append(tuple(weights))
    return tuple(found)


def isnn_block(key: bytes, block: int, epsilon: int, content: bool, channels: int, values: list[int]) -> list[int]:
    """Return what an isnn step makes of one flattened block."""
    turn = 1
    if content:
        total = 0
        for position, value in enumerate(values):
            channel, pixel = position % channels, position // channels
            row, column = pixel // block, pixel % block
            cell = row // 2 * (block // 2) + column // 2
            total += isnn_cells(key, block, channels)[channel][cell] * value
        turn = 1 if total >= 0 else -1
    signs = isnn_signs(key, block, channels)
    return [min(255, max(0, value + turn * sign * epsilon)) for value, sign in zip(values, signs, strict=True)]


def _isnn(text: str, key: bytes, image: Image) -> Image:
    parts = text.split(":")
    block, epsilon, content = int(parts[1]), int(parts[2]), parts[3:] == ["content"]
    return _each_block(image, block, functools.partial(isnn_block, key, block, epsilon, content, len(image)))


def apply(text: str, key: bytes, image: Image) -> Image:
    """Return the transformed image."""
    if text.startswith("isnn"):
        return _isnn(text, key, image)
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
