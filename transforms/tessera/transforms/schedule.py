"""From 32 secret bytes to what each step does to one block (docs/spec.md, rules T-5 to T-9, T-15).

Every step draws from a stream of its own, named by its position, kind, block size and number of channels, so that no
two steps share a permutation.
"""

import itertools
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tessera.keystore.kdf import derive, expand, extract
from tessera.keystore.secrets import InputKey, Key32
from tessera.transforms.spec import MAX_BLOCK_VALUES, Kind, TransformError

SEGMENT_BYTES: Final = 8160
"""Bytes of one HKDF-Expand segment: the most that RFC 5869 allows for SHA-256."""

_WORD_VALUES: Final = 1 << 32


def step_label(step_index: int, kind: Kind, block: int, channels: int) -> str:
    """Return the readable name of a step's stream (rule T-5)."""
    return f"tessera/v1/transform/step={step_index}/kind={kind}/block={block}/channels={channels}"


def permutation(key: InputKey, step_index: int, kind: Kind, block: int, channels: int) -> NDArray[np.int64]:
    """Return the step's permutation of 0 … L-1, L = block * block * channels, int64 (rules T-6, T-7).

    Fisher-Yates from the top, each choice drawn without bias by rejection. Raises `TransformError` when L is outside
    2 … 65,536.
    """
    length = block_values(block, channels)
    return np.array(draw_order(key, step_label(step_index, kind, block, channels), length), dtype=np.int64)


def draw_order(key: InputKey, label: str, length: int) -> list[int]:
    """Return the permutation of 0 … length-1 that the stream of `label` gives (rules T-6, T-7)."""
    words = _words(key, label)
    order = list(range(length))
    for last in range(length - 1, 0, -1):
        chosen = _below(words, last + 1)
        order[last], order[chosen] = order[chosen], order[last]
    return order


def mask(key: InputKey, step_index: int, kind: Kind, block: int, channels: int) -> NDArray[np.uint8]:
    """Return L bytes, 0xFF at floor(L / 2) positions and 0 elsewhere, uint8 (rule T-8).

    The positions are the first half of the step's permutation, so every key inverts or replaces half of a block.
    """
    order = permutation(key, step_index, kind, block, channels)
    found = np.zeros(len(order), dtype=np.uint8)
    found[order[: len(order) // 2]] = 0xFF
    return found


def draw_bits(key: Key32, label: str, count: int) -> NDArray[np.uint8]:
    """Return the first `count` bits of the stream of `label`, each 0 or 1, of a byte the highest first (rule T-6)."""
    root, needed = extract(b"", key.reveal()), -(-count // 8)
    segments = [
        expand(root, _segment_label(label, number), min(SEGMENT_BYTES, needed - begin))
        for number, begin in enumerate(range(0, needed, SEGMENT_BYTES))
    ]
    return np.unpackbits(np.frombuffer(b"".join(segments), dtype=np.uint8), count=count)


def ff1_key(key: InputKey, step_index: int, block: int, channels: int) -> bytes:
    """Return the 32 secret bytes that are the AES-256 key of an `ffx` step (rule T-15)."""
    return derive(key.reveal(), f"{step_label(step_index, 'ffx', block, channels)}/ff1-key")


def block_values(block: int, channels: int) -> int:
    """Return L, the number of values of one block. Raises `TransformError` when it is outside 2 … 65,536."""
    length = block * block * channels
    if not 2 <= length <= MAX_BLOCK_VALUES:
        raise TransformError(
            f"a block of {block}x{block} pixels in {channels} channels holds {length} values, not 2 to 65536",
            remedy="Choose a larger block when there is one value, a smaller one when there are too many.",
        )
    return length


def _words(key: InputKey, label: str) -> Iterator[int]:
    """Yield the stream of `label` as big-endian 32-bit words, without end (rule T-6)."""
    root = extract(b"", key.reveal())
    for number in itertools.count():
        stream = expand(root, _segment_label(label, number), SEGMENT_BYTES)
        yield from (int.from_bytes(stream[at : at + 4], "big") for at in range(0, SEGMENT_BYTES, 4))


def _segment_label(label: str, number: int) -> bytes:
    return f"{label}/segment={number}".encode("ascii")


def _below(words: Iterator[int], bound: int) -> int:
    """Return a number in 0 … bound-1, each equally likely: words of the incomplete last run are rejected (rule T-7)."""
    limit = _WORD_VALUES - _WORD_VALUES % bound
    for word in words:
        if word < limit:
            return word % bound
    raise AssertionError("the stream of words has no end")
