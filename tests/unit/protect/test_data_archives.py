"""Tiny ImageNet's index, CamVid's two forms and the denoising sets."""

import io
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.pictures import encode, pixels, tar, write
from tessera.keystore.errors import ApiMisuse, Malformed, NotFound, TesseraError
from tessera.protect.data import SegmentationDataset, camvid, denoise_set, tiny_imagenet
from tessera.protect.data.npz import read_npz
from tessera.protect.data.packed import read_tar
from tessera.protect.data.tiny_imagenet import check_index


def _tiny(folder: Path, **changed: Any) -> list[bytes]:
    folder.mkdir(exist_ok=True)
    files = [encode(pixels(seed, 3, 16, 16), "JPEG") for seed in range(5)] + [encode(pixels(9, 16, 16), "JPEG")]
    for half in ("train", "val"):
        (folder / f"{half}.jpegs").write_bytes(b"".join(files))
        fields = {
            "offsets": np.cumsum([0, *map(len, files)]),
            "labels": np.array([0, 1, 0, 1, 0, 1]),
            "classes": np.array(["fish", "bus"]),
            **changed,
        }
        np.savez(folder / f"{half}_index.npz", **fields)
    return files


def test_tiny_imagenet(tmp_path: Path) -> None:
    """Each picture is cut out by its offsets; grey ones become RGB."""
    files = _tiny(tmp_path / "tiny_imagenet10")
    train, test = tiny_imagenet(tmp_path)
    assert (len(train), len(test), train.shape, train.names) == (6, 6, (3, 16, 16), ("fish", "bus"))
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert abs(train.images[2].numpy().astype(int).mean() - 127) < 20
    assert bool((train.images[5][0] == train.images[5][2]).all())
    assert files


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": np.array([0, 1, 0, 1, 0, 2])}, "labels from 0 to 2 for 2 classes"),
        ({"labels": np.array([0, 1])}, "offsets"),
        ({"offsets": np.array([0, 1, 2, 3, 4, 5, 6])}, "does not fit its pictures"),
        ({"offsets": np.zeros(7)}, "whole numbers"),
        ({"classes": np.array([object()], dtype=object)}, "not a readable .npz"),
    ],
)
def test_tiny_imagenet_refuses(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    """An index that does not fit is named."""
    _tiny(tmp_path, **changed)
    with pytest.raises(Malformed, match=message):
        tiny_imagenet(tmp_path)


def test_tiny_imagenet_parts(tmp_path: Path) -> None:
    """A missing array, file or picture is named."""
    _tiny(tmp_path)
    raw = bytearray((tmp_path / "train.jpegs").read_bytes())
    (tmp_path / "train.jpegs").write_bytes(bytes(len(raw)))
    with pytest.raises(Malformed, match=r"picture 0 of .*train\.jpegs is not a readable picture"):
        tiny_imagenet(tmp_path)
    np.savez(tmp_path / "train_index.npz", offsets=np.array([0]))
    with pytest.raises(Malformed, match="no array labels"):
        tiny_imagenet(tmp_path)
    (tmp_path / "train.jpegs").unlink()
    with pytest.raises(NotFound, match=r"train\.jpegs"):
        tiny_imagenet(tmp_path)


@given(
    offsets=st.lists(st.integers(-3, 30), max_size=5),
    labels=st.lists(st.integers(-1, 4), max_size=4),
    classes=st.integers(0, 4),
    size=st.integers(0, 30),
)
def test_any_index(offsets: list[int], labels: list[int], classes: int, size: int) -> None:
    """Any numbers are an index whose pictures fill the file, or `Malformed`."""
    names = np.array([f"c{number}" for number in range(classes)], dtype="U8")
    try:
        places, numbers, _ = check_index(
            np.array(offsets, dtype=np.int64), np.array(labels, dtype=np.int64), names, size, Path("x")
        )
    except Malformed:
        return
    assert sum(high - low for low, high in pairwise(places)) == size
    assert set(numbers) <= set(range(classes))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_npz(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever bytes of an .npz are changed or cut, its arrays are read or it is `Malformed`."""
    file = io.BytesIO()
    np.savez_compressed(file, a=np.arange(9), b=np.array(["x", "yy"]))
    raw = bytearray(file.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=3)):
        raw[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        read_npz(path)
    except TesseraError as error:
        assert isinstance(error, Malformed)  # noqa: PT017


def test_tar_files(tmp_path: Path) -> None:
    """Only regular files are read, nothing is written, a name comes once and the archive is whole."""
    path = tmp_path / "x.tar"
    tar(path, {"../../escape.png": b"abc", "b": b"defg"})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert read_tar(path) == {"../../escape.png": b"abc", "b": b"defg"}
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["x.tar"]
    raw = path.read_bytes()
    for cut in (100, 514, 1030):
        path.write_bytes(raw[:cut])
        with pytest.raises(Malformed, match=r"x\.tar is not a whole tar archive"):
            read_tar(path)
    path.write_bytes(b"not a tar archive" * 100)
    with pytest.raises(Malformed):
        read_tar(path)
    tar(path, {"a": b"1"})
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    with pytest.raises(Malformed, match="names a twice"):
        read_tar(path)


def _maps(count: int, height: int, width: int) -> np.ndarray:
    return pixels(count, count, height, width) % 12


def _packed_camvid(folder: Path, **changed: Any) -> None:
    folder.mkdir(exist_ok=True)
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    for half, count in (("train", 3), ("val", 1), ("test", 2)):
        names = [f"s_{half}_{number}" for number in range(count)]
        fields |= {half: _maps(count, 18, 24), f"{half}_names": np.array(names)}
        files |= {f"{half}/{name}.jpg": encode(pixels(number, 3, 18, 24), "JPEG") for number, name in enumerate(names)}
    np.savez_compressed(folder / "labels_240x180.npz", **(fields | changed))
    tar(folder / "images_240x180.tar", dict(reversed(files.items())))


def test_packed_camvid(tmp_path: Path) -> None:
    """Pictures and maps are paired by name; the middle is cut out; both are resized alike."""
    _packed_camvid(tmp_path / "camvid")
    train, test = camvid(tmp_path)
    assert isinstance(train, SegmentationDataset)
    assert (len(train), len(test), train.shape, train.classes, train.ignore) == (3, 2, (3, 18, 24), 11, 11)
    assert train.labels.numpy().tobytes() == _maps(3, 18, 24).tobytes()
    assert len(camvid(tmp_path, held_out="val").test) == 1
    cut = camvid(tmp_path, crop=(16, 22)).train
    assert cut.images.equal(train.images[:, :, 1:17, 1:23])
    assert cut.labels.equal(train.labels[:, 1:17, 1:23])
    half = camvid(tmp_path, size=(9, 12)).train
    assert half.shape == (3, 9, 12)
    assert half.labels.equal(train.labels[:, 1::2, 1::2])
    for crop in ((19, 24), (0, 24)):
        with pytest.raises(ApiMisuse, match="crop"):
            camvid(tmp_path, crop=crop)
    with pytest.raises(ApiMisuse, match="held_out"):
        camvid(tmp_path, held_out="train")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test": _maps(2, 18, 24) + 1}, "label 12 in its test half"),
        ({"test": _maps(2, 18, 23)}, "test images"),
        ({"train": _maps(3, 18, 24).astype(np.int64)}, "int64"),
        ({"train_names": np.array(["s_train_0", "s_train_1", "other"])}, r"no train/other\.jpg"),
        ({"train_names": np.array(["s_train_0"])}, "names"),
    ],
)
def test_packed_camvid_refuses(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    """Labels that do not fit their pictures are named."""
    _packed_camvid(tmp_path, **changed)
    with pytest.raises(Malformed, match=message):
        camvid(tmp_path)


def test_camvid_folders(tmp_path: Path) -> None:
    """SegNet's folders: pictures and their maps have the same names; each that is missing is named."""
    with pytest.raises(Malformed, match="holds no camvid"):
        camvid(tmp_path)
    for half, count in (("train", 2), ("test", 1)):
        for number in range(count):
            write(tmp_path / half / f"{number}.png", pixels(number, 3, 18, 24))
            write(tmp_path / f"{half}annot" / f"{number}.png", _maps(1, 18, 24)[0])
    train, test = camvid(tmp_path)
    assert (len(train), len(test), train.shape) == (2, 1, (3, 18, 24))
    assert train.images[1].numpy().tobytes() == pixels(1, 3, 18, 24).tobytes()
    assert train.labels[1].numpy().tobytes() == _maps(1, 18, 24)[0].tobytes()
    small = camvid(tmp_path, size=(9, 12)).train
    assert small.labels.equal(train.labels[:, 1::2, 1::2])  # the same pixels as the packed form's
    with pytest.raises(NotFound, match="val"):
        camvid(tmp_path, held_out="val")
    (tmp_path / "trainannot" / "1.png").unlink()
    with pytest.raises(Malformed, match=r"1\.png has no labels"):
        camvid(tmp_path)


def test_denoise_sets(tmp_path: Path) -> None:
    """A set is a tar archive or a folder, in order of names, of the right number; the overlap is left out."""
    files = {f"Set12/{number:02d}.png": encode(pixels(number, 9, 8 + number)) for number in range(12)}
    (tmp_path / "denoise").mkdir()
    tar(tmp_path / "denoise" / "Set12.tar", dict(reversed(files.items())))
    found = denoise_set(tmp_path, "Set12")
    assert [picture.shape for picture in found] == [(1, 9, 8 + number) for number in range(12)]
    assert found[3].tobytes() == pixels(3, 9, 11).tobytes()
    tar(tmp_path / "denoise" / "Set12.tar", dict(list(files.items())[:11]))
    with pytest.raises(Malformed, match="holds 11 PNG files, not 12"):
        denoise_set(tmp_path, "Set12")
    with pytest.raises(ApiMisuse, match="Set13"):
        denoise_set(tmp_path, "Set13")
    with pytest.raises(Malformed, match="holds no denoise") as missing:
        denoise_set(tmp_path, "BSD68")
    assert "BSD68.tar" in missing.value.remedy
    for number in range(400):
        write(tmp_path / "Train400" / f"test_{number + 1:03d}.png", np.full((2, 2), number % 256, dtype=np.uint8))
    train = denoise_set(tmp_path, "Train400")
    assert len(train) == 399
    assert [int(picture[0, 0, 0]) for picture in train[17:21]] == [17, 18, 20, 21]
