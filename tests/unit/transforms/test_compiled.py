"""The compiled extension gives NumPy's bits, refuses what it cannot trust, and may be missing."""

import math
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.transforms import IMPLEMENTATION, Step, Transform, TransformSpec
from tessera.transforms.compiled import Implementation

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
KEY = InputKey(bytes(range(32)))

needs_extension = pytest.mark.skipif(IMPLEMENTATION != "compiled", reason="the extension was not built here")


@st.composite
def cases(draw: st.DrawFn) -> tuple[TransformSpec, tuple[int, int, int]]:
    """Draw a spec and a (C, H, W) that it fits, tiles of 1 to 24 pixels and up to 12 of them."""
    unit = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 8, 12, 16, 24]))
    blocks = st.sampled_from([size for size in range(1, unit + 1) if unit % size == 0])
    step = st.builds(Step, kind=st.sampled_from(["shf", "np", "ffx"]), block=blocks)
    step |= st.builds(Step, kind=st.just("ffx"), block=blocks, positions=st.just(True))
    spec = TransformSpec(tuple(draw(st.lists(step, min_size=1, max_size=5))))
    down, across = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    return spec, (draw(st.integers(2, 4)), unit * down, unit * across)


VIEWS: list[Callable[[Bytes], Bytes]] = [
    lambda x: x,
    lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    lambda x: np.asfortranarray(x),
    lambda x: x[::-1][::-1].copy()[:, ::-1][:, ::-1],
    lambda x: np.frombuffer(x.tobytes(), np.uint8).reshape(x.shape),
    lambda x: np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].reshape(x.shape),
]


@needs_extension
@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(case=cases(), count=st.integers(0, 70), seed=st.integers(0, 2**32 - 1), view=st.sampled_from(VIEWS))
def test_both_give_the_same_bits(
    case: tuple[TransformSpec, tuple[int, int, int]], count: int, seed: int, view: Callable[[Bytes], Bytes]
) -> None:
    """For any spec, shape, batch and memory layout, both ways and with images last, compiled and NumPy agree."""
    spec, shape = case
    key = InputKey(seed.to_bytes(32, "big"))
    fast, plain = (Transform(spec, key, *shape, implementation=each) for each in ("compiled", "numpy"))
    dense = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    images = view(dense)
    assert (images == dense).all()
    locked = fast(images)
    assert locked.dtype == np.uint8
    assert locked.flags.c_contiguous
    assert locked.flags.writeable
    assert (locked == plain(images)).all()
    assert (fast.inverse(locked) == dense).all()
    assert (plain.inverse(locked) == dense).all()
    for image in images[:1]:
        assert (fast(image) == locked[0]).all()
    last = images.transpose(1, 2, 3, 0)
    assert (fast.images_last(last) == locked.transpose(1, 2, 3, 0)).all()
    assert (plain.images_last(last) == locked.transpose(1, 2, 3, 0)).all()
    assert (dense == images).all()


@needs_extension
@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 224, 224), (1, 1040, 208), (3, 480, 640)], ids=str)
@pytest.mark.parametrize("text", ["shf:4", "np:4", "np:16", "shf:8,np:4,ffx:2", "ffx:16:positions,np:2,ffx:8"])
def test_large_images_have_the_same_bits(text: str, shape: tuple[int, int, int]) -> None:
    """Images with many tiles, for which the interpreter is given up, agree as well."""
    images = np.random.default_rng(5).integers(0, 256, (3, *shape), dtype=np.uint8)
    spec = TransformSpec.parse_text(text)
    fast, plain = (Transform(spec, KEY, *shape, implementation=each) for each in ("compiled", "numpy"))
    locked = fast(images)
    assert (locked == plain(images)).all()
    assert (fast.inverse(locked) == images).all()
    assert (fast.images_last(images.transpose(1, 2, 3, 0)) == locked.transpose(1, 2, 3, 0)).all()


@needs_extension
def test_more_tables_than_a_kernel_takes() -> None:
    """Many channels, tables for positions: inversions of another block size make four kinds of nearly every table."""
    images = np.random.default_rng(6).integers(0, 256, (2, 40, 96, 96), dtype=np.uint8)
    spec = TransformSpec.parse_text("np:24,ffx:32:positions,np:24")
    fast, plain = (Transform(spec, KEY, 40, 96, 96, implementation=each) for each in ("compiled", "numpy"))
    locked = fast(images)
    assert (locked == plain(images)).all()
    assert (fast.inverse(locked) == images).all()


