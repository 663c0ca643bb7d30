"""IDX files, packed or not, and raw pictures as xz."""

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from support.pictures import pixels
from tessera.keystore.errors import Malformed, NotFound
from tessera.protect.data import fashion_mnist
from tessera.protect.data.fashion_mnist import parse_idx
from tessera.protect.data.packed import read_unpacked


def _idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def _labels(count: int) -> np.ndarray:
    return (np.arange(count) % 10).astype(np.uint8)


def _write(folder: Path, *, packed: bool) -> None:
    folder.mkdir(exist_ok=True)
    for half, count in (("train", 30), ("t10k", 12)):
        parts = {"images-idx3": pixels(count, count, 28, 28), "labels-idx1": _labels(count)}
        for name, array in parts.items():
            raw = _idx(array)
            file = folder / f"{half}-{name}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(raw) if packed else raw)


@pytest.mark.parametrize("packed", [True, False])
def test_official_files(tmp_path: Path, packed: bool) -> None:
    """The official files are read as they are or as .gz, from the folder or the one above it."""
    _write(tmp_path / "fashion_mnist", packed=packed)
    for place in (tmp_path, tmp_path / "fashion_mnist"):
        train, test = fashion_mnist(place)
        assert (len(train), len(test), train.shape, train.classes) == (30, 12, (1, 28, 28), 10)
        assert train.images.numpy().tobytes() == pixels(30, 30, 28, 28).tobytes()
        assert test.labels.tolist() == _labels(12).tolist()


def test_raw_parts(tmp_path: Path) -> None:
    """Raw parts are joined in order and may be the first part of what the labels cover."""
    _write(tmp_path, packed=True)
    for half in ("train", "t10k"):
        (tmp_path / f"{half}-images-idx3-ubyte.gz").unlink()
    for start, count in ((0, 5), (5, 7)):
        (tmp_path / f"train_images_{start:05d}.xz").write_bytes(lzma.compress(pixels(start, count, 28, 28).tobytes()))
    (tmp_path / "test_images.xz").write_bytes(lzma.compress(pixels(9, 12, 28, 28).tobytes()))
    train, test = fashion_mnist(tmp_path)
    assert (len(train), len(test)) == (12, 12)
    assert train.images[5:].numpy().tobytes() == pixels(5, 7, 28, 28).tobytes()
    assert train.labels.tolist() == _labels(12).tolist()
    (tmp_path / "train_images_00005.xz").rename(tmp_path / "train_images_00006.xz")
    with pytest.raises(Malformed, match="does not follow on the 5 pictures"):
        fashion_mnist(tmp_path)
    (tmp_path / "train_images_00006.xz").write_bytes(lzma.compress(b"123"))
    with pytest.raises(Malformed, match="holds 3 bytes"):
        fashion_mnist(tmp_path)


def test_what_does_not_fit(tmp_path: Path) -> None:
    """Missing labels, other counts, labels out of range, other sizes and an empty folder are each said."""
    with pytest.raises(Malformed, match="holds no fashion_mnist"):
        fashion_mnist(tmp_path)
    with pytest.raises(NotFound):
        fashion_mnist(tmp_path / "nowhere")
    _write(tmp_path, packed=False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    for changed, message in ((_labels(29), "30 pictures and 29 labels"), (_labels(30) + 1, "labels up to 10")):
        labels.write_bytes(_idx(changed))
        with pytest.raises(Malformed, match=message):
            fashion_mnist(tmp_path)
    labels.unlink()
    with pytest.raises(Malformed, match="has no labels"):
        fashion_mnist(tmp_path)
    labels.write_bytes(_idx(_labels(30)))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(_idx(pixels(0, 30, 28, 27)))
    with pytest.raises(Malformed, match="28x27"):
        fashion_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    with pytest.raises(Malformed, match="no pictures for train"):
        fashion_mnist(tmp_path)


@given(array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)))
def test_idx_round_trip(array: np.ndarray) -> None:
    """What is written as IDX is read back."""
    found = parse_idx(_idx(array), "x", dimensions=array.ndim)
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


@given(raw=st.binary(max_size=40) | st.binary(max_size=24).map(lambda rest: bytes((0, 0, 8, 3)) + rest))
def test_idx_of_any_bytes(raw: bytes) -> None:
    """Any bytes are an array that accounts for each of them, or `Malformed`."""
    try:
        found = parse_idx(raw, "x", dimensions=3)
    except Malformed:
        return
    assert found.size == len(raw) - 16


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_packed_files(tmp_path: Path, suffix: str, pack) -> None:  # type: ignore[no-untyped-def]
    """A file cut short is damaged; one that unpacks to more than allowed is refused."""
    file = tmp_path / f"file{suffix}"
    raw = pack(bytes(range(256)) * 100)
    file.write_bytes(raw)
    assert len(read_unpacked(file)) == 25600
    for cut in (3, len(raw) // 2, len(raw) - 1):
        file.write_bytes(raw[:cut])
        with pytest.raises(Malformed, match="damaged or cut short"):
            read_unpacked(file)
    file.write_bytes(pack(bytes(10**6)))
    with pytest.raises(Malformed, match="more than 100000 bytes"):
        read_unpacked(file, max_bytes=10**5)
