"""Laws of the transforms for any spec, key and shape, and what the key schedule owes its user."""

import contextlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import naive_transforms as naive
from tessera.keystore.secrets import InputKey
from tessera.transforms import Step, Transform, TransformError, TransformSpec, mask, permutation, step_label

keys = st.binary(min_size=32, max_size=32).map(InputKey)


@st.composite
def stacks(draw: st.DrawFn) -> tuple[TransformSpec, tuple[int, int, int]]:
    """Draw a spec and a (C, H, W) that it fits."""
    unit = draw(st.sampled_from([2, 3, 4, 6, 8]))
    divisors = [size for size in range(2, unit + 1) if unit % size == 0]
    step = st.builds(Step, kind=st.sampled_from(["shf", "np"]), block=st.sampled_from(divisors))
    spec = TransformSpec(tuple(draw(st.lists(step, min_size=1, max_size=8))))
    channels, down, across = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    return spec, (channels, unit * down, unit * across)


def pixels(shape: tuple[int, ...], seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return random pixels."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(stack=stacks(), key=keys, count=st.integers(0, 3), seed=st.integers(0, 2**32 - 1))
def test_inverse_and_naive(
    stack: tuple[TransformSpec, tuple[int, int, int]], key: InputKey, count: int, seed: int
) -> None:
    """The inverse undoes the transform bit for bit, and each image is what the naive implementation gives."""
    spec, shape = stack
    batch = pixels((count, *shape), seed)
    before = batch.copy()
    lock = Transform(spec, key, *shape)
    locked = lock(batch)
    assert locked.dtype == np.uint8
    assert (lock.inverse(locked) == batch).all()
    assert (batch == before).all()
    if count:
        assert locked[0].tolist() == naive.apply(str(spec), key.reveal(), batch[0].tolist())
        assert (lock(batch[0]) == locked[0]).all()


@settings(max_examples=60, deadline=None)
@given(stack=stacks())
def test_spec_forms(stack: tuple[TransformSpec, tuple[int, int, int]]) -> None:
    """Text and JSON forms give the same spec back."""
    spec, _ = stack
    assert TransformSpec.parse_text(str(spec)) == spec
    assert TransformSpec.from_json(spec.to_json()) == spec


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.sampled_from(["kind", "block", "x"]), inner),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(value=json_values, text=st.text(max_size=40))
def test_hostile_specs(value: object, text: str) -> None:
    """Whatever a manifest or a command line holds, the answer is a spec or the one typed error."""
    with contextlib.suppress(TransformError):
        assert TransformSpec.from_json(value).to_json() == value
    with contextlib.suppress(TransformError):
        assert str(TransformSpec.parse_text(text)) == text


@pytest.mark.parametrize(
    "value",
    [
        None, {}, [], "shf:4", [{"kind": "shf"}], [{"kind": "shf", "block": 4, "key": "x"}],
        [{"kind": "shf", "block": "4"}], [{"kind": "shf", "block": 4.0}],
        [{"kind": "shf", "block": True}], [{"kind": "ffx", "block": 4}],
        [{"kind": "shf", "block": 0}], [{"kind": "shf", "block": 33}], [{"kind": ["shf"], "block": 4}],
        [{"kind": "shf", "block": 4}] * 9, [{"kind": "shf", "block": 4}] * 100_000,
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_refused_json(value: object) -> None:
    """JSON that no spec writes is refused (rule T-4)."""
    with pytest.raises(TransformError):
        TransformSpec.from_json(value)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 8, 8), np.int16), np.zeros((1, 8, 8), np.float32), np.zeros((8, 8), np.uint8),
        np.zeros((1, 1, 1, 8, 8), np.uint8), np.zeros((1, 8, 4), np.uint8), np.zeros((3, 8, 8), np.uint8), [[1]],
        np.zeros((1, 8, 8), bool),
    ],
    ids=str,
)  # fmt: skip
def test_refused_arrays(array: Any) -> None:
    """Anything but uint8 of the set-up's shape is refused both ways, with the remedy (rule T-11)."""
    lock = Transform(TransformSpec.parse_text("shf:4,np:4"), InputKey(bytes(32)), 1, 8, 8)
    for direction in (lock, lock.inverse):
        with pytest.raises(TransformError) as caught:
            direction(array)
        assert caught.value.remedy