def kernel(*changed: tuple[int, Any], sides: tuple[int, int, int, int] = (2, 4, 6, 2)) -> Any:
    """Return a kernel of 2x4x6 with tiles of 2x2 and three tables, with some of its arguments changed."""
    from tessera.transforms import _kernel

    count = sides[0] * sides[3] ** 2 if math.prod(sides) < 1 << 16 else 8
    index = np.arange(count, dtype=np.int64)[::-1].copy()
    tables = np.random.default_rng(1).integers(0, 256, (3, 256), dtype=np.uint8)
    arguments: list[Any] = [*sides, index, tables, np.arange(count, dtype=np.uint16) % 3]
    for place, value in changed:
        arguments[place] = value
    return _kernel.Kernel(*arguments)


INDEX, TABLES, CHOICE = 4, 5, 6


def changed_at(array: Any, place: int, value: int) -> Any:
    """Return a copy of an array with one value changed."""
    found = array.copy()
    found[place] = value
    return found


PLACES, CHOSEN, TABLE = np.arange(8), np.zeros(8, np.uint16), np.zeros((3, 256), np.uint8)


@needs_extension
@pytest.mark.parametrize(
    "wrong",
    [
        (INDEX, changed_at(PLACES, 0, 8)), (INDEX, changed_at(PLACES, 7, -1)), (INDEX, changed_at(PLACES, 3, 2**62)),
        (INDEX, changed_at(PLACES, 3, -(2**63))), (INDEX, PLACES[:7]), (INDEX, np.arange(9)), (INDEX, PLACES[:0]),
        (INDEX, np.arange(16)[::2]), (INDEX, PLACES.astype(np.int32)), (INDEX, PLACES.astype(np.float64)),
        (INDEX, PLACES.astype(np.uint64)), (INDEX, PLACES.astype(">i8")), (INDEX, bytes(64)),
        (CHOICE, changed_at(CHOSEN, 0, 3)), (CHOICE, changed_at(CHOSEN, 7, 65535)), (CHOICE, CHOSEN[:7]),
        (CHOICE, np.zeros(9, np.uint16)), (CHOICE, np.zeros(8, np.int16)), (CHOICE, np.zeros(16, np.uint16)[::2]),
        (CHOICE, np.zeros(8, np.uint8)), (CHOICE, np.zeros(8, np.int64)),
        (TABLES, TABLE[:0]), (TABLES, TABLE[:, :255].copy()), (TABLES, TABLE.reshape(-1)[:-1]),
        (TABLES, TABLE.astype(np.int8)), (TABLES, np.zeros((65537, 256), np.uint8)), (TABLES, TABLE.T),
        (TABLES, np.zeros((3, 256), np.uint16)), (TABLES, TABLE.view(np.bool_)),
    ],
    ids=lambda wrong: f"{('index', 'tables', 'choice')[wrong[0] - 4]}-{getattr(wrong[1], 'dtype', 'bytes')}",
)  # fmt: skip
def test_set_ups_that_are_refused(wrong: tuple[int, Any]) -> None:
    """An index or a choice out of range, or an array of another size or type, never becomes a kernel."""
    with pytest.raises(ValueError, match=r".+"):
        kernel(wrong)


@needs_extension
@pytest.mark.parametrize(
    "sides",
    [
        (0, 4, 4, 2), (2, 0, 4, 2), (2, 4, 0, 2), (2, 4, 4, 0), (2, 4, 4, -2), (-2, 4, 4, 2), (2, 5, 4, 2),
        (2, 4, 5, 2), (2, 4, 4, 8), (2**62, 4, 4, 2), (2, 2**26, 2**26, 2), (2**26, 2**26, 2**26, 2**26),
        (2, 2**31, 2, 2),
    ],
    ids=str,
)  # fmt: skip
def test_sides_that_are_refused(sides: tuple[int, int, int, int]) -> None:
    """Sides that are not positive, no multiple of the tile's, or whose product is too large are refused."""
    with pytest.raises(ValueError, match="sides"):
        kernel(sides=sides)


@needs_extension
@pytest.mark.parametrize("wrong", [(INDEX, [0]), (TABLES, None), (CHOICE, None), (CHOICE, "text"), (0, "2"), (3, 1.5)])
def test_arguments_that_are_no_arrays(wrong: tuple[int, Any]) -> None:
    """What is no buffer or no number is a type error; the constructor takes no names and the type has no children."""
    with pytest.raises(TypeError):
        kernel(wrong)
    made = type(kernel())
    with pytest.raises(TypeError):
        made(2, 4, 6, 2, None, TABLE, choice=CHOSEN)
    with pytest.raises(TypeError):
        type("Child", (made,), {})


