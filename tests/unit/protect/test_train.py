"""Training: what a key is worth, that runs repeat bit for bit, and that a broken run goes on where it stopped."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tessera.keystore.errors import ApiMisuse, Conflict, Denied, Malformed, NotFound
from tessera.keystore.identity import Identity
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey
from tessera.protect import (
    RECIPES,
    ArrayDataset,
    CifarResNet18,
    MissingExtra,
    Progress,
    Split,
    Trained,
    TrainingTask,
    draw_curves,
    evaluation_keys,
    recipe,
    seal,
    split_of,
    train,
)
from tessera.protect.augment import chain, random_flip, random_shift
from tessera.protect.data import digits
from tessera.transforms import TransformError, TransformSpec

KEY = InputKey(bytes(range(32)))
SPEC = TransformSpec.parse_text("shf:4,np:4")


def tiny_task(**changes: object) -> TrainingTask:
    """Return a task of 40 random images that trains in milliseconds, with dropout and augmentation."""
    draws = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (48, 2, 4, 4), dtype=torch.uint8, generator=draws)
    labels = torch.randint(0, 3, (48,), generator=draws)
    data = Split(ArrayDataset(images[:33], labels[:33]), ArrayDataset(images[33:], labels[33:]))
    fields = {
        "name": "tiny", "data": data, "mean": (0.5, 0.5), "std": (0.25, 0.25), "epochs": 4, "batch": 16,
        "network": lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(32), nn.Linear(32, 3)),
        "augment": chain(random_shift(1), random_flip()), "max_batch": 8,
    }  # fmt: skip
    return TrainingTask(**{**fields, **changes})  # type: ignore[arg-type]


def same_weights(first: Trained, second: Trained) -> bool:
    """Say whether two runs ended with the same bits."""
    other = second.model.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.model.state_dict().items())


@pytest.mark.slow
def test_digits_reach_their_bar() -> None:
    """The digits recipe: at least 95 % with the right key, near chance on plain inputs and over twenty wrong keys."""
    steps: list[Progress] = []
    found = train(recipe("digits"), transform=SPEC, key=KEY, epochs=15, progress=steps.append)
    assert found.accuracy.right_key >= 0.95
    assert found.accuracy.plain < 0.30
    assert len(found.accuracy.wrong_keys) == 20
    assert found.accuracy.wrong_key is not None
    assert found.accuracy.wrong_key < 0.20
    assert [step.epoch for step in steps] == list(range(1, 16))
    assert found.report["accuracy"]["right_key"] == round(found.accuracy.right_key, 4)
    assert (found.shape, found.transform, found.input_key_id) == ((1, 8, 8), SPEC, input_key_id(KEY))
    assert draw_curves(found.report).startswith(b"\x89PNG")


def test_runs_repeat() -> None:
    """The same seed gives the same bits whatever torch's global generator does, another seed or key others."""
    first = train(tiny_task(), transform=TransformSpec.parse_text("np:2"), key=KEY, seed=5)
    torch.rand(3)
    again = train(tiny_task(), transform=TransformSpec.parse_text("np:2"), key=KEY, seed=5)
    other_seed = train(tiny_task(), transform=TransformSpec.parse_text("np:2"), key=KEY, seed=6)
    other_key = train(tiny_task(), transform=TransformSpec.parse_text("np:2"), key=InputKey(bytes(32)), seed=5)
    assert same_weights(first, again)
    assert first.accuracy == again.accuracy
    assert not same_weights(first, other_seed)
    assert not same_weights(first, other_key)


def test_the_global_generator_is_left_alone() -> None:
    """Training does not move the caller's random numbers."""
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    train(tiny_task(epochs=1), transform=None, key=None)
    assert torch.equal(torch.rand(4), expected)


