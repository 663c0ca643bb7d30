"""Subjects and samples from files: an attacker's model is the vendor's to the bit, and bad input is named."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from support import keys
from support.cut_models import digits_sample, tiered
from tessera.keystore.errors import ApiMisuse, Conflict, Malformed, NotFound, TesseraError, WrongKey
from tessera.keystore.package import open_package
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey
from tessera.protect import ArrayDataset, Bundle, PixelModel, Split, TrainingTask, bundle_of_module, seal_bundle, train
from tessera.protect.audit import (
    sample_of_npz,
    sample_of_task,
    subject_of_bundle,
    subject_of_checkpoint,
    subject_of_file,
    subject_of_package,
)
from tessera.protect.audit.subject import split_sample
from tessera.protect.data import SegmentationDataset
from tessera.protect.selective import same_bits
from tessera.transforms import TransformError, TransformSpec

SPEC = TransformSpec.parse_text("np:4")
KEY_ID = input_key_id(keys.INPUT_KEY)
IMAGES = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 3


def network() -> nn.Module:
    """Return a small network with a batch norm, for images of 1x8x8 in three classes."""
    return nn.Sequential(nn.Conv2d(1, 4, 4, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def task(**changes: object) -> TrainingTask:
    """Return a task for that network."""
    data = ArrayDataset(IMAGES, LABELS)
    plan = TrainingTask(name="tiny", data=Split(data, data), network=network, mean=(0.5,), std=(0.3,), epochs=1)
    return replace(plan, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Return that network, taking pixels."""
    return PixelModel(network(), (0.5,), (0.3,)).eval()


@pytest.fixture(scope="module")
def bundle(model: nn.Module) -> Bundle:
    """Return its bundle."""
    return bundle_of_module(model, (1, 8, 8), transform=SPEC, input_key_id=KEY_ID)


def test_a_bundle_is_attacked_as_the_model_that_it_holds(model: nn.Module, bundle: Bundle) -> None:
    """The same answers, each copy for itself; the contract says what goes in and comes out."""
    subject = subject_of_bundle(bundle, keys.INPUT_KEY, name="tiny")
    assert (subject.shape, subject.kind, subject.classes) == ((1, 8, 8), "classification", 3)
    first, second = subject.victim(), subject.victim()
    assert torch.equal(first(IMAGES), model(IMAGES))
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert torch.equal(second(IMAGES), model(IMAGES))
    assert not torch.allclose(subject.fresh(1)(IMAGES), model(IMAGES))
    assert torch.equal(subject.fresh(1)(IMAGES), subject.fresh(1)(IMAGES))


def test_a_package_is_attacked_as_the_model_that_was_sealed(model: nn.Module, bundle: Bundle, tmp_path: Path) -> None:
    """Decrypted in memory with the vendor's keys, it answers to the bit as before sealing."""
    path = tmp_path / "tiny.tessera"
    _, secrets = seal_bundle(
        bundle, path, issuer=keys.ISSUER, model="tiny", version=2, now_s=keys.NOW_S, input_key=keys.INPUT_KEY
    )
    with open_package(path, keys.ISSUERS) as sealed:
        subject = subject_of_package(sealed.unlock(secrets.content_key), secrets.input_key)
    assert subject.name == "tiny version 2"
    assert torch.equal(subject.victim()(IMAGES), model(IMAGES))


@pytest.mark.slow
def test_tiers_are_attacked_from_a_package_as_from_a_bundle(tmp_path: Path) -> None:
    """The victim is the full model to the bit, lower tiers have their decoys, and keys are tried on the file itself."""
    bundle = tiered()
    path = tmp_path / "tiers.tessera"
    _, secrets = seal_bundle(bundle, path, issuer=keys.ISSUER, model="tiers", version=1, now_s=keys.NOW_S)
    images = digits_sample().held_out.images[:6]
    first = subject_of_bundle(bundle, None, name="tiers")
    second = subject_of_file(path, keys.ISSUERS, secrets)
    assert first.cut is not None
    assert second.cut is not None
    assert first.protections == second.protections == {"tiers"}
    for tier in range(first.cut.tiers + 1):
        assert same_bits(first.cut.state(tier), second.cut.state(tier))
    assert torch.equal(first.victim()(images), second.victim()(images))
    assert not torch.equal(first.victim()(images), first.cut.model(first.cut.state(0))(images))
    with second.cut.sealed() as vault:
        assert (vault.path, vault.top) == (path, secrets.tier_key)
    with first.cut.sealed() as vault:
        made = vault.path
        assert made.exists()
        assert vault.top.tier == 3
    assert not made.exists()


