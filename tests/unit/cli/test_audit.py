"""`tessera protect audit`: from a bundle and a key to a report, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from support.cli import document, invoke, refusal
from tessera.keystore.grant import save_package_secrets
from tessera.keystore.identity import Identity
from tessera.keystore.keyfile import save_input_key
from tessera.keystore.secrets import InputKey
from tessera.protect import TrainingTask, bundle_of, read_bundle, recipe, seal_bundle, train, write_bundle
from tessera.protect.data import digits
from tessera.protect.selective import Settings, encrypt_bundle
from tessera.transforms import TransformSpec

KEY = InputKey(bytes(range(1, 33)))
HURRY = ("--minutes", 0.05)
"""Every attack stops at once; what is tested is the way, not the numbers."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vendor's folder: a keyed and a plain bundle of digits after one epoch, keys, and a labelled sample."""
    folder = tmp_path_factory.mktemp("audit")
    save_input_key(folder / "digits.key", KEY)
    save_input_key(folder / "other.key", InputKey(bytes(32)))
    task: TrainingTask = recipe("digits").task()
    for name, spec in (("keyed", TransformSpec.parse_text("np:4")), ("plain", None)):
        trained = train(task, transform=spec, key=KEY if spec else None, epochs=1, wrong_keys=0)
        write_bundle(bundle_of(trained), folder / name)
    test = digits().test
    np.savez(folder / "sample.npz", images=test.images.numpy(), labels=test.labels.numpy())
    np.savez(folder / "unlabelled.npz", images=test.images.numpy())
    np.savez(folder / "large.npz", images=np.zeros((40, 1, 16, 16), np.uint8), labels=np.zeros(40, np.int64))
    np.savez(folder / "few.npz", images=test.images[:5].numpy(), labels=test.labels[:5].numpy())
    np.savez(folder / "classes.npz", images=test.images[:40].numpy(), labels=np.arange(40) % 11)
    return folder


@pytest.mark.slow
def test_one_command_writes_both_reports(desk: Path, tmp_path: Path) -> None:
    """The page and the numbers, a verdict for each attacker, and never a byte of the key."""
    told = document(
        *("protect", "audit", desk / "keyed", "--key", desk / "digits.key", "--samples", desk / "sample.npz"),
        *("--out", tmp_path / "audit", *HURRY),
    )
    assert list(told["verdicts"]) == ["A0", "A1", "A2", "A3", "A4"]
    assert told["cut_short"] is True
    found = json.loads(Path(told["json"]).read_bytes())
    assert (found["transform"], found["budget"]["name"], found["budget"]["minutes"]) == ("np:4", "quick", 0.05)
    names = [entry["name"] for entry in found["attacks"]]
    assert {"no-key", "greedy-search", "fine-tuning", "ffx-statistics"} <= set(names)
    assert not any(name.startswith("tier-") for name in names)
    page = Path(told["report"]).read_bytes()
    assert b"Verdicts" in page
    assert KEY.reveal().hex().encode() not in page


@pytest.mark.slow
def test_one_attack_of_a_recipe_for_people(desk: Path, tmp_path: Path) -> None:
    """Without --json a table; the recipe brings its own data, and only the attack that was asked for runs."""
    result = invoke(
        *("protect", "audit", desk / "keyed", "--key", desk / "digits.key", "--recipe", "digits", "--attack", "no-key"),
        *("--out", tmp_path / "audit", *HURRY),
    )
    assert result.exit_code == 0, result.stderr
    assert "A0" in result.stdout
    assert "not measured" in result.stdout
    assert [entry["name"] for entry in json.loads((tmp_path / "audit" / "report.json").read_bytes())["attacks"]] == [
        "no-key"
    ]