def test_a_broken_run_goes_on(tmp_path: Path) -> None:
    """A run stopped after its second epoch and started again ends with the bits of one without a break."""

    class Stop(Exception):
        """What ends the first run."""

    def stop(step: Progress) -> None:
        if step.epoch == 2:
            raise Stop

    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train(tiny_task(), transform=SPEC, key=KEY, checkpoint_dir=folder, progress=stop)
    steps: list[int] = []
    resumed = train(
        tiny_task(), transform=SPEC, key=KEY, checkpoint_dir=folder, progress=lambda step: steps.append(step.epoch)
    )
    assert steps == [3, 4]
    whole = train(tiny_task(), transform=SPEC, key=KEY)
    assert same_weights(resumed, whole)
    assert resumed.report["history"] == whole.report["history"]
    assert (folder / "checkpoint.pt").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.iterdir()] == ["checkpoint.pt"]


def test_a_run_does_not_go_on_over_other_data(tmp_path: Path) -> None:
    """Other images or labels in the same number, or another normalisation, are another run."""
    task = tiny_task(epochs=1)
    train(task, transform=SPEC, key=KEY, checkpoint_dir=tmp_path)
    images, labels = task.data.train.images, task.data.train.labels
    changes: list[dict[str, Any]] = [
        {"data": task.data._replace(train=ArrayDataset(255 - images, labels))},
        {"data": task.data._replace(train=ArrayDataset(images, labels.roll(1)))},
        {"mean": [0.1 + value for value in task.mean]},
    ]
    for change in changes:
        with pytest.raises(Conflict, match="mean" if "mean" in change else "data_sha256"):
            train(replace(task, **change), transform=SPEC, key=KEY, checkpoint_dir=tmp_path)


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    """A checkpoint of other settings, of another network, exposed or damaged is refused by name."""
    train(tiny_task(epochs=1), transform=SPEC, key=KEY, checkpoint_dir=tmp_path)
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(Conflict):
        train(tiny_task(epochs=1), transform=SPEC, key=KEY, seed=1, checkpoint_dir=tmp_path)
    other = tiny_task(epochs=1, network=lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3)))
    with pytest.raises(Conflict):
        train(other, transform=SPEC, key=KEY, checkpoint_dir=tmp_path)
    raw = path.read_bytes()
    for damaged in (b"", raw[:-40], b"\x80\x04." + raw, b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(Malformed):
            train(tiny_task(epochs=1), transform=SPEC, key=KEY, checkpoint_dir=tmp_path)
    torch.save({"epoch": 1}, path)
    with pytest.raises(Malformed):
        train(tiny_task(epochs=1), transform=SPEC, key=KEY, checkpoint_dir=tmp_path)
    path.chmod(0o644)
    with pytest.raises(Denied):
        train(tiny_task(epochs=1), transform=SPEC, key=KEY, checkpoint_dir=tmp_path)


def test_without_a_transform() -> None:
    """A plain model has no key, no wrong keys, and its plain accuracy is its accuracy."""
    found = train(tiny_task(epochs=1), transform=None, key=None)
    assert found.input_key_id is None
    assert found.accuracy.wrong_key is None
    assert found.accuracy.right_key == found.accuracy.plain
    assert draw_curves(found.report).startswith(b"\x89PNG")


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    """A vendor's task trains, seals from memory under its name, and writes one file only."""
    issuer = Identity.generate("issuer", "vendor")
    found = train(tiny_task(epochs=1), transform=SPEC, key=KEY)
    manifest, secrets = seal(found, tmp_path / "tiny.tessera", issuer=issuer, version=2, now_s=1.8e9, input_key=KEY)
    assert (manifest.model, manifest.version, manifest.max_batch) == ("tiny", 2, 8)
    assert manifest.input_key_id == input_key_id(KEY)
    assert manifest.tiers[-1].quality["accuracy_right_key"] == found.report["accuracy"]["right_key"]
    assert secrets.input_key == KEY
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.tessera"]


def test_misuse() -> None:
    """Half a lock, a spec that does not fit, and settings that cannot train are typed errors."""
    with pytest.raises(ApiMisuse):
        train(tiny_task(), transform=SPEC, key=None)
    with pytest.raises(ApiMisuse):
        train(tiny_task(), transform=None, key=KEY)
    with pytest.raises(TransformError):
        train(tiny_task(), transform=TransformSpec.parse_text("shf:8"), key=KEY)
    with pytest.raises(ApiMisuse):
        train(tiny_task(), transform=None, key=None, epochs=0)
    with pytest.raises(ApiMisuse):
        tiny_task(mean=(0.5,))
    with pytest.raises(ApiMisuse):
        tiny_task(batch=0)
    with pytest.raises(NotFound):
        recipe("letters")


def test_digits_data() -> None:
    """1,797 scans, scaled so that 0 stays 0 and the darkest ink is 255, always split the same way."""
    data = digits()
    assert (len(data.train), len(data.test)) == (1297, 500)
    everything = torch.cat([data.train.images, data.test.images])
    assert everything.shape == (1797, 1, 8, 8)
    assert sorted(set(everything.reshape(-1).tolist())) == [(level * 255 + 8) // 16 for level in range(17)]
    assert torch.equal(digits().test.images, data.test.images)
    assert int(data.test.labels.bincount().min()) > 30


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scikit-learn or matplotlib the error names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match="scikit-learn") as caught:
        digits()
    assert "[demo]" in caught.value.remedy
    with pytest.raises(MissingExtra, match="matplotlib") as caught:
        draw_curves({})
    assert "[vendor]" in caught.value.remedy


def test_any_dataset_becomes_a_split() -> None:
    """Map-style torch datasets are taken as they are; other items are refused."""
    images, labels = torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5)
    found = split_of(TensorDataset(images, labels), TensorDataset(images, labels))  # type: ignore[arg-type]
    assert torch.equal(found.train.labels, labels)
    assert found.train[3][1] == 3
    for wrong in (TensorDataset(images.float(), labels), TensorDataset(images[:0], labels[:0]), TensorDataset(images)):
        with pytest.raises(ApiMisuse):
            split_of(wrong, wrong)  # type: ignore[arg-type]


