"""Sealed programs in memory, and the directory of models that come and go."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support import keys
from support.clock import ManualClock
from support.ledger import MemoryLedger
from support.models import PAIR_INPUTS, PAIR_OUTPUTS, Digits, Pair, Sealed, seal, seeded
from support.tiers import seal_tiered
from tessera.keystore.errors import Malformed, NotFound, Tampered, TesseraError, Unavailable, WrongKey
from tessera.keystore.package import TensorSpec, open_package
from tessera.keystore.secrets import ContentKey
from tessera.server.config import Limits
from tessera.server.engine import Executor, LoadedProgram, ModelDirectory, load_sealed
from tessera.server.metering import Meter
from tessera.server.metrics import Metrics


def load(sealed: Sealed) -> LoadedProgram:
    """Open, unlock and load a package."""
    with open_package(sealed.path, keys.ISSUERS) as package:
        return load_sealed(package.unlock(keys.CONTENT_KEY))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    """A sealed classifier, exported once."""
    return seal(tmp_path_factory.mktemp("digits"))


def images(samples: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return random images."""
    return np.random.default_rng(samples).integers(0, 256, (samples, 1, 8, 8), np.uint8)


@pytest.mark.parametrize("parts", [(1,), (16,), (3, 1, 5)])
def test_a_sealed_program_gives_the_vendors_bits(digits: Sealed, parts: tuple[int, ...]) -> None:
    """At any batch size, joined of any parts, outputs are bit-identical to the vendor's module."""
    inputs = [images(samples) for samples in parts]
    with torch.inference_mode():
        found = load(digits).run([{"image": part} for part in inputs])["logits"]
        expected = digits.module(torch.from_numpy(np.concatenate(inputs))).numpy()
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


def test_read_only_inputs_are_left_alone(digits: Sealed) -> None:
    """Arrays over a message's bytes are copied into the batch, without a warning and without being written to."""
    raw = images(2).tobytes()
    array = np.frombuffer(raw, np.uint8).reshape(2, 1, 8, 8)
    load(digits).run([{"image": array}])
    assert array.tobytes() == raw


@pytest.mark.slow
def test_several_inputs_and_outputs_and_bfloat16(tmp_path: Path) -> None:
    """Inputs go by contract order, BF16 comes out as its sixteen bits."""
    program = load(seal(tmp_path, seeded(Pair), inputs=PAIR_INPUTS, outputs=PAIR_OUTPUTS))
    program.warm_up()
    points = np.array([[1, 1], [1, 2]], np.float32)
    found = program.run([{"keep": np.array([True, False]), "points": points}])
    assert found["scaled"].tolist() == [[2, 3], [0, 0]]
    assert found["sum"].dtype == np.uint16
    assert found["sum"].tolist() == [0x40A0, 0]  # 5.0 and 0.0


def test_loading_opens_no_file_for_writing_and_makes_no_temporary_one(digits: Sealed) -> None:
    """Plaintext weights exist in memory only: an audit hook sees no file being written while a package is loaded."""
    load(digits)  # imports and caches of torch itself happen here
    written: list[object] = []
    watching = [True]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if not watching[0]:
            return
        if event.startswith("tempfile.") or (
            event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        ):
            written.append((event, args[0]))

    sys.addaudithook(hook)
    try:
        load(digits)
    finally:
        watching[0] = False
    assert written == []


def test_erasing_overwrites_the_weights(digits: Sealed) -> None:
    """After `erase` no tensor of the program holds memory, whoever still refers to it."""
    program = load(digits)
    assert program.device_bytes > 0
    program.erase()
    assert program.device_bytes == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "output",
    [
        TensorSpec("logits", "FP32", (-1, 11)),
        TensorSpec("logits", "FP16", (-1, 10)),
        TensorSpec("logits", "FP32", (-1, 10, 1)),
    ],
    ids=["shape", "datatype", "rank"],
)
def test_a_contract_that_the_program_breaks_is_found_at_load(tmp_path: Path, output: TensorSpec) -> None:
    """Warm-up holds every output's shape and type against the manifest."""
    with pytest.raises(Malformed):
        load(seal(tmp_path, outputs=(output,))).warm_up()


def test_a_second_output_that_the_program_lacks_is_found_at_load(tmp_path: Path) -> None:
    """The number of outputs is part of the contract."""
    outputs = (TensorSpec("logits", "FP32", (-1, 10)), TensorSpec("more", "FP32", (-1, 10)))
    with pytest.raises(Malformed):
        load(seal(tmp_path, outputs=outputs)).warm_up()


# -- the directory ---------------------------------------------------------------------------------------------------


class Shelf:
    """A model directory over sealed files."""

    def __init__(self, *packages: Sealed) -> None:
        self.packages = list(packages)
        self.metrics = Metrics()
        self.ledger = MemoryLedger()
        self.executor = Executor("cpu", threads=1)
        self.meter = Meter(self.ledger.append_usage, lambda _: "", metrics=self.metrics)
        self.key: Callable[[str], ContentKey] = lambda _: keys.CONTENT_KEY
        self.loads = 0
        self.models = ModelDirectory(
            packages=lambda: self.packages,
            issuers=lambda: keys.ISSUERS,
            content_key=self._content_key,
            executor=self.executor,
            meter=self.meter,
            limits=Limits(),
            metrics=self.metrics,
            clock=ManualClock(),
        )

    def _content_key(self, package_id: str) -> ContentKey:
        self.loads += 1
        return self.key(package_id)

    async def close(self) -> None:
        """Stop everything."""
        await self.models.drain()
        await asyncio.to_thread(self.executor.close)
        await asyncio.to_thread(self.meter.close)


