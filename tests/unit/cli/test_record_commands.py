"""Copyright records on the vendor's command line: sealing, licences, one buyer's key."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from support import keys
from support.cli import document, refusal
from support.vendor import Bench, make_bench
from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore.copyright import CopyrightRecord, bound_key, buyer_input_key
from tessera.keystore.keyfile import load_input_key, save_input_key
from tessera.keystore.proof import input_key_id
from tessera.protect import Bundle, PixelModel, bundle_of_module, write_bundle
from tessera.transforms import TransformSpec

RECORDS = (CopyrightRecord("Acme", "Globex", "L-17"), CopyrightRecord("Acme", "Initech", "L-18"))
STRANGER = CopyrightRecord("Acme", "Umbrella", "L-19")
IDS = tuple(sorted(input_key_id(bound_key(buyer_input_key(keys.INPUT_KEY, record), record)) for record in RECORDS))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A small model in the form of one that was trained for two buyers."""
    network = nn.Sequential(nn.Conv2d(1, 4, 4, stride=4), nn.Flatten(), nn.Linear(16, 10))
    plain = bundle_of_module(PixelModel(network, [0.5], [0.5]), (1, 8, 8), max_batch=4)
    assert plain.torch_version == torch.__version__
    return replace(plain, transform=TransformSpec.parse_text("isnn:4:12"), input_key_ids=IDS)


@pytest.fixture
def bench(bundle: Bundle, tmp_path: Path) -> Bench:
    """A vendor's folder with the bundle, the master key and records."""
    bench = make_bench(tmp_path)
    write_bundle(bundle, tmp_path / "bundle")
    save_input_key(tmp_path / "master.key", keys.INPUT_KEY)
    write(tmp_path / "buyers.json", [record.to_json() for record in RECORDS])
    for name, record in (("globex", RECORDS[0]), ("initech", RECORDS[1]), ("umbrella", STRANGER)):
        write(tmp_path / f"{name}.json", record.to_json())
    return bench


def write(path: Path, value: Any) -> None:
    """Write JSON as a person would."""
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def building(bench: Bench, *options: object) -> tuple[object, ...]:
    """Return the words that seal the bundle as `named.tessera`."""
    words = ("package", "build", bench.folder / "bundle", "--issuer", bench.issuer, "--model", "named")
    return (*words, "--out", bench.folder / "named.tessera", *options)


def built(bench: Bench) -> dict[str, Any]:
    """Seal the bundle for its two buyers."""
    folder = bench.folder
    return document(*building(bench, "--input-key", folder / "master.key", "--buyers", folder / "buyers.json"))


def issuing(bench: Bench, package: Path, *options: object) -> tuple[object, ...]:
    """Return the words that issue a licence for `package`."""
    words = ("licence", "issue", "--issuer", bench.issuer, "--package", package, "--buyer", f"{bench.buyer}.pub")
    return (*words, "--node", bench.node / "node.pub", "--out", bench.licence, *options)


def test_from_records_to_a_licence(bench: Bench) -> None:
    """The package names every buyer's key and no buyer; the licence is bound to its record, and the grant opens."""
    folder = bench.folder
    told = built(bench)
    assert (tuple(told["input_key_ids"]), told["input_key_id"]) == (IDS, None)
    assert b"Globex" not in (folder / "named.tessera").read_bytes()
    issued = document(*issuing(bench, folder / "named.tessera", "--copyright", folder / "globex.json"))
    shown = document("licence", "inspect", bench.licence, "--issuer", f"{bench.issuer}.pub")
    bound = bound_key(buyer_input_key(keys.INPUT_KEY, RECORDS[0]), RECORDS[0])
    for one in (issued, shown):
        assert one["copyright"] == RECORDS[0].to_json()
        assert one["input_key_id"] == input_key_id(bound)
    held = licences.read_licence_file(bench.licence)
    licence = licences.verify(held.licence, keys.ISSUERS)
    grant = grants.verify(held.grant or "", licence, keys.ISSUERS)
    assert grants.open_for_buyer(grant, keys.BUYER, RECORDS[0]) == buyer_input_key(keys.INPUT_KEY, RECORDS[0])


def test_licences_that_do_not_fit_the_package(bench: Bench) -> None:
    """No record, a stranger's, and a record for a package without records: refused with a remedy, nothing written."""
    folder = bench.folder
    built(bench)
    named = folder / "named.tessera"
    wrong = [
        (issuing(bench, named), "conflict", "--copyright"),
        (issuing(bench, named, "--copyright", folder / "umbrella.json"), "not-found", "train the model again"),
        (issuing(bench, bench.package, "--copyright", folder / "globex.json"), "conflict", "leave --copyright out"),
    ]
    for words, reason, remedy in wrong:
        error = refusal(*words)
        assert error["reason"] == reason
        assert remedy in error["remedy"]
    assert not bench.licence.exists()


def test_sealing_checks_master_and_records(bench: Bench) -> None:
    """Records that the bundle was not trained for, another master, or none: refused, and no package is written."""
    folder = bench.folder
    write(folder / "others.json", [STRANGER.to_json()])
    save_input_key(folder / "other.key", keys.OTHER_INPUT_KEY)
    master, other, buyers = folder / "master.key", folder / "other.key", folder / "buyers.json"
    wrong = [
        ("wrong-input-key", ("--input-key", master, "--buyers", folder / "others.json")),
        ("wrong-input-key", ("--input-key", other, "--buyers", buyers)),
        ("api-misuse", ("--input-key", master)),
        ("api-misuse", ("--buyers", buyers)),
    ]
    for reason, options in wrong:
        error = refusal(*building(bench, *options))
        assert error["reason"] == reason, error
        assert "master" in error["remedy"]
    assert not (folder / "named.tessera").exists()


def test_one_buyers_key(bench: Bench) -> None:
    """`keys buyer` writes the buyer's own key, shows the id that their licence names, and never replaces a file."""
    folder, out = bench.folder, bench.folder / "globex.key"
    words = ("keys", "buyer", "--key", folder / "master.key", "--copyright", folder / "globex.json", "--out", out)
    told = document(*words)
    assert load_input_key(out) == buyer_input_key(keys.INPUT_KEY, RECORDS[0])
    assert out.stat().st_mode & 0o777 == 0o600
    assert told["copyright"] == RECORDS[0].to_json()
    assert told["input_key_id"] in IDS
    assert keys.INPUT_KEY.reveal().hex() not in json.dumps(told)
    assert refusal(*words)["reason"] == "conflict"
    write(folder / "bad.json", {"owner": "Acme", "buyer": "Globex"})
    error = refusal(*words[:5], folder / "bad.json", "--out", folder / "bad.key")
    assert error["reason"] == "copyright-malformed"
    assert error["remedy"]
    assert not (folder / "bad.key").exists()
