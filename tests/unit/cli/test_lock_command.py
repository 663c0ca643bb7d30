"""`tessera protect lock`: from a trained bundle to a buyer's own, as a vendor runs it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from support.cli import document, invoke, refusal
from tessera.keystore.keyfile import save_input_key
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey
from tessera.protect import DigitsNet, PixelModel, bundle_of_module, read_bundle, write_bundle
from tessera.transforms import TransformSpec

VENDORS, ADAS = InputKey(bytes(range(32))), InputKey(bytes(range(1, 33)))
SPEC = TransformSpec.parse_text("shf:4,np:4")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle under the vendor's key, one without, two keys, and images labelled by what the plain network answers."""
    folder = tmp_path_factory.mktemp("shop")
    torch.manual_seed(1)
    model = PixelModel(DigitsNet(), (0.5,), (0.5,)).eval()
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    with torch.no_grad():
        labels = model(torch.from_numpy(images)).argmax(1).numpy()
    write_bundle(bundle_of_module(model, (1, 8, 8)), folder / "plain")
    np.savez(folder / "held.npz", images=images, labels=labels)
    for name, key in (("vendor.key", VENDORS), ("ada.key", ADAS)):
        save_input_key(folder / name, key)
    return folder


def test_a_first_key_then_a_buyers_own(shop: Path, tmp_path: Path) -> None:
    """What is measured of the copies is what the network was worth before, and what a wrong key gets."""
    first = document(
        "protect", "lock", shop / "plain", "--key", shop / "vendor.key", "--transform", SPEC, "--out",
        tmp_path / "first", "--samples", shop / "held.npz", "--wrong-keys", 5,
    )  # fmt: skip
    assert first["accuracy"]["right_key"] == 1.0
    assert first["accuracy"]["wrong_keys"] == 5
    assert first["accuracy"]["wrong_key"] < 0.9
    second = document(
        "protect", "lock", tmp_path / "first", "--old-key", shop / "vendor.key", "--key", shop / "ada.key", "--out",
        tmp_path / "ada",
    )  # fmt: skip
    assert second["transform"] == str(SPEC)
    assert second["answers_moved"] < 1e-5
    made = read_bundle(tmp_path / "ada")
    assert made.input_key_id == input_key_id(ADAS) == second["input_key_id"]
    assert made.quality == {"accuracy_right_key": 1.0}
    issuer = tmp_path / "acme.key"
    assert invoke("keys", "new", "--kind", "issuer", "--name", "Acme", "--out", issuer).exit_code == 0
    built = document(
        "package", "build", tmp_path / "ada", "--issuer", issuer, "--input-key", shop / "ada.key", "--model", "digits",
        "--out", tmp_path / "ada.tessera",
    )  # fmt: skip
    assert built["input_key_id"] == input_key_id(ADAS)


def test_what_does_not_fit_is_refused_and_nothing_is_written(shop: Path, tmp_path: Path) -> None:
    """A key for a bundle without one, no transform, a transform that the network cannot take in."""
    out = tmp_path / "out"
    plain = ("protect", "lock", shop / "plain", "--key", shop / "ada.key", "--out", out)
    assert refusal(*plain, "--old-key", shop / "vendor.key", "--transform", SPEC)["reason"] == "api-misuse"
    assert refusal(*plain, "--transform", "ffx:4")["reason"] == "not-lockable"
    assert refusal(*plain, "--transform", "shf:16")["reason"] == "transform-invalid"
    missing = invoke(*plain)
    assert missing.exit_code == 2
    assert "the bundle has none yet" in missing.stderr
    both = invoke(*plain, "--transform", SPEC, "--recipe", "digits", "--samples", shop / "held.npz")
    assert both.exit_code == 2
    assert not out.exists()
