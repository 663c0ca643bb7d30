"""What `tessera infer` takes as input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from support.cli import refusal
from tessera.cli.samples import load_samples
from tessera.client import ModelContract, TensorContract
from tessera.keystore.errors import Malformed


def contract(channels: int, height: int = 8, width: int = 8) -> ModelContract:
    """Return the contract of a model of images."""
    image = TensorContract("image", "UINT8", (-1, channels, height, width), "NCHW")
    return ModelContract("digits", 1, "0" * 32, 1, (image,), (), "", "", 16)


@pytest.mark.parametrize(("given_shape", "count"), [((8, 8), 1), ((1, 8, 8), 1), ((5, 8, 8), 5), ((5, 1, 8, 8), 5)])
def test_one_sample_or_a_batch_with_or_without_the_channel(
    tmp_path: Path, given_shape: tuple[int, ...], count: int
) -> None:
    """A grey image needs no channel axis, one sample no batch axis."""
    np.save(tmp_path / "x.npy", np.arange(np.prod(given_shape)).astype(np.uint8).reshape(given_shape))
    found = load_samples(tmp_path / "x.npy", contract(1))
    assert found.shape == (count, 1, 8, 8)
    assert found.ravel().tolist() == list(range(64 * count)) or count > 4


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8), np.float32),
        np.zeros((8, 9), np.uint8),
        np.zeros((3, 8, 8, 8, 8), np.uint8),
        np.zeros((), np.uint8),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_sent(tmp_path: Path, array: NDArray[Any]) -> None:
    """Dtype and shape are checked here, with the shape that is wanted in the message."""
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(Malformed):
        load_samples(tmp_path / "x.npy", contract(1))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3)])
def test_an_image_file_becomes_planes(tmp_path: Path, mode: str, channels: int) -> None:
    """Channels come first, alpha is dropped; pixels are not resized."""
    Image.new(mode, (8, 8)).save(tmp_path / "x.png")
    assert load_samples(tmp_path / "x.png", contract(channels)).shape == (1, channels, 8, 8)
    with pytest.raises(Malformed):
        load_samples(tmp_path / "x.png", contract(channels, 16, 16))


@given(raw=st.binary(max_size=200), suffix=st.sampled_from([".npy", ".png"]))
@settings(max_examples=100, deadline=None)
def test_random_bytes_are_refused_with_our_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, suffix: str
) -> None:
    """No parser's exception gets through, and nothing is unpickled."""
    path = tmp_path_factory.mktemp("random") / f"x{suffix}"
    path.write_bytes(raw)
    with pytest.raises(Malformed):
        load_samples(path, contract(1))


def test_missing_files_are_named_before_the_server_is_asked(tmp_path: Path) -> None:
    """The path is in the message."""
    arguments = ["infer", tmp_path / "absent.npy", "--model", "digits", "--identity", "k", "--licence", "l"]
    assert "absent.npy" in refusal(*arguments)["message"]
