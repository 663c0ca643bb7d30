"""CIFAR-10 from mosaics, python batches and folders of pictures."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.pictures import pixels, write
from tessera.keystore.errors import ApiMisuse, Malformed, NotFound
from tessera.protect.data import cifar10
from tessera.protect.data.cifar10 import NAMES
from tessera.protect.data.pickles import read_batch


def _batch(path: Path, count: int, **changed: Any) -> np.ndarray:
    """Write a batch as the official files are: protocol 2, bytes as keys."""
    data = pixels(count, count, 3072)
    labels = [index % 10 for index in range(count)]
    fields = {
        b"batch_label": b"testing",
        b"labels": labels,
        b"data": data,
        **{k.encode(): v for k, v in changed.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(fields, protocol=2))
    return data


@pytest.mark.slow
def test_mosaics(tmp_path: Path) -> None:
    """Picture i of a mosaic is its i-th tile in reading order, with label i // 1000."""
    mosaic = np.zeros((3, 3200, 3200), dtype=np.uint8)
    tile = pixels(1, 3, 32, 32)
    mosaic[:, 32 * 27 : 32 * 28, 32 * 45 : 32 * 46] = tile
    for name in ("train_1", "test"):
        write(tmp_path / "cifar10" / f"{name}.webp", mosaic, "WEBP", lossless=True, method=0)
    split = cifar10(tmp_path, train_files=1)
    for half in split:
        assert (len(half), half.shape, half.names) == (10000, (3, 32, 32), NAMES)
        assert half.images[2745].numpy().tobytes() == tile.tobytes()
        assert not half.images[2744].any()
        assert half.labels.tolist() == [index // 1000 for index in range(10000)]
    with pytest.raises(NotFound, match=r"train_2\.webp"):
        cifar10(tmp_path)


def test_mosaic_of_another_size(tmp_path: Path) -> None:
    """A picture that is no mosaic is named with its size."""
    for name in ("train_1", "test"):
        write(tmp_path / f"{name}.webp", pixels(0, 3, 32, 64), "WEBP", lossless=True)
    with pytest.raises(Malformed, match=r"train_1\.webp is 32x64 pixels"):
        cifar10(tmp_path, train_files=1)


def test_cut_short_mosaic(tmp_path: Path) -> None:
    """A truncated archive is named."""
    write(tmp_path / "test.webp", pixels(0, 3, 64, 64), "WEBP", lossless=True)
    raw = (tmp_path / "test.webp").read_bytes()
    (tmp_path / "train_1.webp").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(Malformed, match=r"train_1\.webp is not a readable picture"):
        cifar10(tmp_path, train_files=1)


@pytest.mark.slow
def test_batches(tmp_path: Path) -> None:
    """The official files, in their own folder, give their pixels and labels."""
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    written = _batch(folder / "data_batch_1", 10000)
    _batch(folder / "test_batch", 10000)
    train, test = cifar10(tmp_path, train_files=1)
    assert train.images.numpy().tobytes() == written.tobytes()
    assert train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert (len(train), len(test), test.classes) == (10000, 10000, 10)


@pytest.mark.parametrize("folder", [".", "cifar10", "cifar-10-batches-py"])
def test_batch_of_another_count(tmp_path: Path, folder: str) -> None:
    """A batch, found in each usual place, holds 10,000 pictures."""
    for name in ("data_batch_1", "test_batch"):
        _batch(tmp_path / folder / name, 20)
    with pytest.raises(Malformed, match="data_batch_1 holds 20 pictures, not 10000"):
        cifar10(tmp_path, train_files=1)


class _Trap:
    """Pickles to a call of os.mkdir."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    """A file that asks for any function is refused before it is called; plain `pickle.load` would call it."""
    for field in ("data", "labels", "extra"):
        _batch(tmp_path / "bad", 2, **{field: _Trap(tmp_path / "made")})
        with pytest.raises(Malformed, match="mkdir"):
            read_batch(tmp_path / "bad", values=3072)
        assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": pixels(0, 2, 3071)}, "2 labels and pixels of the shape"),
        ({"data": np.zeros((2, 3072), dtype=np.float32)}, "not of bytes"),
        ({"data": np.asfortranarray(pixels(0, 2, 3072))}, "not of bytes in C order"),
        ({"data": b"raw"}, "no pictures with labels"),
        ({"labels": []}, "no pictures with labels"),
        ({"labels": [0, "1"]}, "2 labels"),
        ({"labels": [0, 1, 2]}, "3 labels"),
        ({"labels": [0, 10**30]}, "labels from 0 to"),
        ({"labels": [-1, 2]}, "labels from -1"),
    ],
)
def test_bad_batches(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    """Each form that is not CIFAR's is one typed error."""
    _batch(tmp_path / "bad", 2, **changed)
    with pytest.raises(Malformed, match=message):
        read_batch(tmp_path / "bad", values=3072)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_batches(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever bytes are changed or cut, a batch is read or is `Malformed`."""
    path = tmp_path_factory.getbasetemp() / "damaged"
    fields = {b"labels": [1, 2], b"data": pixels(3, 2, 12)}
    raw = bytearray(pickle.dumps(fields, protocol=2))
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=4)):
        raw[place] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        found, labels = read_batch(path, values=12)
    except Malformed:
        return
    assert found.shape == (len(labels), 12)


def test_folders(tmp_path: Path) -> None:
    """Folders of pictures need CIFAR's ten classes and 32x32 pixels."""
    for name in NAMES:
        write(tmp_path / "train" / name / "1.png", pixels(len(name), 3, 32, 32))
        write(tmp_path / "test" / name / "1.png", pixels(len(name), 3, 32, 32))
    train, test = cifar10(tmp_path)
    assert train.labels.tolist() == test.labels.tolist() == list(range(10))
    assert train.images[3].numpy().tobytes() == pixels(3, 3, 32, 32).tobytes()
    write(tmp_path / "train" / "zebra" / "1.png", pixels(0, 3, 32, 32))
    with pytest.raises(Malformed, match="zebra"):
        cifar10(tmp_path)
    (tmp_path / "train" / "zebra" / "1.png").unlink()
    (tmp_path / "train" / "zebra").rmdir()
    for half in ("train", "test"):
        for name in NAMES:
            write(tmp_path / half / name / "1.png", pixels(0, 3, 8, 8))
    with pytest.raises(Malformed, match="8x8"):
        cifar10(tmp_path)


def test_not_there(tmp_path: Path) -> None:
    """An empty folder, a missing one and a silly number of files each say so."""
    with pytest.raises(Malformed, match="holds no cifar10") as empty:
        cifar10(tmp_path)
    assert "train_1.webp" in empty.value.remedy
    with pytest.raises(NotFound):
        cifar10(tmp_path / "nowhere")
    with pytest.raises(ApiMisuse):
        cifar10(tmp_path, train_files=6)
