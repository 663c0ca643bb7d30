"""The published vectors hold for the fast implementation and for the naive one that made them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import naive_transforms as naive
from tessera.keystore.secrets import InputKey
from tessera.transforms import Step, Transform, TransformError, TransformSpec, mask, permutation
from tessera.transforms.compiled import Implementation
from tessera.transforms.passes import step_tables

VECTORS = Path(__file__).resolve().parents[2] / "vectors"
DOCUMENT: dict[str, Any] = json.loads((VECTORS / "transforms.json").read_text(encoding="utf-8"))
KEYS = {name: InputKey(bytes.fromhex(text)) for name, text in DOCUMENT["keys"].items()}


def image_of(vector: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the input image that a vector's rule describes."""
    shape = tuple(vector["shape"])
    positions = np.arange(int(np.prod(shape)), dtype=np.int64)
    flat: np.ndarray[Any, np.dtype[np.uint8]] = ((positions * positions + 7 * positions + vector["seed"]) % 256).astype(
        np.uint8
    )
    return flat.reshape(shape)


def test_there_are_enough_vectors() -> None:
    """At least forty images, with every kind alone and in stacks of up to eight steps, and both kinds of tables."""
    specs = [vector["spec"] for vector in DOCUMENT["vectors"]]
    assert len(specs) >= 40
    assert max(spec.count(",") for spec in specs) == 7
    assert {spec.split(":")[0] for spec in specs if "," not in spec} == {"shf", "np", "ffx", "isnn"}
    assert sum(spec.startswith("ffx") and "," not in spec for spec in specs) >= 10
    assert sum(":positions" in spec for spec in specs) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("vector", DOCUMENT["vectors"], ids=lambda v: f"{v['spec']}-{'x'.join(map(str, v['shape']))}")
def test_images(vector: dict[str, Any]) -> None:
    """Both implementations give the recorded image, and both give the input back where anything does (rule T-20)."""
    image = image_of(vector)
    fast = Transform(TransformSpec.parse_text(vector["spec"]), KEYS[vector["key"]], *vector["shape"])
    output = fast(image)
    assert hashlib.sha256(output.tobytes()).hexdigest() == vector["output_sha256"]
    assert output.tobytes().hex() == vector.get("output", output.tobytes().hex())
    key = bytes.fromhex(DOCUMENT["keys"][vector["key"]])
    slow = naive.apply(vector["spec"], key, image.tolist())
    assert slow == output.tolist()
    if fast.perturbation is None:
        assert (fast.inverse(output) == image).all()
        assert naive.invert(vector["spec"], key, slow) == image.tolist()


@pytest.mark.parametrize(
    "vector",
    [vector for vector in DOCUMENT["vectors"] if "isnn" not in vector["spec"]],
    ids=lambda v: f"{v['spec']}-{'x'.join(map(str, v['shape']))}",
)
def test_images_of_either_implementation(implementation: Implementation, vector: dict[str, Any]) -> None:
    """Compiled or not, alone, in a batch, from a strided view or with images last: the recorded image, and back."""
    image = image_of(vector)
    spec = TransformSpec.parse_text(vector["spec"])
    lock = Transform(spec, KEYS[vector["key"]], *vector["shape"], implementation=implementation)
    output = lock(image)
    assert hashlib.sha256(output.tobytes()).hexdigest() == vector["output_sha256"]
    assert (lock.inverse(output) == image).all()
    batch = np.stack([image] * 6)[::2]
    assert not batch.flags.c_contiguous
    assert (lock(batch) == output).all()
    assert (lock.inverse(lock(batch)) == image).all()
    assert (lock.images_last(batch.transpose(1, 2, 3, 0)) == output[..., np.newaxis]).all()


@pytest.mark.parametrize("entry", DOCUMENT["schedules"], ids=lambda e: f"{e['kind']}{e['block']}-step{e['step']}")
def test_schedules(entry: dict[str, Any]) -> None:
    """The permutation and the mask of a step are the recorded ones (rules T-5 to T-8)."""
    arguments = (KEYS[entry["key"]], entry["step"], entry["kind"], entry["block"], entry["channels"])
    assert permutation(*arguments).tolist() == entry["permutation"]
    assert "".join("1" if value else "0" for value in mask(*arguments)) == entry["mask"]


@pytest.mark.parametrize("entry", DOCUMENT["tables"], ids=lambda e: f"{e['block']}-{e['channels']}-{e['positions']}")
def test_tables(entry: dict[str, Any]) -> None:
    """The masked positions and the tables of an ffx step are the recorded ones (rules T-8, T-15 to T-18)."""
    step = Step("ffx", entry["block"], entry["positions"])
    tables, chosen = step_tables(KEYS[entry["key"]], entry["step"], step, entry["channels"])
    assert np.flatnonzero(chosen).tolist() == entry["masked"]
    assert tables[0].tolist() == list(range(256))
    assert [table.tobytes().hex() for table in tables[1 : 1 + len(entry["tables"])]] == entry["tables"]
    assert len(tables) == 1 + (len(entry["masked"]) if entry["positions"] else 1)


@pytest.mark.parametrize("text", DOCUMENT["refused_texts"], ids=repr)
def test_refused_texts(text: str) -> None:
    """A text that is not a spec is refused with one typed error that says what to do (rule T-3)."""
    with pytest.raises(TransformError) as caught:
        TransformSpec.parse_text(text)
    assert caught.value.reason == "transform-invalid"
    assert caught.value.remedy


@pytest.mark.parametrize("entry", DOCUMENT["refused_shapes"], ids=lambda e: f"{e['spec']}-{e['shape']}")
def test_refused_shapes(entry: dict[str, Any]) -> None:
    """A spec that does not fit an image is refused before anything is computed (rules T-2, T-9)."""
    with pytest.raises(TransformError) as caught:
        Transform(TransformSpec.parse_text(entry["spec"]), KEYS["alpha"], *entry["shape"])
    assert caught.value.remedy


@pytest.mark.slow
def test_the_file_is_what_the_generator_writes() -> None:
    """Nobody edited the vectors by hand: the generator gives the same bytes."""
    source: dict[str, Any] = {"__name__": "make_transforms", "__file__": str(VECTORS / "make_transforms.py")}
    exec((VECTORS / "make_transforms.py").read_text(encoding="utf-8"), source)
    assert source["render"]() == (VECTORS / "transforms.json").read_text(encoding="utf-8")


def test_the_naive_implementation_is_independent() -> None:
    """The code that makes the vectors imports nothing of ours."""
    assert "from tessera" not in Path(naive.__file__).read_text(encoding="utf-8").split('"""', 2)[2]
