"""What is refused, with a typed error that says what to do."""

import contextlib
import dataclasses
import math
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera.keystore.errors import ApiMisuse, Malformed, NotFound
from tessera.keystore.package import encode_patch
from tessera.protect import Bundle
from tessera.protect.bundle import BundleTier
from tessera.protect.fingerprint import fingerprint, identify, mark, output_change, read_leaked
from unit.protect.fingerprint.conftest import RECORDS, SECRET


@pytest.mark.parametrize("strength", [0, -0.01, 0.0009, 0.11, 1, math.nan, math.inf])
def test_a_strength_out_of_range(bundle: Bundle, strength: float) -> None:
    """The value and the range are named."""
    with pytest.raises(ApiMisuse, match=re.escape("from 0.001 to 0.1")) as refused:
        fingerprint(bundle, SECRET, RECORDS[0], strength=strength)
    assert str(strength) in refused.value.public
    assert refused.value.remedy


def test_a_mark_that_rounding_takes_away() -> None:
    """In bfloat16 a mark of 0.1 % is below half a unit of nearly all weights; the remedy's strength is enough."""
    torch.manual_seed(0)
    tensors = {"w": torch.randn(64, 64).bfloat16()}
    with pytest.raises(ApiMisuse, match="survive rounding") as refused:
        mark(tensors, SECRET, RECORDS[0], strength=0.001)
    enough = float(refused.value.remedy.split("strength of ")[1].split()[0])
    assert 0.001 < enough < 0.02
    mark(tensors, SECRET, RECORDS[0], strength=enough)


def test_weights_whose_type_has_no_room_for_any_mark() -> None:
    """Half-precision weights so small that the type's steps are larger than a tenth of them."""
    tensors = {"w": (torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * 1e-7).half()}
    with pytest.raises(ApiMisuse, match="survive rounding") as refused:
        mark(tensors, SECRET, RECORDS[0], strength=0.1)
    assert "before they are rounded" in refused.value.remedy
    with pytest.raises(ApiMisuse, match="survive rounding"):
        mark(
            {"w": tensors["w"].double() * 1e-300, "v": torch.full((64, 64), 1e200, dtype=torch.float64)},
            SECRET,
            RECORDS[0],
        )


def test_the_largest_half_stays_finite() -> None:
    """A value that a mark would carry over the end of its type stays as it is."""
    tensors = {"w": torch.linspace(30_000, 65_504, 2048).reshape(32, 64).half()}
    copy = mark(tensors, SECRET, RECORDS[0], strength=0.1)["w"]
    assert bool(torch.isfinite(copy).all())
    assert bool((copy[-1] == tensors["w"][-1]).any())
    assert not torch.equal(copy[-1], tensors["w"][-1])


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"w": torch.randn(16, 16)},
        {"w": torch.randn(4096)},
        {"w": torch.arange(4096).reshape(64, 64)},
        {"w": torch.zeros(64, 64)},
        {"w": torch.full((64, 64), math.inf)},
        {"w": torch.randn(64, 64, dtype=torch.complex64)},
    ],
    ids=["nothing", "few", "flat", "integers", "zeros", "infinite", "complex"],
)
def test_a_model_with_nothing_to_mark(tensors: dict[str, torch.Tensor]) -> None:
    """A model that can carry no fingerprint is not sold as one that does."""
    with pytest.raises(Malformed, match="fewer than 1024") as refused:
        mark(tensors, SECRET, RECORDS[0])
    assert refused.value.remedy


def test_bundles_in_tiers(bundle: Bundle) -> None:
    """Their own weights are decoys in part; the remedy is the order of steps."""
    tiered = dataclasses.replace(bundle, tiers=(BundleTier("full", {}, encode_patch([])),))
    for call in (
        lambda: fingerprint(tiered, SECRET, RECORDS[0]),
        lambda: identify(tiered, bundle, SECRET, RECORDS),
    ):
        with pytest.raises(Malformed, match="tiers") as refused:
            call()
        assert "tessera protect encrypt" in refused.value.remedy


def test_identifications_that_are_none(bundle: Bundle) -> None:
    """Without records, with one twice, with a significance that is none, with nothing in common."""
    for records, significance in (((), 1e-6), ((RECORDS[0], RECORDS[0]), 1e-6), (RECORDS, 0.0), (RECORDS, math.nan)):
        with pytest.raises(ApiMisuse):
            identify(bundle, bundle, SECRET, records, significance=significance)
    for leaked in (
        {},
        {"network.conv1.weight": torch.randn(7, 7, 7)},
        {"w": torch.randn(64, 48, dtype=torch.complex64)},
    ):
        with pytest.raises(Malformed, match="in common") as refused:
            identify(bundle, leaked, SECRET, RECORDS)
        assert "copies were made from" in refused.value.remedy


def test_leaked_files_are_read_wherever_they_lie(bundle: Bundle, tmp_path: Path) -> None:
    """A file, a folder, exposed to all: it is evidence and no secret any more."""
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(bundle.tensors, file)
    file.chmod(0o644)
    for path in (file, tmp_path):
        assert read_leaked(path).keys() == bundle.tensors.keys()
    for absent in (tmp_path / "absent", tmp_path / "absent" / "deeper"):
        with pytest.raises(NotFound):
            read_leaked(absent)
    safetensors.torch.save_file({"w": torch.zeros(5000)}, file)
    with pytest.raises(Malformed, match="no matrix"):
        read_leaked(file)


@given(place=st.integers(0, 2000), value=st.integers(0, 255), cut=st.integers(0, 2000))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_bytes_of_a_leaked_file(tmp_path: Path, place: int, value: int, cut: int) -> None:
    """Weights or a typed error, never anything else."""
    raw = bytearray(safetensors.torch.save({"a": torch.ones(8, 8), "b": torch.ones(4, 8).half(), "c": torch.ones(3)}))
    raw[place % len(raw)] = value
    file = tmp_path / "leaked.safetensors"
    file.write_bytes(bytes(raw[: len(raw) - cut // 4 if cut < 1000 else None]))
    with contextlib.suppress(Malformed):
        assert read_leaked(file)


def test_how_far_answers_move(bundle: Bundle) -> None:
    """Nothing for the same weights, little for a copy, more for a stronger mark; a program that is none is told."""
    assert output_change(bundle, bundle) == 0
    faint, strong = (
        output_change(bundle, fingerprint(bundle, SECRET, RECORDS[0], strength=size)) for size in (0.002, 0.05)
    )
    assert 0 < faint < 0.01
    assert faint < strong < 0.5
    with pytest.raises(Malformed):
        output_change(bundle, dataclasses.replace(bundle, program=b"PK nothing"))
