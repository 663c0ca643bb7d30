"""The isnn transform: vectors, laws, and what the form by content owes its user (docs/spec.md, T-20 to T-24)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import naive_transforms as naive
from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.transforms import Perturbation, Step, Transform, TransformError, TransformSpec

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "transforms.json"
DOCUMENT: dict[str, Any] = json.loads(VECTORS.read_text(encoding="utf-8"))
KEYS = {name: InputKey(bytes.fromhex(text)) for name, text in DOCUMENT["keys"].items()}

keys = st.binary(min_size=32, max_size=32).map(InputKey)


@st.composite
def perturbations(draw: st.DrawFn) -> tuple[TransformSpec, tuple[int, int, int]]:
    """Draw an isnn spec and a (C, H, W) that it fits."""
    content = draw(st.booleans())
    block = draw(st.sampled_from([4, 6, 8]) if content else st.integers(2, 8))
    spec = TransformSpec((Step("isnn", block, epsilon=draw(st.integers(1, 64)), content=content),))
    return spec, (draw(st.integers(1, 4)), block * draw(st.integers(1, 2)), block * draw(st.integers(1, 3)))


@pytest.mark.parametrize("entry", DOCUMENT["isnn"], ids=lambda e: f"{e['block']}-{e['channels']}")
def test_pattern_vectors(entry: dict[str, Any]) -> None:
    """Signs and cell weights are the recorded ones (rules T-21, T-22)."""
    block, channels = entry["block"], entry["channels"]
    content = "cells" in entry
    spec = TransformSpec((Step("isnn", block, epsilon=1, content=content),))
    made = Perturbation.of(spec, KEYS[entry["key"]], channels, block, block)
    by_value = made.signs.transpose(1, 2, 0).reshape(-1)
    assert "".join("+" if sign > 0 else "-" for sign in by_value) == entry["signs"]
    if content:
        assert made.weights is not None
        assert made.weights[:, ::2, ::2].reshape(channels, -1).tolist() == entry["cells"]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(case=perturbations(), key=keys, count=st.integers(0, 3), seed=st.integers(0, 2**32 - 1))
def test_it_is_what_the_naive_one_gives(
    case: tuple[TransformSpec, tuple[int, int, int]], key: InputKey, count: int, seed: int
) -> None:
    """Every image is the naive implementation's, alone and in a batch, and the input is left as it was."""
    spec, shape = case
    batch = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    before = batch.copy()
    lock = Transform(spec, key, *shape)
    locked = lock(batch)
    assert locked.dtype == np.uint8
    assert locked.shape == batch.shape
    assert (batch == before).all()
    for image, found in zip(batch, locked, strict=True):
        assert found.tolist() == naive.apply(str(spec), key.reveal(), image.tolist())
        assert (lock(image) == found).all()
    assert np.abs(locked.astype(int) - batch).max(initial=0) <= spec.steps[0].epsilon
    planes = np.ascontiguousarray(batch.transpose(1, 2, 3, 0))
    assert (lock.images_last(planes) == locked.transpose(1, 2, 3, 0)).all()


@settings(max_examples=60, deadline=None)
@given(case=perturbations())
def test_spec_forms(case: tuple[TransformSpec, tuple[int, int, int]]) -> None:
    """Text and JSON forms give the same spec back."""
    spec, _ = case
    assert TransformSpec.parse_text(str(spec)) == spec
    assert TransformSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "form",
    [
        {"kind": "isnn", "block": 8},
        {"kind": "isnn", "block": 8, "epsilon": 12},
        {"kind": "isnn", "block": 8, "epsilon": 12, "form": "other"},
        {"kind": "isnn", "block": 8, "epsilon": True, "form": "fixed"},
        {"kind": "isnn", "block": 8, "epsilon": 0, "form": "fixed"},
        {"kind": "isnn", "block": 8, "epsilon": 65, "form": "fixed"},
        {"kind": "isnn", "block": 8, "epsilon": "12", "form": "fixed"},
        {"kind": "isnn", "block": 8, "epsilon": 12, "form": "fixed", "tables": "positions"},
        {"kind": "isnn", "block": 7, "epsilon": 12, "form": "content"},
        {"kind": "shf", "block": 8, "epsilon": 12, "form": "fixed"},
    ],
)
def test_json_that_is_no_isnn(form: dict[str, Any]) -> None:
    """Another JSON form is refused by one typed error (rules T-4, T-20)."""
    with pytest.raises(TransformError) as caught:
        TransformSpec.from_json([form])
    assert caught.value.remedy


def test_nothing_undoes_it() -> None:
    """Clipping loses values, so there is no inverse and no pass; who asks is told (rule T-20)."""
    lock = Transform(TransformSpec.parse_text("isnn:4:12"), KEYS["alpha"], 1, 8, 8)
    image = np.zeros((1, 8, 8), dtype=np.uint8)
    for ask in (lambda: lock.inverse(image), lock.passes, lambda: lock.index, lambda: lock.xor):
        with pytest.raises(ApiMisuse, match="isnn"):
            ask()


def test_keys_have_unrelated_patterns() -> None:
    """The signs of two keys agree about half of the time, and so do their turns."""
    spec = TransformSpec.parse_text("isnn:8:12:content")
    first, second = (Perturbation.of(spec, KEYS[name], 3, 32, 32) for name in ("alpha", "beta"))
    assert 0.35 < (first.signs == second.signs).mean() < 0.65
    images = np.random.default_rng(1).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)
    assert 0.45 < (first.bits(images) == second.bits(images)).mean() < 0.55


def test_averaging_shows_the_fixed_form_and_not_the_other() -> None:
    """The mean of legal minus clean is the pattern in the fixed form, and next to nothing by content."""
    images = np.random.default_rng(2).integers(64, 192, (2000, 1, 8, 8), dtype=np.uint8)
    leaks = {}
    for form in ("isnn:8:12", "isnn:8:12:content"):
        lock = Transform(TransformSpec.parse_text(form), KEYS["alpha"], 1, 8, 8)
        leaks[form] = np.abs((lock(images).astype(int) - images).mean(axis=0)).max()
    assert leaks["isnn:8:12"] == 12
    assert leaks["isnn:8:12:content"] < 1.2
