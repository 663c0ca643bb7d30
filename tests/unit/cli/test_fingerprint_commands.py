"""`tessera protect fingerprint` and `tessera protect identify`: a copy for each buyer, a leak, a name."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from support.cli import document, invoke, refusal
from tessera.keystore.keyfile import save_input_key
from tessera.keystore.secrets import InputKey
from tessera.protect import DigitsNet, PixelModel, bundle_of_module, read_bundle, recipe, write_bundle
from tessera.protect.selective.bundled import module_of

RECORDS = [
    {"owner": "Acme", "buyer": "Globex", "licence": "L-17"},
    {"owner": "Acme", "buyer": "Initech", "licence": "L-18"},
    {"owner": "Acme", "buyer": "Umbrella", "licence": "L-19"},
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the digits' network, a secret, records, and the copies of the first two buyers."""
    folder = tmp_path_factory.mktemp("bench")
    save_input_key(folder / "master.key", InputKey(bytes(range(32))))
    torch.manual_seed(3)
    write_bundle(
        bundle_of_module(PixelModel(DigitsNet(), (0.3,), (0.3,)).eval(), (1, 8, 8), quality={"accuracy": 0.9}),
        folder / "digits",
    )
    (folder / "buyers.json").write_text(json.dumps(RECORDS), encoding="utf-8")
    for record in RECORDS:
        (folder / f"{record['buyer']}.json").write_text(json.dumps(record), encoding="utf-8")
    for buyer in ("Globex", "Initech"):
        document(*mark(folder, buyer, folder / buyer))
    return folder


def mark(bench: Path, buyer: str, out: Path) -> tuple[object, ...]:
    """Return the call that makes a buyer's copy."""
    return (
        "protect", "fingerprint", bench / "digits", "--key", bench / "master.key", "--record", bench / f"{buyer}.json",
        "--out", out,
    )  # fmt: skip


def identify(bench: Path, leaked: Path) -> tuple[object, ...]:
    """Return the call that asks whose copy a file is."""
    return (
        "protect", "identify", leaked, "--original", bench / "digits", "--key", bench / "master.key", "--buyers",
        bench / "buyers.json",
    )  # fmt: skip


def test_a_copy_and_what_is_said_of_it(bench: Path, tmp_path: Path) -> None:
    """The copy is a bundle like the original, which stays as it was; how far answers move is told, and what is not."""
    before = (bench / "digits" / "weights.safetensors").read_bytes()
    told = document(*mark(bench, "Globex", tmp_path / "copy"))
    assert {name: told[name] for name in ("buyer", "licence", "strength")} == {
        "buyer": "Globex", "licence": "L-17", "strength": 0.005,
    }  # fmt: skip
    assert 0 < told["output_change"] < 0.05
    assert (bench / "digits" / "weights.safetensors").read_bytes() == before
    copy = read_bundle(tmp_path / "copy")
    assert copy.quality == {"accuracy": 0.9}
    assert "Globex" not in (tmp_path / "copy" / "bundle.json").read_text(encoding="utf-8")
    shown = invoke(*mark(bench, "Globex", tmp_path / "again"))
    assert "copy of" in shown.stdout
    assert "Globex (L-17)" in shown.stdout
    assert "not measured again" in shown.stderr
    for name in ("weights.safetensors", "bundle.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "copy" / name).read_bytes()


def test_a_leaked_file_names_its_buyer(bench: Path, tmp_path: Path) -> None:
    """From a folder, and from a plain file in half precision under other names that anybody may read."""
    leaked = tmp_path / "found.safetensors"
    weights = read_bundle(bench / "Initech").tensors
    safetensors.torch.save_file({f"model.{name}": one.half() for name, one in weights.items()}, leaked)
    leaked.chmod(0o644)
    for path in (bench / "Initech", leaked):
        told = document(*identify(bench, path))
        assert [one["buyer"] for one in told["suspects"] if one["named"]] == ["Initech"]
        best = told["suspects"][0]
        assert best["log10_p"] < -100
        assert best["p_value"] < 1e-50
        assert best["tensors_with_mark"] == len(told["tensors"])
        assert told["missing"] == []
        assert "whose copy: Initech (L-18)\n" in invoke(*identify(bench, path)).stdout


def test_several_buyers_or_none_are_named(bench: Path, tmp_path: Path) -> None:
    """A mixture names both, another network nobody, and the original is recognised."""
    copies = [read_bundle(bench / buyer).tensors for buyer in ("Globex", "Initech")]
    mixed = {name: (copies[0][name] + copies[1][name]) / 2 for name in copies[0]}
    foreign = {name: torch.randn(one.shape) for name, one in mixed.items()}
    for name, weights in (("mixed", mixed), ("foreign", foreign)):
        safetensors.torch.save_file(weights, tmp_path / name)
    shown = invoke(*identify(bench, tmp_path / "mixed")).stdout
    both = ("whose copy: Globex (L-17), Initech (L-18)\n", "whose copy: Initech (L-18), Globex (L-17)\n")
    assert any(line in shown for line in both)
    assert "none of these buyers can be named" in invoke(*identify(bench, tmp_path / "foreign")).stdout
    assert "the original's own weights" in invoke(*identify(bench, bench / "digits")).stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--strength": "0.5"}, "0.001 to 0.1"),
        ({"--record": "buyers.json"}, "copyright record"),
    ],
)
def test_a_copy_that_cannot_be_made(bench: Path, tmp_path: Path, change: dict[str, str], said: str) -> None:
    """What is wrong and what to do is said, and nothing is made."""
    words = list(mark(bench, "Globex", tmp_path / "out"))
    for option, value in change.items():
        value = str(bench / value) if (bench / value).exists() else value
        words += [f"{option}={value}"]
    error = refusal(*words)
    assert said in error["message"]
    assert error["remedy"]
    assert not (tmp_path / "out").exists()


def test_leaks_that_have_nothing_in_common(bench: Path, tmp_path: Path) -> None:
    """Weights of other shapes, and files that hold no weights."""
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"w": torch.ones(7, 7)}, other)
    assert "in common" in refusal(*identify(bench, other))["message"]
    safetensors.torch.save_file({"w": torch.ones(7)}, other)
    assert "no matrix" in refusal(*identify(bench, other))["message"]
    other.write_bytes(b"PK\x03\x04")
    assert "a zip archive" in refusal(*identify(bench, other))["message"]


@pytest.mark.slow
def test_from_the_recipe_to_a_name(bench: Path, tmp_path: Path) -> None:
    """The digits as `protect train` makes them: a copy is as good as the original, and names its buyer and no other."""
    trained = tmp_path / "digits"
    document("protect", "train", "--recipe", "digits", "--epochs", 3, "--wrong-keys", 0, "--out", trained)
    copy = tmp_path / "copy"
    document(*(trained if word == bench / "digits" else word for word in mark(bench, "Umbrella", copy)))
    told = document(*(trained if word == bench / "digits" else word for word in identify(bench, copy)))
    assert [one["buyer"] for one in told["suspects"] if one["named"]] == ["Umbrella"]
    test = recipe("digits").task(None).data.test
    right = []
    for folder in (trained, copy):
        with torch.inference_mode():
            answers = module_of(read_bundle(folder))(test.images[:256]).argmax(1)
        right.append(int((answers == test.labels[:256]).sum()))
    assert right[0] > 150
    assert abs(right[0] - right[1]) <= 2
