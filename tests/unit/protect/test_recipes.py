"""The table of recipes: what each needs, what it says when that is missing, and that its network takes its images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tessera.keystore.errors import Malformed, NotFound
from tessera.keystore.secrets import InputKey
from tessera.protect import RECIPES, recipe, train
from tessera.protect.models import FastNet, PatchStem, PixelModel
from tessera.protect.recipes import FOLDER_SIZE
from tessera.transforms import TransformSpec

KEY = InputKey(bytes(range(32)))


def picture_folder(root: Path, classes: tuple[str, ...] = ("cold", "warm")) -> Path:
    """Write a folder of pictures, blue and red ones, and return it."""
    draws = np.random.default_rng(0)
    for half, count in (("train", 12), ("test", 4)):
        for channel, name in zip((2, 0), classes, strict=False):
            folder = root / half / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draws.integers(0, 80, (20, 24, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def test_the_names_of_the_brief_are_there() -> None:
    """Every documented recipe exists, is filed under its name, and says what it needs and how long it takes."""
    expected = {
        "digits", "cifar10-fast", "cifar10-resnet18", "cifar10-resnet18-paper", "cifar10-vgg19", "cifar10-convmixer",
        "cifar10-vgg-compact", "fashion-mnist-fast", "image-folder", "camvid-unet",
    }  # fmt: skip
    assert set(RECIPES) == expected
    for name, found in RECIPES.items():
        assert found.name == name
        assert found.summary
        assert found.duration
        assert found.needs_data == (name != "digits")
        assert TransformSpec.parse_text(found.transform)


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"digits"}))
def test_missing_data_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a path the remedy names flag and variable; a folder that is not there or is empty is named."""
    monkeypatch.delenv("TESSERA_DATA", raising=False)
    with pytest.raises(NotFound) as caught:
        recipe(name).task()
    assert "--data" in caught.value.remedy
    assert "TESSERA_DATA" in caught.value.remedy
    for place in (tmp_path / "absent", tmp_path):
        with pytest.raises((NotFound, Malformed)) as other:
            recipe(name).task(place)
        assert str(place) in other.value.public


def test_a_folder_of_pictures_trains(tmp_path: Path) -> None:
    """Pictures of any size become 64x64, the stem takes the key, and the environment names the folder too."""
    task = recipe("image-folder").task(picture_folder(tmp_path))
    assert task.shape == (3, *FOLDER_SIZE)
    assert task.class_count == 2
    found = train(task, transform=TransformSpec.parse_text("shf:4"), key=KEY, epochs=1, wrong_keys=1)
    assert isinstance(found.model, PixelModel)
    assert isinstance(found.model.network, FastNet)
    assert isinstance(found.model.network.enter, PatchStem)
    assert found.report["train_samples"] == 24


def test_a_folder_of_one_class_is_refused(tmp_path: Path) -> None:
    """There is nothing to tell apart."""
    with pytest.raises(Malformed, match="one class only"):
        recipe("image-folder").task(picture_folder(tmp_path, ("only",)))


def test_a_recipe_s_network_is_fresh_and_fits_its_spec(tmp_path: Path) -> None:
    """Two models share no weights, and plain inputs get the network without a stem."""
    task = recipe("image-folder").task(picture_folder(tmp_path))
    first, second = task.model(None), task.model(None)
    assert not any(one is other for one in first.parameters() for other in second.parameters())
    assert isinstance(first, PixelModel)
    assert isinstance(first.network, FastNet)
    assert isinstance(first.network.enter, torch.nn.Conv2d)
