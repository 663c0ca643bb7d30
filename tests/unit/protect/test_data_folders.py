"""Folders of pictures by class, and the picture decoder below all readers."""

import io
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.pictures import encode, pixels, write
from tessera.keystore.errors import ApiMisuse, Malformed, NotFound
from tessera.protect import MissingExtra
from tessera.protect.data import image_folder
from tessera.protect.data.images import decode, decode_labels


def _tree(root: Path) -> None:
    for half, count in (("train", 3), ("val", 2)):
        for name, level in (("cat", 10), ("ant", 200)):
            for number in range(count):
                write(root / half / name / f"{number}.png", np.full((3, 6, 8), level + number, dtype=np.uint8))


def test_labels_are_folders(tmp_path: Path) -> None:
    """Classes are numbered by name, pictures ordered by class and file name; `val` stands in for `test`."""
    _tree(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not a picture")
    train, test = image_folder(tmp_path)
    assert (train.names, train.shape) == (("ant", "cat"), (3, 6, 8))
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.images[:, 0, 0, 0].tolist() == [200, 201, 202, 10, 11, 12]
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert test.names == train.names


def test_size_and_channels(tmp_path: Path) -> None:
    """Pictures can be resized and read as grey."""
    _tree(tmp_path)
    train, _ = image_folder(tmp_path, size=(4, 2), channels=1)
    assert train.shape == (1, 4, 2)
    assert train.images[:, 0, 3, 1].tolist() == [200, 201, 202, 10, 11, 12]


def test_differing_sizes_are_named(tmp_path: Path) -> None:
    """Without `size` the first picture that differs is named."""
    _tree(tmp_path)
    write(tmp_path / "train" / "cat" / "1.png", pixels(0, 3, 9, 8))
    with pytest.raises(Malformed, match=r"cat/1\.png is 9x8 pixels and .*ant/0\.png is 6x8") as caught:
        image_folder(tmp_path)
    assert "size" in caught.value.remedy


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    """No folder, no classes, an empty class, a class of its own in the test half: each is said with the layout."""
    with pytest.raises(NotFound, match="train"):
        image_folder(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(NotFound, match="test, val, valid"):
        image_folder(tmp_path)
    (tmp_path / "test").mkdir()
    with pytest.raises(Malformed, match="have no labels") as unlabelled:
        image_folder(tmp_path)
    assert "train/<class>" in unlabelled.value.remedy
    write(tmp_path / "train" / "cat" / "1.jpg", pixels(0, 3, 8, 8), "JPEG")
    (tmp_path / "test" / "cat").mkdir()
    with pytest.raises(Malformed, match="test/cat has no pictures"):
        image_folder(tmp_path)
    write(tmp_path / "test" / "cat" / "1.jpg", pixels(0, 3, 8, 8), "JPEG")
    assert len(image_folder(tmp_path).test) == 1
    write(tmp_path / "test" / "dog" / "1.jpg", pixels(0, 3, 8, 8), "JPEG")
    with pytest.raises(Malformed, match="class dog"):
        image_folder(tmp_path)


def test_damaged_pictures(tmp_path: Path) -> None:
    """A picture cut short, or of another format whatever its name, is named."""
    whole = encode(pixels(0, 3, 32, 32))
    gif = io.BytesIO()
    Image.fromarray(pixels(0, 8, 8)).save(gif, "GIF")
    for bad in (whole[:-200], b"", b"\x89PNG\r\n", gif.getvalue()):
        (tmp_path / "x.png").write_bytes(bad)
        with pytest.raises(Malformed, match=r"x\.png is not a readable picture"):
            decode((tmp_path / "x.png").read_bytes(), str(tmp_path / "x.png"))


def test_a_bomb_is_refused_unread() -> None:
    """A file of a few bytes that claims a huge picture is refused by its header."""
    header = bytearray(encode(np.zeros((3, 1, 1), dtype=np.uint8)))
    for width, message in ((9000, "9000x9000 pixels, more than"), (100_000, "DecompressionBombError")):
        header[16:24] = width.to_bytes(4, "big") * 2
        header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
        with pytest.raises(Malformed, match=message):
            decode(bytes(header), "x")


def test_kinds_of_pixels() -> None:
    """Grey, palette and transparent pictures become RGB or grey; 16 bits are refused; class maps keep their numbers."""
    grey = pixels(4, 6, 5)
    assert (decode(encode(grey), "x") == grey).all()
    assert decode(encode(grey), "x", channels=1).shape == (1, 6, 5)
    file = io.BytesIO()
    palette = Image.fromarray(grey % 12).convert("P")
    palette.putdata((grey % 12).ravel().tolist())
    palette.save(file, "PNG")
    assert (decode_labels(file.getvalue(), "x") == grey % 12).all()
    assert decode_labels(encode(grey), "x", size=(3, 5)).shape == (3, 5)
    with pytest.raises(Malformed, match="not a map of class numbers"):
        decode_labels(encode(pixels(0, 3, 6, 5)), "x")
    deep = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(deep, "PNG")
    with pytest.raises(Malformed, match="pixels of the kind I;16") as caught:
        decode(deep.getvalue(), "x")
    assert "8 bits" in caught.value.remedy
    with pytest.raises(ApiMisuse):
        decode(encode(grey), "x", channels=2)
    with pytest.raises(ApiMisuse, match="0x4"):
        decode(encode(grey), "x", size=(0, 4))


@settings(max_examples=60, deadline=None)
@given(
    picture=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99)), kind=st.sampled_from(["PNG", "WEBP"])
)
def test_pixels_survive(picture: tuple[int, int, int], kind: str) -> None:
    """Lossless files give the pixels that were written, channel first."""
    height, width, seed = picture
    written = pixels(seed, 3, height, width)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert decode(encode(written, kind, **options), "x").tobytes() == written.tobytes()


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Pillow is not installed, the error names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match="Pillow") as caught:
        decode(b"", "x")
    assert "[vendor]" in caught.value.remedy
