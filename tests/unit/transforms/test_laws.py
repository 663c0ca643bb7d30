"""Laws of the transforms for any spec, key and shape, and what the key schedule owes its user."""

import contextlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import naive_transforms as naive
from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.transforms import (
    Step,
    Transform,
    TransformError,
    TransformSpec,
    block_positions,
    mask,
    permutation,
    step_label,
)
from tessera.transforms.compiled import Implementation
from tessera.transforms.passes import step_tables

keys = st.binary(min_size=32, max_size=32).map(InputKey)


@st.composite
def stacks(draw: st.DrawFn) -> tuple[TransformSpec, tuple[int, int, int]]:
    """Draw a spec and a (C, H, W) that it fits."""
    unit = draw(st.sampled_from([2, 3, 4, 6, 8]))
    divisors = [size for size in range(2, unit + 1) if unit % size == 0]
    blocks = st.sampled_from(divisors)
    step = st.builds(Step, kind=st.sampled_from(["shf", "np", "ffx"]), block=blocks)
    step |= st.builds(Step, kind=st.just("ffx"), block=blocks, positions=st.just(True))
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
    implementation: Implementation,
    stack: tuple[TransformSpec, tuple[int, int, int]],
    key: InputKey,
    count: int,
    seed: int,
) -> None:
    """The inverse undoes the transform, each image is what the naive implementation gives, in either layout."""
    spec, shape = stack
    batch = pixels((count, *shape), seed)
    before = batch.copy()
    lock = Transform(spec, key, *shape, implementation=implementation)
    locked = lock(batch)
    assert locked.dtype == np.uint8
    assert (lock.inverse(locked) == batch).all()
    assert (batch == before).all()
    if count:
        assert locked[0].tolist() == naive.apply(str(spec), key.reveal(), batch[0].tolist())
        assert (lock(batch[0]) == locked[0]).all()
    planes = np.ascontiguousarray(batch.transpose(1, 2, 3, 0))
    assert (lock.images_last(planes) == locked.transpose(1, 2, 3, 0)).all()


@settings(max_examples=60, deadline=None)
@given(stack=stacks())
def test_spec_forms(stack: tuple[TransformSpec, tuple[int, int, int]]) -> None:
    """Text and JSON forms give the same spec back."""
    spec, _ = stack
    assert TransformSpec.parse_text(str(spec)) == spec
    assert TransformSpec.from_json(spec.to_json()) == spec


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.sampled_from(["kind", "block", "tables"]), inner),
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
        [{"kind": "shf", "block": True}], [{"kind": "xor", "block": 4}],
        [{"kind": "ffx", "block": 4, "tables": "one"}], [{"kind": "ffx", "block": 4, "tables": None}],
        [{"kind": "ffx", "block": 4, "tables": True}], [{"kind": "ffx", "block": 4, "tables": ["positions"]}],
        [{"kind": "shf", "block": 4, "tables": "positions"}], [{"kind": "np", "block": 4, "tables": "positions"}],
        [{"kind": "ffx", "tables": "positions"}], [{"kind": "ffx", "block": 4, "positions": True}],
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
def test_refused_arrays(implementation: Implementation, array: Any) -> None:
    """Anything but uint8 of the set-up's shape is refused both ways, with the remedy (rule T-11)."""
    lock = Transform(
        TransformSpec.parse_text("shf:4,np:4"), InputKey(bytes(32)), 1, 8, 8, implementation=implementation
    )
    for direction in (lock, lock.inverse, lock.images_last):
        with pytest.raises(TransformError) as caught:
            direction(array)
        assert caught.value.remedy


@pytest.mark.parametrize("text", ["shf:4", "np:2", "shf:4,np:2", "ffx:4", "np:4,ffx:2:positions"])
def test_layouts_do_not_matter(implementation: Implementation, text: str) -> None:
    """Strided, reversed and read-only views give what their contiguous copy gives, contiguous."""
    lock = Transform(TransformSpec.parse_text(text), InputKey(bytes(32)), 2, 8, 8, implementation=implementation)
    wide = pixels((4, 2, 16, 16), 1)
    for view in (wide[:, :, ::2, 1::2], wide[::-1, ::-1, 8:, :8], wide.transpose(0, 1, 3, 2)[:, :, :8, :8]):
        view.flags.writeable = False
        assert (lock(view) == lock(np.ascontiguousarray(view))).all()
        assert lock(view).flags.c_contiguous
        assert (lock.inverse(lock(view)) == view).all()


def test_masks_are_balanced() -> None:
    """Every key inverts exactly half of a block, the half rounded down when the count is odd (rule T-8)."""
    for index in range(40):
        key = InputKey(bytes([index]) * 32)
        for block, channels, kind in ((2, 1, "np"), (4, 3, "ffx"), (3, 1, "np"), (5, 3, "ffx")):
            inverted = mask(key, 0, kind, block, channels)  # type: ignore[arg-type]
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


def test_set_up_is_shared_and_shows_nothing(implementation: Implementation) -> None:
    """Equal spec, key and shape share a read-only set-up, another key does not; no repr or cache key shows the key."""
    from tessera.transforms import apply

    key = InputKey(b"canary-key-that-must-not-be-seen")
    spec = TransformSpec.parse_text("shf:4,np:4,ffx:4")
    first, second, other = (
        Transform(spec, made, 3, 8, 8, implementation=implementation)
        for made in (key, InputKey(key.reveal()), InputKey(bytes(32)))
    )
    assert first._ready is second._ready
    assert (first.index != other.index).any()
    for done in first.passes():
        for array in (done.index, done.after, done.before, done.tables, done.choice):
            assert array is None or not array.flags.writeable
    seen = f"{first!r} {apply._cache.keys()!r}"
    assert "canary" not in seen
    assert key.reveal().hex() not in seen
    assert repr(first) == "Transform('shf:4,np:4,ffx:4', 3x8x8)"