def test_a_package_in_tiers_needs_the_key_of_its_top_tier(tmp_path: Path) -> None:
    """Without it, or with a lower one, decoys would be attacked in place of the model."""
    path = tmp_path / "tiers.tessera"
    _, secrets = seal_bundle(tiered(), path, issuer=keys.ISSUER, model="tiers", version=1, now_s=keys.NOW_S)
    assert secrets.tier_key is not None
    for key in (None, secrets.tier_key.at(2)):
        with pytest.raises(ApiMisuse, match="key of the highest") as caught:
            subject_of_file(path, keys.ISSUERS, replace(secrets, tier_key=key))
        assert ".secrets" in caught.value.remedy


def test_a_checkpoint_is_attacked_with_the_recipes_own_network(tmp_path: Path) -> None:
    """The weights are those that training would keep; untrained ones come from the task, and learn statistics."""
    plan = task()
    trained = train(plan, transform=SPEC, key=keys.INPUT_KEY, wrong_keys=1, checkpoint_dir=tmp_path)
    for path in (tmp_path, tmp_path / "checkpoint.pt"):
        subject = subject_of_checkpoint(path, keys.INPUT_KEY, plan)
        assert torch.allclose(subject.victim()(IMAGES), trained.model(IMAGES))
    assert subject.spec == SPEC
    fresh = subject.fresh(3)
    before = fresh.eval()(IMAGES)
    fresh.train()(IMAGES)
    assert not torch.allclose(fresh.eval()(IMAGES), before)
    with pytest.raises(WrongKey):
        subject_of_checkpoint(tmp_path, InputKey.generate(), plan)
    with pytest.raises(Conflict, match="another network"):
        subject_of_checkpoint(tmp_path, keys.INPUT_KEY, task(network=lambda: nn.Linear(1, 1)))


def test_checkpoints_that_are_none_or_plain_are_refused(tmp_path: Path) -> None:
    """A run without a transform has no lock; other bytes are named with their path."""
    train(task(), transform=None, key=None, checkpoint_dir=tmp_path / "plain")
    with pytest.raises(ApiMisuse, match="without a transform") as caught:
        subject_of_checkpoint(tmp_path / "plain", keys.INPUT_KEY, task())
    assert "--transform" in caught.value.remedy
    damaged = tmp_path / "checkpoint.pt"
    damaged.touch(mode=0o600)
    damaged.write_bytes(b"nothing of the kind")
    with pytest.raises(Malformed, match="is not a checkpoint"):
        subject_of_checkpoint(damaged, keys.INPUT_KEY, task())
    with pytest.raises(NotFound):
        subject_of_checkpoint(tmp_path / "absent", keys.INPUT_KEY, task())


def test_a_model_without_a_lock_or_a_key_cannot_be_judged(model: nn.Module, bundle: Bundle) -> None:
    """There is nothing to attack, or nothing to compare attacks with; each says what to do."""
    with pytest.raises(ApiMisuse, match="takes plain inputs") as caught:
        subject_of_bundle(bundle_of_module(model, (1, 8, 8)), None, name="open")
    assert "protect train" in caught.value.remedy
    with pytest.raises(ApiMisuse, match="without it no attack can be judged") as caught:
        subject_of_bundle(bundle, None, name="tiny")
    assert "--key" in caught.value.remedy
    with pytest.raises(WrongKey) as wrong:
        subject_of_bundle(bundle, InputKey.generate(), name="tiny")
    assert KEY_ID in wrong.value.remedy


