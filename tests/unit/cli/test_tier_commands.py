"""Tiers on the vendor's machine: what a package says of them, and licences for one of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from support import keys
from support.cli import document, invoke, refusal
from support.packages import SMALL_PATCHES, a_draft, small_tiers
from support.vendor import Bench, make_bench
from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.package import Tier
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import TierSecret
from tessera.keystore.tiers import TierKey
from tessera.protect import PixelModel, bundle_of_module, write_bundle

TIERS = (Tier(1, "preview", {"psnr": 20.7}), Tier(2, "standard", {"psnr": 24.25}), Tier(3, "full", {"psnr": 29.953}))
TIER_KEY = TierKey(keys.PACKAGE_ID, 3, TierSecret(bytes(32)))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A vendor's folder with a package of three tiers and its secrets."""
    made = make_bench(tmp_path)
    small_tiers(
        made.package,
        package_id=keys.PACKAGE_ID,
        issuer=keys.ISSUER,
        content_key=keys.CONTENT_KEY,
        tier_key=TIER_KEY,
        draft=a_draft(tiers=TIERS, input_key_id=input_key_id(keys.INPUT_KEY)),
    )
    secrets = PackageSecrets(keys.PACKAGE_ID, keys.CONTENT_KEY, keys.INPUT_KEY, TIER_KEY)
    grants.save_package_secrets(f"{made.package}.secrets", secrets, overwrite=True)
    return made


def arguments(bench: Bench, *options: object) -> tuple[object, ...]:
    """Return a call of `licence issue` for the bench's package, buyer and node."""
    return (
        *("licence", "issue", "--issuer", bench.issuer, "--package", bench.package, "--buyer", f"{bench.buyer}.pub"),
        *("--node", bench.node / "node.pub", "--out", bench.licence, *options),
    )


def test_inspect_prints_the_table_of_tiers(bench: Bench) -> None:
    """Number, name, measured quality and the bytes that each adds; for machines and for people."""
    told = document("package", "inspect", bench.package)
    assert told["tiers"] == [
        {"tier": tier.tier, "name": tier.name, "quality": tier.quality, "patch_bytes": len(patch)}
        for tier, patch in zip(TIERS, SMALL_PATCHES, strict=True)
    ]
    shown = invoke("package", "inspect", bench.package, COLUMNS="200").stdout
    line = next(line for line in shown.splitlines() if "standard" in line)
    assert line.split() == ["2", "standard", "psnr", "24.25", str(len(SMALL_PATCHES[1]))]


def test_a_package_without_tiers_says_so(tmp_path: Path) -> None:
    """One tier, no patch."""
    bench = make_bench(tmp_path)
    told = document("package", "inspect", bench.package)
    assert [(tier["name"], tier["patch_bytes"]) for tier in told["tiers"]] == [("full", None)]


def test_verify_opens_every_patch(bench: Bench) -> None:
    """With the keys each tier is decrypted; a chain of another package does not pass."""
    call = ("package", "verify", bench.package, "--issuer", f"{bench.issuer}.pub", "--secrets")
    assert document(*call, f"{bench.package}.secrets")["decrypted"] is True
    other = TierKey(keys.PACKAGE_ID, 3, TierSecret(bytes([1]) * 32))
    stray = PackageSecrets(keys.PACKAGE_ID, keys.CONTENT_KEY, keys.INPUT_KEY, other)
    grants.save_package_secrets(bench.folder / "stray", stray)
    assert refusal(*call, bench.folder / "stray")["reason"] == "wrong-key"


@pytest.mark.parametrize(
    ("wanted", "tier"), [((), 3), (("--tier", "2"), 2), (("--tier", "preview"), 1), (("--tier", "full"), 3)]
)
def test_a_licence_names_its_tier_by_number_or_name(bench: Bench, wanted: tuple[str, ...], tier: int) -> None:
    """The grant carries that tier's key and no higher one; without the option it is the best."""
    assert document(*arguments(bench, *wanted))["tier"] == tier
    held = licences.read_licence_file(bench.licence)
    licence = licences.verify(held.licence, keys.ISSUERS)
    grant = grants.verify(held.grant or "", licence, keys.ISSUERS)
    assert (licence.terms.tier, grant.tier) == (tier, tier)


@pytest.mark.parametrize("options", [("--tier", "4"), ("--tier", "gold"), ("--tier", "0"), ("--tier", "")])
def test_a_tier_that_the_package_lacks_is_told(bench: Bench, options: tuple[str, str]) -> None:
    """The refusal lists those it has; nothing is written."""
    error = refusal(*arguments(bench, *options))
    assert error["reason"] == "tier-unavailable"
    assert "1 (preview), 2 (standard), 3 (full)" in error["remedy"]
    assert not bench.licence.exists()


def test_degrading_goes_down(bench: Bench) -> None:
    """A lower tier of the package, named by its number; not one above the licence's own."""
    policy = ("--expiry-policy", "degrade", "--grace", "7d", "--tier", "2", "--degrade-to")
    assert "above the licence's own tier 2" in refusal(*arguments(bench, *policy, "3"))["message"]
    assert not bench.licence.exists()
    told = document(*arguments(bench, *policy, "1"))
    assert (told["expiry_policy"], told["degrade_to"]) == ("degrade", 1)
    table = {tier["tier"]: tier["quality"] for tier in document("package", "inspect", bench.package)["tiers"]}
    assert (told["quality"], told["degraded_quality"]) == (table[2], table[1])
    assert document("licence", "inspect", bench.licence)["degrade_to"] == 1


def test_layers_chosen_by_themselves_that_hold_little_are_worth_a_word(tmp_path: Path) -> None:
    """A network of linear layers behind one small convolution: `auto` takes that one alone, and says so."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 4, stride=4), nn.Flatten(), nn.Linear(16, 100), nn.ReLU(), nn.Linear(100, 10))
    write_bundle(bundle_of_module(PixelModel(model, (0.5,), (0.5,)), (1, 8, 8)), tmp_path / "plain")
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "held.npz", images=images, labels=np.arange(60) % 10)
    call = (
        *("protect", "encrypt", tmp_path / "plain", "--samples", tmp_path / "held.npz"),
        *("--budget", 0.5, "--scores", "random", "--tiers", "0,1"),
    )
    told = invoke(*call, "--out", tmp_path / "auto")
    assert told.exit_code == 0, told.stderr
    assert "hold 2% of the network's weights" in " ".join(told.stderr.split())
    named = invoke(*call, "--layers", "network.2,network.4", "--out", tmp_path / "named")
    assert named.exit_code == 0, named.stderr
    assert "auto took" not in named.stderr
