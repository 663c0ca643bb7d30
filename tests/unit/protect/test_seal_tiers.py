"""Sealing a bundle in tiers: one part a tier, a chain of keys, the vendor's model at the top."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from support.keys import ISSUER, NOW_S
from support.models import Digits, seeded
from support.tiers import NAMES, cut
from tessera.keystore.errors import Malformed
from tessera.keystore.package import PatchEntry, encode_patch, open_package
from tessera.protect import Bundle, bundle_of_module, seal_bundle
from tessera.protect.bundle import BundleTier

ISSUERS = {ISSUER.key_id: ISSUER.public.verify_key}


@pytest.fixture(scope="module")
def plain() -> Bundle:
    """A bundle of one tier."""
    return bundle_of_module(seeded(Digits), (1, 8, 8), max_batch=4)


@pytest.fixture(scope="module")
def bundle(plain: Bundle) -> Bundle:
    """The same in three tiers."""
    parts = cut(plain.tensors)
    tiers = tuple(BundleTier(name, {"accuracy": 0.5}, patch) for name, patch in zip(NAMES, parts.patches, strict=True))
    return replace(plain, tensors=parts.base, tiers=tiers)


def test_a_bundle_in_tiers_becomes_a_package_in_tiers(bundle: Bundle, plain: Bundle, tmp_path: Path) -> None:
    """Names and qualities are the bundle's, every patch is there, and all of them give the vendor's weights."""
    path = tmp_path / "a.tessera"
    manifest, secrets = seal_bundle(bundle, path, issuer=ISSUER, model="digits", version=1, now_s=NOW_S)
    assert [(tier.tier, tier.name, tier.quality) for tier in manifest.tiers] == [
        (number, name, {"accuracy": 0.5}) for number, name in enumerate(NAMES, 1)
    ]
    assert secrets.tier_key is not None
    assert (secrets.tier_key.tier, secrets.tier_key.package_id) == (3, manifest.package_id)
    with open_package(path, ISSUERS) as sealed:
        sealed.verify_digests()
        package = sealed.unlock(secrets.content_key)
        state = {name: np.zeros(value.nbytes, np.uint8) for name, value in plain.tensors.items()}
        package.read_tensors_into({name: raw.data for name, raw in state.items()})
        assert state["head.weight"].tobytes() == bundle.tensors["head.weight"].numpy().tobytes()
        for tier in (1, 2, 3):
            package.apply_patch(secrets.tier_key.at(tier), {name: raw.data for name, raw in state.items()})
    assert {name: raw.tobytes() for name, raw in state.items()} == {
        name: value.numpy().tobytes() for name, value in plain.tensors.items()
    }


def test_two_sealings_share_no_key(bundle: Bundle, tmp_path: Path) -> None:
    """Content key, tier keys and package id are fresh each time."""
    made = [
        seal_bundle(bundle, tmp_path / name, issuer=ISSUER, model="digits", version=1, now_s=NOW_S)[1]
        for name in ("a.tessera", "b.tessera")
    ]
    assert made[0].package_id != made[1].package_id
    assert made[0].content_key != made[1].content_key
    assert made[0].tier_key is not None
    assert made[1].tier_key is not None
    assert made[0].tier_key.secret != made[1].tier_key.secret


def test_without_tiers_there_is_one_as_before(plain: Bundle, tmp_path: Path) -> None:
    """No patch, no tier key."""
    manifest, secrets = seal_bundle(
        plain, tmp_path / "a.tessera", issuer=ISSUER, model="digits", version=1, now_s=NOW_S
    )
    assert ([tier.name for tier in manifest.tiers], manifest.patches, secrets.tier_key) == (["full"], (), None)


@pytest.mark.parametrize("where", ["decoys", "patch", "half"])
def test_nan_is_not_sealed_wherever_it_hides(bundle: Bundle, tmp_path: Path, where: str) -> None:
    """In the public weights or in a patch, in any floating dtype, NaN is `Malformed` and nothing is written."""
    poisoned = bundle
    if where == "decoys":
        bad = bundle.tensors["head.weight"].clone()
        bad[0, 0] = torch.nan
        poisoned = replace(bundle, tensors=bundle.tensors | {"head.weight": bad})
    else:
        dtype, kind = ("F32", np.float32) if where == "patch" else ("F16", np.float16)
        values = np.full((1, 9), np.nan, kind)
        patch = encode_patch([PatchEntry("conv.weight", dtype, 9, np.array([0]), values.view(np.uint8))])
        poisoned = replace(bundle, tiers=(*bundle.tiers[:2], replace(bundle.tiers[2], patch=patch)))
    with pytest.raises(Malformed, match="NaN"):
        seal_bundle(poisoned, tmp_path / "a.tessera", issuer=ISSUER, model="digits", version=1, now_s=NOW_S)
    assert list(tmp_path.iterdir()) == []


def test_a_patch_of_another_model_is_not_sealed(bundle: Bundle, tmp_path: Path) -> None:
    """A patch for tensors that the bundle does not have is `Malformed`."""
    stray = encode_patch([PatchEntry("fc.weight", "F32", 1, np.array([0]), np.zeros((1, 4), np.uint8))])
    poisoned = replace(bundle, tiers=(replace(bundle.tiers[0], patch=stray), *bundle.tiers[1:]))
    with pytest.raises(Malformed, match=r"fc\.weight"):
        seal_bundle(poisoned, tmp_path / "a.tessera", issuer=ISSUER, model="digits", version=1, now_s=NOW_S)
    assert list(tmp_path.iterdir()) == []
