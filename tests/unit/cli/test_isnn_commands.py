"""`tessera protect train --isnn` and `tessera protect trace`: buyers' records in, a network and a ranking out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.cli import document, invoke, refusal
from tessera.keystore.copyright import CopyrightRecord, bound_key, buyer_input_key
from tessera.keystore.keyfile import save_input_key
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey
from tessera.protect.data import digits

MASTER = InputKey(bytes(range(32)))
RECORDS = [
    {"owner": "Acme", "buyer": "Globex", "licence": "L-17"},
    {"owner": "Acme", "buyer": "Initech", "licence": "L-18"},
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A master key, two buyers' records, labelled samples."""
    found = {name: tmp_path / name for name in ("master.key", "buyers.json", "samples.npz")}
    save_input_key(found["master.key"], MASTER)
    found["buyers.json"].write_text(json.dumps(RECORDS), encoding="utf-8")
    test = digits().test
    np.savez(found["samples.npz"], images=test.images[:100].numpy(), labels=test.labels[:100].numpy())
    return found


@pytest.mark.slow
def test_from_records_to_a_ranking(files: dict[str, Path], tmp_path: Path) -> None:
    """The bundle names the bound key of each buyer, a fine-tune begins at a plain bundle, and a trace ranks buyers."""
    plain, out = tmp_path / "plain", tmp_path / "locked"
    document("protect", "train", "--recipe", "digits", "--epochs", 1, "--wrong-keys", 0, "--out", plain)
    told = document(
        "protect", "train", "--recipe", "digits", "--isnn", files["buyers.json"], "--key", files["master.key"],
        "--transform", "isnn:4:24:content", "--start", plain, "--epochs", 1, "--wrong-keys", 2, "--out", out,
    )  # fmt: skip
    records = [CopyrightRecord.from_json(record) for record in RECORDS]
    ids = sorted(input_key_id(bound_key(buyer_input_key(MASTER, record), record)) for record in records)
    assert told["input_key_ids"] == ids
    assert told["transform"] == "isnn:4:24:content"
    report = json.loads((out / "report.json").read_text())
    assert report["fine_tuned"] is True
    assert report["measured"]["buyers"] == 2
    assert "Globex" not in (out / "bundle.json").read_text()
    trace = (
        "protect", "trace", out, "--key", files["master.key"], "--buyers", files["buyers.json"],
        "--samples", files["samples.npz"], "--null-keys", 3,
    )  # fmt: skip
    ranked = document(*trace)
    assert {one["buyer"] for one in ranked["suspects"]} == {"Globex (L-17)", "Initech (L-18)"}
    assert ranked["images"] == 100
    assert "unlocked by:" in invoke(*trace).stdout


WRONG_RECORDS: list[tuple[str, Any]] = [
    ("no JSON", "{"),
    ("no list", json.dumps(RECORDS[0])),
    ("empty", "[]"),
    ("twice", json.dumps([RECORDS[0], RECORDS[0]])),
    ("unknown field", json.dumps([{**RECORDS[0], "year": "2026"}])),
    ("missing field", json.dumps([{"owner": "Acme"}])),
    ("no text", json.dumps([{**RECORDS[0], "buyer": 7}])),
    ("control characters", json.dumps([{**RECORDS[0], "buyer": "a\x07"}])),
    ("too long", json.dumps([{**RECORDS[0], "owner": "x" * 129}])),
    ("a member twice", '[{"owner":"Acme","owner":"Acme","buyer":"Globex","licence":"L-17"}]'),
    ("too many", json.dumps([{**RECORDS[0], "licence": str(number)} for number in range(1025)])),
]


@pytest.mark.parametrize(("name", "text"), WRONG_RECORDS, ids=[name for name, _ in WRONG_RECORDS])
def test_records_that_are_none(files: dict[str, Path], tmp_path: Path, name: str, text: str) -> None:
    """The file is named, the remedy says how to write it, and nothing is made."""
    del name
    files["buyers.json"].write_text(text, encoding="utf-8")
    error = refusal(
        "protect", "train", "--recipe", "digits", "--isnn", files["buyers.json"], "--key", files["master.key"],
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert "buyers.json" in error["message"]
    assert error["remedy"]
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_go_together(files: dict[str, Path], tmp_path: Path) -> None:
    """Without a key there is nothing to bind; an illegal answer that is none and another kind of spec are refused."""
    isnn = ("protect", "train", "--recipe", "digits", "--isnn", files["buyers.json"], "--out", tmp_path / "out")
    assert "--key" in invoke(*isnn).stderr
    keyed = (*isnn, "--key", files["master.key"])
    assert "uniform" in refusal(*keyed, "--illegal", "nothing")["message"]
    assert "isnn" in refusal(*keyed, "--transform", "shf:4")["message"]
    assert not (tmp_path / "out").exists()