@pytest.mark.slow
def test_tiers_are_audited_in_a_bundle_and_in_a_package(desk: Path, tmp_path: Path) -> None:
    """Without an input key; tier keys are tried on the bundle as it would be sealed, and on the package itself."""
    tiered = encrypt_bundle(read_bundle(desk / "plain"), digits(), Settings(budget=0.2, fractions=(0.0, 0.5, 1.0)))
    write_bundle(tiered.bundle, tmp_path / "tiered")
    issuer = Identity.generate("issuer", "acme")
    (tmp_path / "acme.pub").write_bytes(issuer.public.to_json())
    _, secrets = seal_bundle(
        tiered.bundle, tmp_path / "digits.tessera", issuer=issuer, model="digits", version=1, now_s=1_800_000_000
    )
    save_package_secrets(tmp_path / "digits.tessera.secrets", secrets)
    for model, options in (("tiered", ()), ("digits.tessera", ("--issuer", tmp_path / "acme.pub"))):
        told = document(
            *("protect", "audit", tmp_path / model, *options, "--samples", desk / "sample.npz"),
            *("--attack", "tier-quality", "--attack", "tier-keys", "--out", tmp_path / f"audit-{model}"),
        )
        assert told["verdicts"] == {
            "T0": told["verdicts"]["T0"], "T1": "not measured", "T2": "not measured", "T3": "holds",
        }  # fmt: skip
        assert (told["tiers"], told["transform"], told["right_key"]) == (3, None, None)
        assert told["full_model"] > told["file_alone"]
        found = json.loads(Path(told["json"]).read_bytes())
        assert found["tiers"] == ["tier-1", "tier-2", "full"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("keyed", ("--key", "digits.key", "--samples", "unlabelled.npz"), "no array called labels"),
        ("keyed", ("--key", "digits.key", "--samples", "large.npz"), "holds images of (1, 16, 16)"),
        ("keyed", ("--key", "digits.key", "--samples", "few.npz"), "at least 20"),
        ("keyed", ("--key", "digits.key", "--samples", "classes.npz"), "the model has 10 classes"),
        ("keyed", ("--key", "digits.key", "--samples", "digits.key"), "is not a readable .npz file"),
        ("keyed", ("--key", "digits.key", "--samples", "none.npz"), "none.npz"),
        ("keyed", ("--key", "digits.key", "--recipe", "diggits"), "--recipe: there is no such recipe"),
        ("keyed", ("--key", "other.key", "--samples", "sample.npz"), "not the one the model was trained with"),
        ("keyed", ("--samples", "sample.npz"), "was trained with the input key"),
        ("plain", ("--samples", "sample.npz"), "takes plain inputs"),
        ("sample.npz", ("--samples", "sample.npz"), "not a protected model"),
        ("nothing", ("--samples", "sample.npz"), "there is no protected model at"),
        (
            "keyed",
            ("--key", "digits.key", "--samples", "sample.npz", "--attack", "magic"),
            "there is no attack 'magic'",
        ),
        ("keyed", ("--key", "digits.key", "--samples", "sample.npz", "--budget", "huge"), "there is no budget 'huge'"),
        ("keyed", ("--key", "digits.key", "--samples", "sample.npz", "--minutes", "0"), "more than 0"),
        ("keyed", ("--key", "digits.key", "--samples", "sample.npz", "--minutes", "nan"), "more than 0"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    desk: Path, tmp_path: Path, model: str, options: tuple[str, ...], said: str
) -> None:
    """A typed error that names the value or file and a remedy; nothing is written."""
    placed = [desk / word if (desk / word).exists() or word.endswith(".npz") else word for word in options]
    found = refusal("protect", "audit", desk / model, "--out", tmp_path / "audit", *placed)
    assert said in found["message"]
    assert found["remedy"]
    assert not (tmp_path / "audit").exists()


def test_a_sample_or_a_recipe_is_needed(tmp_path: Path) -> None:
    """Usage is refused before anything is read."""
    result = invoke("protect", "audit", tmp_path, "--out", tmp_path / "audit")
    assert result.exit_code == 2
    assert "--samples" in result.stderr