def test_layouts_do_not_matter() -> None:
    """Strided, reversed and read-only views give what their contiguous copy gives."""
    lock = Transform(TransformSpec.parse_text("shf:4,np:2"), InputKey(bytes(32)), 2, 8, 8)
    wide = pixels((4, 2, 16, 16), 1)
    for view in (wide[:, :, ::2, 1::2], wide[::-1, ::-1, 8:, :8], wide.transpose(0, 1, 3, 2)[:, :, :8, :8]):
        view.flags.writeable = False
        assert (lock(view) == lock(np.ascontiguousarray(view))).all()


def test_masks_are_balanced() -> None:
    """Every key inverts exactly half of a block, the half rounded down when the count is odd (rule T-8)."""
    for index in range(40):
        key = InputKey(bytes([index]) * 32)
        for block, channels in ((2, 1), (4, 3), (3, 1), (5, 3)):
            inverted = mask(key, 0, "np", block, channels)
            assert set(inverted.tolist()) <= {0, 255}
            assert int((inverted == 255).sum()) == block * block * channels // 2


@pytest.mark.slow
def test_permutations_are_even() -> None:
    """Over 2,400 keys each order of four values comes about 100 times: chi-squared with 23 degrees stays below 60."""
    counts = Counter(
        tuple(permutation(InputKey(index.to_bytes(32, "big")), 0, "shf", 2, 1).tolist()) for index in range(2400)
    )
    assert len(counts) == 24
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 60


def test_streams_are_separate() -> None:
    """Step, kind, block and channels each give another permutation from the same key (rule T-5)."""
    key = InputKey(bytes(range(32)))
    orders = [
        permutation(key, *arguments).tolist()[:16]
        for arguments in ((0, "shf", 4, 3), (1, "shf", 4, 3), (0, "np", 4, 3), (0, "shf", 8, 3), (0, "shf", 4, 1))
    ]
    assert len({tuple(order) for order in orders}) == len(orders)
    assert step_label(0, "shf", 4, 3) == "tessera/v1/transform/step=0/kind=shf/block=4/channels=3"


def test_a_stream_goes_on_past_one_segment() -> None:
    """The largest blocks need several HKDF segments and are still permutations."""
    order = permutation(InputKey(bytes(32)), 0, "shf", 32, 3)
    assert sorted(order.tolist()) == list(range(3072))


def test_set_up_is_shared_and_shows_nothing() -> None:
    """Equal spec, key and shape share a read-only set-up, another key does not; no repr or cache key shows the key."""
    from tessera.transforms import apply

    key = InputKey(b"canary-key-that-must-not-be-seen")
    spec = TransformSpec.parse_text("shf:4,np:4")
    first, second = Transform(spec, key, 3, 8, 8), Transform(spec, InputKey(key.reveal()), 3, 8, 8)
    other = Transform(spec, InputKey(bytes(32)), 3, 8, 8)
    assert first.index is second.index
    assert (first.index != other.index).any()
    assert not first.index.flags.writeable
    assert not first.xor.flags.writeable
    seen = f"{first!r} {apply._cache.keys()!r}"
    assert "canary" not in seen
    assert key.reveal().hex() not in seen
    assert repr(first) == "Transform('shf:4,np:4', 3x8x8)"


def test_the_cache_is_bounded() -> None:
    """A client with many keys does not grow without end."""
    from tessera.transforms import apply

    spec = TransformSpec.parse_text("np:2")
    for index in range(80):
        Transform(spec, InputKey(index.to_bytes(32, "big")), 1, 2, 2)
    assert len(apply._cache) <= 32