def test_a_recipe_of_another_shape_is_refused(bundle: Bundle) -> None:
    """Its data could not be shown to the model."""
    other = ArrayDataset(torch.zeros((4, 3, 8, 8), dtype=torch.uint8), torch.arange(4) % 2)
    plan = task(data=Split(other, other), mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(ApiMisuse, match="the recipe tiny is a classification of"):
        subject_of_bundle(bundle, keys.INPUT_KEY, name="tiny", task=plan)


def test_a_model_that_is_neither_kind_is_refused() -> None:
    """Labels could not be held against what it gives."""
    whole = bundle_of_module(PixelModel(nn.Flatten(2), (0.5,), (0.3,)), (1, 8, 8), transform=SPEC, input_key_id=KEY_ID)
    with pytest.raises(ApiMisuse, match="needs a classification or a segmentation"):
        subject_of_bundle(whole, keys.INPUT_KEY, name="flat")


def test_a_spec_that_does_not_fit_the_model_is_refused(model: nn.Module) -> None:
    """A bundle written by hand may claim anything."""
    odd = bundle_of_module(model, (1, 8, 8), transform=TransformSpec.parse_text("np:3"), input_key_id=KEY_ID)
    with pytest.raises(TransformError, match="does not divide"):
        subject_of_bundle(odd, keys.INPUT_KEY, name="odd")


def save(path: Path, **arrays: NDArray[np.generic]) -> Path:
    """Write an .npz file and return its path."""
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes keywords for its own options
    return path


def test_labelled_arrays_are_split_between_attackers_and_judge(tmp_path: Path) -> None:
    """Half each, by chance and the same for the same seed, and no image is in both."""
    marked = np.zeros((40, 1, 8, 8), dtype=np.uint8)
    marked[:, 0, 0, 0] = np.arange(40)
    path = save(tmp_path / "sample.npz", images=marked, labels=LABELS.numpy().astype(np.int32))
    first, again, other = (sample_of_npz(path, 3, seed=seed) for seed in (1, 1, 2))
    mine, theirs = (part.images[:, 0, 0, 0].tolist() for part in (first.attacker, first.held_out))
    assert sorted(mine + theirs) == list(range(40))
    assert len(mine) == len(theirs) == 20
    assert all(int(label) == value % 3 for value, label in zip(mine, first.attacker.labels, strict=True))
    assert torch.equal(first.held_out.images, again.held_out.images)
    assert not torch.equal(first.held_out.images, other.held_out.images)


def test_pixels_with_labels_are_a_segmentation(tmp_path: Path) -> None:
    """One value at or above the number of classes is ignored; two are a mistake."""
    images, labels = IMAGES.numpy(), np.zeros((40, 8, 8), dtype=np.uint8)
    labels[:, 0] = 255
    found = sample_of_npz(save(tmp_path / "a.npz", images=images, labels=labels), 3, seed=0).held_out
    assert isinstance(found, SegmentationDataset)
    assert (found.classes, found.ignore) == (3, 255)
    labels[:, 1] = 7
    with pytest.raises(Malformed, match="label 7"):
        sample_of_npz(save(tmp_path / "b.npz", images=images, labels=labels), 3, seed=0)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"images": IMAGES.numpy()}, "no array called labels"),
        ({"labels": LABELS.numpy()}, "no array called images"),
        ({"images": IMAGES.numpy().astype(np.float32), "labels": LABELS.numpy()}, "images are float32"),
        ({"images": IMAGES.numpy()[:, 0], "labels": LABELS.numpy()}, r"not uint8 \(N, C, H, W\)"),
        ({"images": IMAGES.numpy(), "labels": LABELS.numpy()[:39]}, r"labels are int64 \(39,\)"),
        ({"images": IMAGES.numpy(), "labels": LABELS.numpy().astype(np.float64)}, "labels are float64"),
        ({"images": IMAGES.numpy(), "labels": LABELS.numpy() - 1}, "label -1 is negative"),
        ({"images": IMAGES.numpy(), "labels": np.full((40, 8, 8), 300)}, "label 300 is larger than a byte"),
        ({"images": IMAGES.numpy()[:0], "labels": LABELS.numpy()[:0]}, "images are uint8"),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(
    tmp_path: Path, arrays: dict[str, NDArray[np.generic]], told: str
) -> None:
    """The message names the file and what is wrong, the remedy how to write one."""
    path = save(tmp_path / "sample.npz", **arrays)
    with pytest.raises(Malformed, match=told) as caught:
        sample_of_npz(path, 3, seed=0)
    assert str(path) in caught.value.public
    assert caught.value.remedy


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    """Half of a handful judges nothing."""
    path = save(tmp_path / "few.npz", images=IMAGES.numpy()[:19], labels=LABELS.numpy()[:19])
    with pytest.raises(ApiMisuse, match="holds 19 labelled images, and an audit needs at least 20"):
        sample_of_npz(path, 3, seed=0)
    assert len(split_sample(ArrayDataset(IMAGES[:20], LABELS[:20]), "twenty", seed=0).held_out) == 10


@given(st.binary(max_size=200), st.integers(0, 2000), st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_damaged_files_end_in_our_own_errors(tmp_path: Path, junk: bytes, at: int, value: int) -> None:
    """Junk, and a real file with one byte changed: a sample or a typed error, never another exception."""
    path = tmp_path / "sample.npz"
    save(path, images=IMAGES.numpy()[:20], labels=LABELS.numpy()[:20])
    raw = bytearray(path.read_bytes())
    raw[at % len(raw)] = value
    for content in (junk, bytes(raw)):
        path.write_bytes(content)
        with suppress(TesseraError):
            assert len(sample_of_npz(path, 3, seed=0).held_out) >= 10


def test_a_recipes_data_is_split_as_the_recipe_splits_it() -> None:
    """Attackers have the training set, the test set judges."""
    few = ArrayDataset(IMAGES[:10], LABELS[:10])
    sample = sample_of_task(task(data=Split(ArrayDataset(IMAGES, LABELS), few)))
    assert (len(sample.attacker), len(sample.held_out)) == (40, 10)
    assert sample.source == "the data of tiny"