@pytest.fixture
async def shelf(digits: Sealed) -> AsyncIterator[Shelf]:
    """A directory with one published model."""
    made = Shelf(digits)
    yield made
    await made.close()


async def test_a_model_goes_from_published_to_ready_to_unloaded(shelf: Shelf, digits: Sealed) -> None:
    """States, the batcher in the ready one, and the refusal with a reason in every other."""
    package_id = digits.manifest.package_id
    assert shelf.models.state(package_id) == "published"
    with pytest.raises(Unavailable) as caught:
        shelf.models.ready_variant(package_id, 1)
    assert caught.value.reason == "model-not-ready"
    entry = await shelf.models.load("digits")
    assert (entry.state, entry.reason) == ("ready", "")
    assert shelf.models.ready_variant(package_id, 1).tier == 1
    assert shelf.models.weight_bytes(package_id) > 0
    with pytest.raises(NotFound) as missing:
        shelf.models.ready_variant(package_id, 2)
    assert missing.value.reason == "tier-unavailable"
    assert (await shelf.models.unload("digits", 1)).state == "unloaded"
    assert shelf.models.weight_bytes(package_id) == 0
    with pytest.raises(Unavailable):
        shelf.models.ready_variant(package_id, 1)
    await shelf.models.load("digits", 1)
    await shelf.models.seal()
    assert shelf.models.state(package_id) == "published"


async def test_concurrent_loads_are_one(shelf: Shelf, digits: Sealed) -> None:
    """Callers who want the same package share one load, and one who gives up does not stop it."""
    package_id = digits.manifest.package_id
    tasks = [asyncio.create_task(shelf.models.ensure_loaded(package_id)) for _ in range(5)]
    await asyncio.sleep(0)
    assert shelf.models.state(package_id) == "loading"
    tasks[0].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert done[1:] == [None] * 4
    assert shelf.models.state(package_id) == "ready"
    assert shelf.loads == 1


@pytest.mark.parametrize("wanted", [("other", 0), ("digits", 2)])
async def test_an_unknown_model_is_not_found(shelf: Shelf, wanted: tuple[str, int]) -> None:
    """Another name or version is model-unknown everywhere."""
    for call in (shelf.models.load, shelf.models.unload):
        with pytest.raises(NotFound) as caught:
            await call(*wanted)
        assert caught.value.reason == "model-unknown"
    with pytest.raises(NotFound):
        shelf.models.state("f" * 32)


async def test_a_failed_load_says_why_and_can_be_tried_again(shelf: Shelf, digits: Sealed) -> None:
    """A wrong key fails the entry with its reason; with the right key it becomes ready."""
    shelf.key = lambda _: ContentKey(bytes(32))
    with pytest.raises(WrongKey):
        await shelf.models.load("digits")
    entry = shelf.models.entry("digits")
    assert (entry.state, entry.reason) == ("failed", "wrong-key")
    await shelf.models.ensure_loaded(digits.manifest.package_id, keys.CONTENT_KEY)
    assert (entry.state, entry.reason) == ("ready", "")


async def test_a_package_that_was_changed_on_disk_does_not_load(tmp_path: Path) -> None:
    """One byte changed after publication: package-tampered, and the file that is gone is unavailable."""
    sealed = seal(tmp_path)
    made = Shelf(sealed)
    raw = bytearray(sealed.path.read_bytes())
    raw[-1] ^= 1
    sealed.path.write_bytes(raw)
    try:
        with pytest.raises(Tampered) as caught:
            await made.models.load("digits")
        assert caught.value.reason == "package-tampered"
        assert made.models.entry("digits").state == "failed"
        sealed.path.unlink()
        with pytest.raises(TesseraError):
            await made.models.load("digits")
        assert made.models.entry("digits").state == "failed"
    finally:
        await made.close()


@pytest.mark.slow
async def test_versions_are_offered_newest_first_with_their_tiers(tmp_path: Path) -> None:
    """Every tier that a package has is offered, and whether they have keys (rule W-59)."""
    tiered = seal_tiered(tmp_path, version=10).sealed
    made = Shelf(seal(tmp_path, version=1), tiered, seal(tmp_path, model="a"))
    try:
        offers = made.models.offers("digits")
        assert [(offer.version, offer.tiers, offer.tier_keys) for offer in offers] == [
            (10, frozenset({1, 2, 3}), True),
            (1, frozenset({1}), False),
        ]
        assert made.models.entry("digits").offer.version == 10
        assert [entry.offer.model for entry in made.models.entries()] == ["a", "digits", "digits"]
        made.packages.append(seal(tmp_path, version=11))
        made.models.refresh()
        assert made.models.entry("digits").offer.version == 11
    finally:
        await made.close()


def test_digits_is_a_module_whose_batch_norm_has_an_integer_buffer() -> None:
    """The test model covers float and integer state, so the loader's types are exercised."""
    assert {value.dtype for value in seeded(Digits).state_dict().values()} == {torch.float32, torch.int64}
