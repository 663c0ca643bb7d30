"""Labelled images in memory, and where data sets are looked for."""

from pathlib import Path

import pytest
import torch

from tessera.keystore.errors import ApiMisuse, Malformed, NotFound, Unavailable
from tessera.protect import ArrayDataset, SegmentationDataset, Split
from tessera.protect.data import cifar10, data_path, image_folder, image_shape
from tessera.protect.data.paths import dataset_folder

IMAGES = torch.zeros((2, 3, 4, 6), dtype=torch.uint8)
MAPS = torch.tensor([[[0, 1, 2, 5, 0, 0]] * 4] * 2, dtype=torch.uint8)


def test_segmentation_dataset() -> None:
    """It gives an image with the class of each of its pixels, and knows its shape and classes."""
    data = SegmentationDataset(IMAGES, MAPS, 3, 5, ("road", "car", "sky"))
    image, labels = data[1]
    assert (len(data), data.shape, data.classes, data.ignore) == (2, (3, 4, 6), 3, 5)
    assert image.shape == (3, 4, 6)
    assert torch.equal(labels, MAPS[1])
    assert image_shape(Split(data, data)) == (3, 4, 6)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "ignore"),
    [
        (IMAGES.float(), MAPS, 3, 5),
        (IMAGES[:0], MAPS[:0], 3, 5),
        (IMAGES, MAPS.long(), 3, 5),
        (IMAGES, MAPS[:, :3], 3, 5),
        (IMAGES, MAPS, 3, None),
        (IMAGES, MAPS, 2, 5),
        (IMAGES, MAPS, 6, 5),
        (IMAGES, MAPS, 0, 5),
        (IMAGES, MAPS, 256, None),
    ],
)
def test_segmentation_refuses(images: torch.Tensor, labels: torch.Tensor, classes: int, ignore: int | None) -> None:
    """Other dtypes, shapes and labels are the caller's mistake."""
    with pytest.raises(ApiMisuse):
        SegmentationDataset(images, labels, classes, ignore)


def test_segmentation_names_count() -> None:
    """Names are as many as classes."""
    with pytest.raises(ApiMisuse, match="3 classes and 1 names"):
        SegmentationDataset(IMAGES, MAPS, 3, 5, ("road",))


def test_classes_of_an_array_dataset() -> None:
    """Names count the classes; without them the largest label does."""
    labels = torch.tensor([0, 1])
    assert ArrayDataset(IMAGES, labels).classes == 2
    assert ArrayDataset(IMAGES, labels, ("a", "b", "c")).classes == 3
    for bad, names in ((torch.tensor([0, -1]), ()), (torch.tensor([0, 2]), ("a", "b"))):
        with pytest.raises(ApiMisuse):
            ArrayDataset(IMAGES, bad, names)


def test_data_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given goes first, then the environment; with neither the error says how to give one."""
    monkeypatch.setenv("TESSERA_DATA", str(tmp_path))
    assert data_path(None) == tmp_path
    assert data_path(Path("given")) == Path("given")
    monkeypatch.setenv("TESSERA_DATA", "")
    with pytest.raises(NotFound) as caught:
        data_path(None)
    assert "--data" in caught.value.remedy
    assert "TESSERA_DATA" in caught.value.remedy


def test_dataset_folder(tmp_path: Path) -> None:
    """A set is found in the folder itself or below it; else the error says what is expected where."""

    def holds(folder: Path) -> bool:
        return (folder / "mark").is_file()

    with pytest.raises(NotFound, match="there is no folder") as missing:
        dataset_folder(tmp_path / "nowhere", "cats", holds, "a file mark.")
    assert "a file mark." in missing.value.remedy
    with pytest.raises(Malformed, match="holds no cats") as empty:
        dataset_folder(tmp_path, "cats", holds, "a file mark.")
    assert "a file mark." in empty.value.remedy
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "mark").touch()
    assert dataset_folder(tmp_path, "cats", holds, "") == tmp_path / "cats"
    assert dataset_folder(tmp_path / "cats", "cats", holds, "") == tmp_path / "cats"


def test_a_path_that_cannot_be_looked_at() -> None:
    """What the system says of a path it refuses is a typed error."""
    for reader in (cifar10, image_folder):
        with pytest.raises(Unavailable, match="cannot be read"):
            reader(Path("x" * 5000))