def test_augmentation_keeps_form() -> None:
    """Shifting moves whole images by at most the given pixels and fills with 0; flipping mirrors; both keep dtype."""
    draws = torch.Generator().manual_seed(0)
    images = torch.zeros(200, 2, 5, 5, dtype=torch.uint8)
    images[:, :, 2, 2] = 9
    shifted = random_shift(1)(images, draws)
    assert shifted.dtype == torch.uint8
    assert bool((shifted.sum(dim=(2, 3)) == 9).all())
    assert bool((shifted[:, :, 1:4, 1:4].sum(dim=(2, 3)) == 9).all())
    assert torch.equal(shifted[:, 0], shifted[:, 1])
    assert len(torch.unique(shifted.reshape(200, -1), dim=0)) == 9
    image = torch.arange(8, dtype=torch.uint8).reshape(1, 1, 2, 4).repeat(50, 1, 1, 1)
    flipped: Tensor = random_flip()(image, draws)
    kinds = {tuple(row) for row in flipped[:, 0, 0].tolist()}
    assert kinds == {(0, 1, 2, 3), (3, 2, 1, 0)}


def test_the_cifar_network_has_the_published_size() -> None:
    """The CIFAR ResNet-18 has the parameter count of the repository it follows."""
    assert sum(value.numel() for value in CifarResNet18().parameters()) == 11_173_962


def test_recipes_are_complete() -> None:
    """Every recipe is filed under its own name and its transform can be read."""
    for name, found in RECIPES.items():
        assert found.name == name
        assert TransformSpec.parse_text(found.transform)
        assert found.summary


def test_evaluation_keys_repeat() -> None:
    """Wrong keys for measuring are the same for the same seed and differ among themselves."""
    keys = evaluation_keys(5, 3)
    assert [key.reveal() for key in keys] == [key.reveal() for key in evaluation_keys(5, 3)]
    assert len({key.reveal() for key in [*keys, *evaluation_keys(5, 4)]}) == 10
