"""The published vectors hold for our implementation, and were made by the naive one (F rules)."""

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import naive_fingerprint as naive
from tessera.keystore.copyright import CopyrightRecord
from tessera.keystore.secrets import InputKey
from tessera.protect.fingerprint import identify, mark
from tessera.protect.fingerprint.chips import carriers, draw_chips, fingerprint_key
from tessera.protect.fingerprint.identify import log10_bound
from unit.protect.fingerprint.conftest import vendor

VECTORS = Path(__file__).resolve().parents[3] / "vectors"
DOCUMENT: dict[str, Any] = json.loads((VECTORS / "fingerprint.json").read_text(encoding="utf-8"))
TYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "I32": torch.int32,
}  # fmt: skip
NAMES = [f"{vector['tensors'][0]['name']}-{vector['strength']}" for vector in DOCUMENT["vectors"]]
CASES = pytest.mark.parametrize("vector", DOCUMENT["vectors"], ids=NAMES)


def original(vector: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors that the file's `about` describes."""
    found: dict[str, Tensor] = {}
    for number, entry in enumerate(vector["tensors"]):
        if "tied_to" in entry:
            found[entry["name"]] = found[entry["tied_to"]].clone()
            continue
        places = torch.arange(math.prod(entry["shape"]), dtype=torch.int64)
        whole = (7919 * places * places + 104729 * places + 31 * number) % 2003 - 1001
        values = whole if entry["type"] == "I32" else whole.double() / 4096
        found[entry["name"]] = values.to(TYPES[entry["type"]]).reshape(entry["shape"])
    return found


def leak(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what the file's `about` says that a thief made of a copy."""
    found = dict(tensors)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        places = torch.arange(tensor.numel())
        values = (tensor.flatten().double() + ((places * 13) % 9 - 4) / 8192).to(tensor.dtype)
        values[places % 11 == 5] = 4096.0
        values[places % 7 == 3] = 0.0
        found[name] = values.reshape(tensor.shape)
    return found


def secret_and_record(vector: dict[str, Any], suffix: str = "") -> tuple[InputKey, CopyrightRecord]:
    """Return a vector's secret and its buyer, or the stranger with `suffix`."""
    record = CopyrightRecord(vector["owner"], vector["buyer"] + suffix, vector["licence"])
    return InputKey(bytes.fromhex(vector["secret"])), record


@CASES
def test_the_mark_is_the_recorded_one_to_the_last_bit(vector: dict[str, Any]) -> None:
    """Key, marked tensors, chips and every value of the copy (rules F-1 to F-4)."""
    secret, record = secret_and_record(vector)
    key = fingerprint_key(secret, record)
    assert key.reveal().hex() == vector["key"]
    tensors = original(vector)
    assert sorted(carriers(tensors)) == vector["carriers"]
    bits = "".join("1" if chip > 0 else "0" for chip in draw_chips(key, vector["tensors"][0]["name"], 64))
    assert f"{int(bits, 2):016x}" == vector["chips"]
    copy = mark(tensors, secret, record, strength=vector["strength"])
    digest = hashlib.sha256()
    for name in sorted(copy):
        assert copy[name].dtype == tensors[name].dtype
        values = copy[name].double().flatten().tolist()
        digest.update(name.encode() + struct.pack(f">{len(values)}d", *values))
    assert digest.hexdigest() == vector["marked"]


@CASES
def test_the_statistic_is_the_recorded_one(vector: dict[str, Any]) -> None:
    """A spoilt copy, read for its buyer and for a stranger (rules F-8 and F-9)."""
    secret, record = secret_and_record(vector)
    stranger = secret_and_record(vector, " II")[1]
    tensors = original(vector)
    leaked = leak(mark(tensors, secret, record, strength=vector["strength"]))
    found = identify(vendor(tensors), leaked, secret, [record, stranger])
    z = {one.record: one.z for one in found.suspects}
    buyer = next(one for one in found.suspects if one.record == record)
    each = {one.name: own for one, own in zip(found.tensors, buyer.by_tensor, strict=True)}
    assert each == pytest.approx(vector["each"], rel=1e-9, abs=1e-9)
    assert buyer.log10_p == pytest.approx(vector["log10_p"], rel=1e-9)
    assert {one.how for one in found.tensors} == {"as it is"}
    assert z[record] == pytest.approx(vector["z"], rel=1e-9)
    assert z[stranger] == pytest.approx(vector["z_stranger"], rel=1e-9, abs=1e-9)


def test_the_chance_is_hoeffdings_bound_times_the_records() -> None:
    """Rule F-9, also where a float has no room for it."""
    assert log10_bound(6.0, 1) == log10_bound(-6.0, 1) == pytest.approx(math.log10(2 * math.exp(-18)))
    assert log10_bound(6.0, 1000) == pytest.approx(math.log10(2000 * math.exp(-18)))
    assert log10_bound(518.0, 1) == pytest.approx(-58265.4, abs=1)
    assert [log10_bound(z, 3) for z in (-1.0, 0.0, 0.5)] == [0.0] * 3


def test_the_file_is_what_the_generator_writes() -> None:
    """Nobody edited the vectors by hand, and the code that makes them imports nothing of ours."""
    source: dict[str, Any] = {"__name__": "make_fingerprint", "__file__": str(VECTORS / "make_fingerprint.py")}
    exec((VECTORS / "make_fingerprint.py").read_text(encoding="utf-8"), source)
    assert source["render"]() == (VECTORS / "fingerprint.json").read_text(encoding="utf-8")
    assert len(DOCUMENT["vectors"]) >= 7
    assert "tessera" not in Path(naive.__file__).read_text(encoding="utf-8").replace("tessera/v1", "")