@needs_extension
def test_the_set_up_is_a_copy() -> None:
    """Arrays that are changed after the set-up change nothing, so no index can come to lead outside."""
    index, choice, tables = PLACES[::-1].copy(), (PLACES % 3).astype(np.uint16), TABLE.copy()
    tables[:] = np.random.default_rng(2).integers(0, 256, tables.shape)
    made = kernel((INDEX, index), (TABLES, tables), (CHOICE, choice))
    image = np.random.default_rng(3).integers(0, 256, (2, 4, 6), dtype=np.uint8)
    before = made.run(image)
    index[:], choice[:], tables[:] = 2**40, 65535, 0
    assert (made.run(image) == before).all()


class Child(np.ndarray[Any, Any]):
    """An array of a type that is not NumPy's own."""


@needs_extension
@pytest.mark.parametrize(
    "other",
    [
        None, 3, b"", bytes(48), memoryview(bytes(48)).cast("B", (2, 4, 6)), np.zeros(48, np.uint8),
        np.zeros((2, 6, 4), np.uint8), np.zeros((1, 1, 2, 4, 6), np.uint8), np.zeros((2, 4, 6), np.int8),
        np.zeros((2, 4, 6), bool), np.zeros((2, 4, 6), np.uint16), np.zeros((2, 4, 6), "M8[s]"),
        np.zeros((2, 4, 6), object), np.zeros((2, 4, 12), np.uint8)[..., ::2],
        np.zeros((2, 4, 6), np.uint8).view(Child), np.zeros((2, 4, 6), [("a", "u1")]),
        np.zeros((3, 2, 4, 3), np.uint8), np.uint8(1),
    ],
    ids=lambda other: f"{type(other).__name__}-{getattr(other, 'dtype', '')}{getattr(other, 'shape', '')}",
)  # fmt: skip
def test_images_that_are_not_its_own(other: Any) -> None:
    """A kernel answers None to all but contiguous uint8 of its shape; nothing else is read."""
    made = kernel()
    assert made.run(other) is None
    assert made.images_last(other) is None
    assert made.images_last(np.zeros((2, 4, 6), np.uint8)) is None
    assert made.run(np.zeros((2, 4, 6, 1), np.uint8)) is None


def test_children_of_arrays_and_read_only_arrays(implementation: Implementation) -> None:
    """What is an array by another name, or must not be written to, is transformed all the same."""
    lock = Transform(TransformSpec.parse_text("shf:2,ffx:2"), KEY, 2, 4, 6, implementation=implementation)
    image = np.random.default_rng(3).integers(0, 256, (2, 4, 6), dtype=np.uint8)
    wanted = lock(image)
    image.flags.writeable = False
    assert (lock(image) == wanted).all()
    assert (np.asarray(lock(image.view(Child))) == wanted).all()


def test_threads_share_a_transform(implementation: Implementation) -> None:
    """Many threads at one transform, in both directions, all get their own result."""
    lock = Transform(TransformSpec.parse_text("shf:4,np:4,ffx:4"), KEY, 3, 64, 64, implementation=implementation)
    batches = [np.random.default_rng(seed).integers(0, 256, (8, 3, 64, 64), dtype=np.uint8) for seed in range(4)]
    wanted = [lock(batch) for batch in batches]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            locked = lock(batches[number])
            if not ((locked == wanted[number]).all() and (lock.inverse(locked) == batches[number]).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.slow
def test_without_the_extension() -> None:
    """Where it cannot be imported NumPy is used, says so, gives the recorded bits, and `compiled` is refused."""
    code = (
        "import sys\n"
        "sys.modules['tessera.transforms._kernel'] = None\n"
        "import numpy as np\n"
        "from tessera.keystore.errors import ApiMisuse\n"
        "from tessera.keystore.secrets import InputKey\n"
        "from tessera.transforms import IMPLEMENTATION, Transform, TransformSpec\n"
        "spec, key = TransformSpec.parse_text('shf:4,np:2,ffx:4'), InputKey(bytes(range(32)))\n"
        "image = (np.arange(3 * 8 * 8) % 251).astype(np.uint8).reshape(3, 8, 8)\n"
        "print(IMPLEMENTATION, Transform(spec, key, 3, 8, 8)(image).tobytes().hex())\n"
        "try:\n"
        "    Transform(spec, key, 3, 8, 8, implementation='compiled')\n"
        "except ApiMisuse:\n"
        "    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    image = (np.arange(3 * 8 * 8) % 251).astype(np.uint8).reshape(3, 8, 8)
    here = Transform(TransformSpec.parse_text("shf:4,np:2,ffx:4"), KEY, 3, 8, 8)(image)
    assert done.stdout.split() == ["numpy", here.tobytes().hex(), "refused"]


def test_an_unknown_implementation_is_refused() -> None:
    """Only the two names there are can be asked for."""
    with pytest.raises(ApiMisuse):
        Transform(TransformSpec.parse_text("np:2"), KEY, 1, 2, 2, implementation="fortran")  # type: ignore[arg-type]