def test_the_cache_is_bounded() -> None:
    """A client with many keys does not grow without end."""
    from tessera.transforms import apply

    spec = TransformSpec.parse_text("np:2")
    for index in range(80):
        Transform(spec, InputKey(index.to_bytes(32, "big")), 1, 2, 2)
    assert len(apply._cache) <= 32


LARGE = [
    # Several strips, one strip, and passes that do not fold: spec, shape
    ("shf:4", (3, 224, 224)), ("np:16", (3, 240, 320)), ("shf:8,np:4,ffx:2", (3, 240, 320)), ("ffx:16", (1, 1040, 208)),
    ("ffx:8:positions,np:4", (3, 240, 320)), ("np:4,ffx:32:positions,shf:16,ffx:16:positions", (3, 224, 224)),
    ("ffx:32:positions,np:2,ffx:16:positions,shf:32", (3, 64, 64)), ("ffx:4,ffx:2,ffx:8,np:4,ffx:16", (3, 48, 80)),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("text", "shape"), LARGE, ids=str)
def test_large_images(implementation: Implementation, text: str, shape: tuple[int, int, int]) -> None:
    """Images of several strips and stacks of several passes are what the steps give one after the other."""
    key, spec = InputKey(bytes(range(32))), TransformSpec.parse_text(text)
    images = pixels((2, *shape), 9)
    lock = Transform(spec, key, *shape, implementation=implementation)
    locked = lock(images)
    assert (locked == step_by_step(spec, key, images)).all()
    assert (lock.inverse(locked) == images).all()
    assert (lock.images_last(np.ascontiguousarray(images.transpose(1, 2, 3, 0)))[..., 1] == locked[1]).all()
    assert lock(images[:0]).shape == (0, *shape)


def step_by_step(spec: TransformSpec, key: InputKey, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return what the steps give one by one, from permutations, masks and tables alone; nothing is folded."""
    channels, height, width = images.shape[1:]
    for number, step in enumerate(spec.steps):
        places = block_positions(channels, height, width, step.block)
        blocks = images.reshape(len(images), -1)[:, places]
        if step.kind == "shf":
            blocks = blocks[:, :, permutation(key, number, "shf", step.block, channels)]
        elif step.kind == "np":
            blocks = blocks ^ mask(key, number, "np", step.block, channels)
        else:
            tables, chosen = step_tables(key, number, step, channels)
            blocks = tables[chosen, blocks]
        changed = np.empty_like(images).reshape(len(images), -1)
        changed[:, places] = blocks
        images = changed.reshape(images.shape)
    return images


def test_a_stack_that_cancels_is_still_a_copy(implementation: Implementation) -> None:
    """Where a key makes a step undo the one before, the result is an array of its own all the same."""
    spec = TransformSpec.parse_text("shf:1,shf:1")
    keys = [InputKey(bytes([index]) * 32) for index in range(8)]
    locks = [Transform(spec, key, 2, 1, 1, implementation=implementation) for key in keys]
    images = pixels((3, 2, 1, 1), 4)
    same = [lock for lock in locks if (lock(images) == images).all()]
    assert same
    for lock in locks:
        assert not np.shares_memory(lock(images), images)
        assert not np.shares_memory(lock.inverse(images), images)


def test_arrays_that_others_read(implementation: Implementation) -> None:
    """`index` and `xor` are the stack without ffx (rule T-14); with ffx `passes()` is (rule T-19)."""
    key, image = InputKey(bytes(range(32))), pixels((3, 8, 16), 2)
    lock = Transform(TransformSpec.parse_text("shf:4,np:2"), key, 3, 8, 16, implementation=implementation)
    assert (lock(image).reshape(-1) == image.reshape(-1)[lock.index] ^ lock.xor).all()
    spec = TransformSpec.parse_text("np:8,shf:4,ffx:4:positions,np:2,ffx:8")
    with_tables = Transform(spec, key, 3, 8, 16, implementation=implementation)
    with pytest.raises(ApiMisuse):
        _ = with_tables.xor
    (done,) = with_tables.passes()
    assert done.index is not None
    assert done.choice is not None
    assert done.before is not None
    assert done.after is not None
    found = done.tables[done.choice, image.reshape(-1)[done.index] ^ done.before] ^ done.after
    assert (with_tables(image).reshape(-1) == found).all()


def test_ffx_changes_half_of_the_positions_only(implementation: Implementation) -> None:
    """Values outside the mask pass unchanged; inside, every position is a permutation of all bytes (rule T-18)."""
    key = InputKey(bytes(range(32)))
    lock = Transform(TransformSpec.parse_text("ffx:2:positions"), key, 1, 2, 2, implementation=implementation)
    every = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1), (256, 1, 2, 2))
    locked = lock(every).reshape(256, 4)
    chosen = mask(key, 0, "ffx", 2, 1) != 0
    assert (locked[:, ~chosen] == np.arange(256)[:, np.newaxis]).all()
    assert all(sorted(column.tolist()) == list(range(256)) for column in locked.T)
    assert (locked[:, chosen][:, 0] != locked[:, chosen][:, 1]).any()
    one = Transform(TransformSpec.parse_text("ffx:2"), key, 1, 2, 2, implementation=implementation)(every).reshape(
        256, 4
    )
    assert (one[:, chosen][:, 0] == one[:, chosen][:, 1]).all()
