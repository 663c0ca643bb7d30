"""A bundle becomes a tiered bundle: measured, written, read again, and from the command line."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from support.cli import document, invoke, refusal
from tessera.keystore.errors import ApiMisuse, Malformed, WrongKey
from tessera.keystore.keyfile import save_input_key
from tessera.keystore.package import decode_patch
from tessera.keystore.secrets import InputKey
from tessera.protect import (
    ArrayDataset,
    Bundle,
    PixelModel,
    SegmentationDataset,
    Split,
    bundle_of,
    bundle_of_module,
    read_bundle,
    train,
    write_bundle,
)
from tessera.protect.selective import Settings, apply, encrypt_bundle, same_bits
from tessera.protect.selective.encrypt import _chance
from tessera.protect.task import TrainingTask
from tessera.transforms import TransformSpec

KEY = InputKey(bytes(range(32)))
SPEC = TransformSpec.parse_text("shf:4,np:4")


def bars(count: int, seed: int) -> ArrayDataset:
    """Return 8x8 pictures of four classes: a bright bar at one of four heights, with noise."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 4, count)
    images = draws.integers(0, 90, (count, 1, 8, 8)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * label : 2 * label + 2] += 120
    return ArrayDataset(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


DATA = Split(bars(200, 0), bars(120, 1))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A model that tells the bars apart through a keyed transform."""
    task = TrainingTask(
        name="bars", data=DATA, mean=(0.4,), std=(0.25,), epochs=8, batch=20, max_batch=8,
        network=lambda: nn.Sequential(
            nn.Conv2d(1, 12, 4, stride=4), nn.ReLU(), nn.Conv2d(12, 12, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
        ),
    )  # fmt: skip
    return bundle_of(train(task, transform=SPEC, key=KEY, wrong_keys=0))


SETTINGS = Settings(budget=0.5, fractions=(0.0, 0.5, 1.0), batches=4)


def test_tiers_are_measured_and_give_the_model_back(bundle: Bundle, tmp_path: Path) -> None:
    """Qualities rise from guessing to the vendor's own, and the written bundle holds all of it and no more."""
    made = encrypt_bundle(bundle, DATA, SETTINGS, key=KEY)
    qualities = [tier.quality["accuracy"] for tier in made.bundle.tiers]
    assert qualities[0] < 0.75 < qualities[2]  # fresh decoys in so small a network are lucky now and then
    assert qualities[2] == pytest.approx(bundle.quality["accuracy_right_key"], abs=1e-4)
    assert [tier.name for tier in made.bundle.tiers] == ["tier-1", "tier-2", "full"]
    assert made.report["rising"] == (qualities == sorted(set(qualities)))
    write_bundle(made.bundle, tmp_path / "tiered")
    found = read_bundle(tmp_path / "tiered")
    assert found.tiers == made.bundle.tiers
    assert found.report is not None
    assert found.report["selective"]["encrypted"] == made.report["encrypted"]
    increments = [decode_patch(tier.patch) for tier in found.tiers]
    assert same_bits(apply(found.tensors, increments, 2), bundle.tensors)
    assert not same_bits(apply(found.tensors, increments, 1), bundle.tensors)
    assert [path.stat().st_mode & 0o077 for path in (tmp_path / "tiered").glob("*.patch")] == [0, 0, 0]


def test_tiers_have_the_names_that_the_vendor_gives(bundle: Bundle) -> None:
    """One for each fraction; none twice, none missing, and none that could be taken for a tier's number."""
    named = replace(SETTINGS, names=("preview", "standard", "all of it"))
    assert [tier.name for tier in encrypt_bundle(bundle, DATA, named, key=KEY).bundle.tiers] == list(named.names or ())
    for names in (
        ("a", "b"),
        ("a", "b", "b"),
        ("1", "2", "3"),
        (),
        ("a", "", "c"),
        ("a", "b", "gr\u00f6\u00dfer"),
        ("a", "b", "c" * 65),
    ):
        with pytest.raises(ApiMisuse, match="names of 3 tiers"):
            encrypt_bundle(bundle, DATA, replace(SETTINGS, names=names), key=KEY)


def test_the_report_holds_no_position(bundle: Bundle) -> None:
    """Which units are encrypted is a secret; counts and qualities are not."""
    made = encrypt_bundle(bundle, DATA, SETTINGS, key=KEY)
    assert made.report["encrypted"]["units"] == 7 + 73
    assert max((len(value) for value in made.report.values() if isinstance(value, list)), default=0) <= 3


def test_a_damaged_tier_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    """A patch that is missing, exposed, changed, or of another bundle is never loaded."""
    write_bundle(encrypt_bundle(bundle, DATA, SETTINGS, key=KEY).bundle, tmp_path)
    patch = tmp_path / "tier-1.patch"
    whole = patch.read_bytes()
    patch.write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(Malformed, match=r"tier-1\.patch"):
        read_bundle(tmp_path)
    patch.write_bytes(whole)
    assert len(read_bundle(tmp_path).tiers) == 3


def test_what_cannot_be_encrypted(bundle: Bundle) -> None:
    """Wrong key, no key, other pictures, impossible settings, twice the same: typed errors before anything is made."""
    with pytest.raises(WrongKey):
        encrypt_bundle(bundle, DATA, SETTINGS, key=InputKey(bytes(32)))
    with pytest.raises(ApiMisuse, match="input key"):
        encrypt_bundle(bundle, DATA, SETTINGS)
    wide = ArrayDataset(torch.zeros(2, 1, 8, 9, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ApiMisuse, match="images of"):
        encrypt_bundle(bundle, Split(wide, wide), SETTINGS, key=KEY)
    changes: list[dict[str, Any]] = [
        {"budget": 0.0}, {"budget": 1.5}, {"fractions": (0.5, 0.2, 1)}, {"scope": "row"}, {"decoys": "zero"},
        {"scores": "loud"}, {"layers": ("4", "nowhere")},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(ApiMisuse):
            encrypt_bundle(bundle, DATA, dataclasses.replace(SETTINGS, **change), key=KEY)
    done = encrypt_bundle(bundle, DATA, SETTINGS, key=KEY).bundle
    with pytest.raises(ApiMisuse, match="tiers already"):
        encrypt_bundle(done, DATA, SETTINGS, key=KEY)


def test_labels_that_the_model_does_not_have(bundle: Bundle) -> None:
    """Counted from 1, or of pixels: the qualities would be signed and mean nothing."""
    moved = Split(*(ArrayDataset(part.images, part.labels + 1) for part in DATA))
    with pytest.raises(ApiMisuse, match="labels up to 4, and the model has 4 classes") as caught:
        encrypt_bundle(bundle, moved, SETTINGS, key=KEY)
    assert "counted from 0" in caught.value.remedy
    pixels = SegmentationDataset(DATA.test.images, torch.zeros_like(DATA.test.images[:, 0]), 4)
    with pytest.raises(ApiMisuse, match="a label for each pixel"):
        encrypt_bundle(bundle, Split(pixels, pixels), SETTINGS, key=KEY)


def test_guessing_a_segmentation_is_one_class_everywhere() -> None:
    """A lowest tier that is 6 points better than that is not called useless: 1 / classes would be far too much."""
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    images[:, :, :4] = 200
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    labels[:, :, 0], labels[:, 0, 7] = 1, 2
    labels[:, 7, :] = 255
    field = SegmentationDataset(images, labels, 5, 255)
    model = PixelModel(nn.Conv2d(1, 5, 3, padding=1), (0.5,), (0.5,)).eval()
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.zero_()
    plan = Settings(budget=0.5, fractions=(0.0, 1.0), batches=1)
    report = encrypt_bundle(bundle_of_module(model, (1, 8, 8)), Split(field, field), plan).report
    full = report["tiers"][-1]["mean_iou"]
    assert full == pytest.approx(48 / 56 / 3)
    assert _chance(Split(field, field)) == pytest.approx(full)


def test_nan_weights_and_models_without_layers(bundle: Bundle) -> None:
    """Neither is scored, split or written."""
    name = next(name for name, value in bundle.tensors.items() if value.ndim == 4)
    broken = {**bundle.tensors, name: torch.full_like(bundle.tensors[name], torch.nan)}
    with pytest.raises(Malformed, match="NaN"):
        encrypt_bundle(dataclasses.replace(bundle, tensors=broken), DATA, SETTINGS, key=KEY)

    class Means(nn.Module):
        """Logits without a layer."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Return the means of four rows."""
            return x.mean(3)[:, 0, :4]

    plain = bundle_of_module(PixelModel(Means(), (0.5,), (0.5,)), (1, 8, 8), max_batch=4)
    with pytest.raises(ApiMisuse, match="no convolution"):
        encrypt_bundle(plain, DATA, SETTINGS)


@pytest.mark.slow
def test_the_command(bundle: Bundle, tmp_path: Path) -> None:
    """`tessera protect encrypt` writes a tiered bundle from labelled samples, and refuses what it must."""
    write_bundle(bundle, tmp_path / "plain")
    save_input_key(tmp_path / "bars.key", KEY)
    both = Split(bars(300, 5), DATA.test).train
    np.savez(tmp_path / "bars.npz", images=both.images.numpy(), labels=both.labels.numpy())
    told = ["--samples", tmp_path / "bars.npz", "--key", tmp_path / "bars.key", "--budget", "0.5", "--tiers", "0,0.5,1"]
    command = ["protect", "encrypt", tmp_path / "plain", *told]
    found = document(*command, "--scores", "fisher", "--names", "low, better,full", "--out", tmp_path / "tiered")
    assert [entry["name"] for entry in found["tiers"]] == ["low", "better", "full"]
    assert found["test_samples"] == 150
    assert len(read_bundle(tmp_path / "tiered").tiers) == 3
    shown = invoke(*command, "--out", tmp_path / "again", "--scope", "global", "--decoys", "normal")
    assert shown.exit_code == 0, shown.stderr
    assert "share of the network" in shown.stdout
    assert "exists" in refusal(*command, "--out", tmp_path / "tiered")["message"]
    assert "fractions" in refusal(*command, "--tiers", "1,0", "--out", tmp_path / "x")["message"]
    assert "budget" in refusal(*command, "--budget", "2", "--out", tmp_path / "x")["message"]
    assert (
        "no convolution or linear layer conv9"
        in refusal(*command, "--layers", "conv9", "--out", tmp_path / "x")["message"]
    )
    np.savez(tmp_path / "odd.npz", images=np.zeros((3, 8, 8)), labels=np.zeros(3))
    odd = [tmp_path / "odd.npz" if part == tmp_path / "bars.npz" else part for part in command]
    assert "--samples" in refusal(*odd, "--out", tmp_path / "x")["message"]
    missing = ["protect", "encrypt", tmp_path / "none", *told, "--out", tmp_path / "x"]
    assert "there is no bundle" in refusal(*missing)["message"]
    assert not (tmp_path / "x").exists()
    assert invoke("protect", "encrypt", tmp_path / "plain", "--out", tmp_path / "x").exit_code == 2
