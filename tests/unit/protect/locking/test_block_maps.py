"""What a transform does to a block, taken apart and put together again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.protect.locking import BlockMap, block_map
from tessera.transforms import Transform, TransformError, TransformSpec

STEPS = st.sampled_from(["shf:1", "shf:2", "shf:4", "np:1", "np:2", "np:4", "ffx:2", "ffx:4", "ffx:4:positions"])
SPECS = st.lists(STEPS, min_size=1, max_size=4).map(lambda steps: TransformSpec.parse_text(",".join(steps)))
KEYS = st.binary(min_size=32, max_size=32).map(InputKey)
CHANNELS = st.integers(2, 4)


def applied(found: BlockMap, blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Apply a map place by place, as its definition reads."""
    made = np.empty_like(blocks)
    for place, source in enumerate(found.source):
        made[:, place] = found.values[place][blocks[:, source]]
    return made


@given(SPECS, KEYS, CHANNELS, st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_map_does_what_the_transform_does(spec: TransformSpec, key: InputKey, channels: int, seed: int) -> None:
    """For every stack; undone, it leads back; and it says truly whether it moves and what it inverts."""
    found = block_map(spec, key, channels, 4)
    blocks = np.random.default_rng(seed).integers(0, 256, (20, channels, 4, 4), dtype=np.uint8)
    flat = blocks.reshape(20, -1)
    keyed = Transform(spec, key, channels, 4, 4)(blocks).reshape(20, -1)
    assert np.array_equal(applied(found, flat), keyed)
    assert np.array_equal(applied(found.undone(), keyed), flat)
    kinds = {step.kind for step in spec.steps}
    assert found.moves <= ("shf" in kinds)
    if "ffx" not in kinds:
        assert found.inverted is not None
        assert np.array_equal(np.where(found.inverted, 255 - flat[:, found.source], flat[:, found.source]), keyed)


@given(SPECS, SPECS, KEYS, KEYS, st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_maps_follow_each_other(
    first: TransformSpec, second: TransformSpec, one: InputKey, other: InputKey, seed: int
) -> None:
    """`then` is applying one after the other."""
    before, after = block_map(first, one, 3, 4), block_map(second, other, 3, 4)
    blocks = np.random.default_rng(seed).integers(0, 256, (10, 48), dtype=np.uint8)
    assert np.array_equal(applied(before.then(after), blocks), applied(after, applied(before, blocks)))


def test_what_is_no_map_of_values_is_refused() -> None:
    """An isnn adds to values; and a block must divide the side."""
    with pytest.raises(ApiMisuse, match="adds a pattern"):
        block_map(TransformSpec.parse_text("isnn:4:12"), InputKey(bytes(32)), 3, 4)
    with pytest.raises(TransformError):
        block_map(TransformSpec.parse_text("shf:4"), InputKey(bytes(32)), 3, 6)
