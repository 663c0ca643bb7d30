"""Variants: one package at several tiers in one process, sharing what they have in common (rule W-59)."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support import keys
from support.clock import ManualClock
from support.ledger import MemoryLedger
from support.models import Digits, seal, seeded
from support.tiers import RUNS, TIERS, TOP, Tiered, cut, expected, seal_tiered, tier_key
from tessera.keystore.errors import NotFound, Tampered, Unavailable, WrongKey
from tessera.keystore.package import UnlockedPackage, open_package
from tessera.keystore.tiers import TierKey
from tessera.server.config import Limits
from tessera.server.engine import Executor, LoadedProgram, ModelDirectory, load_sealed, load_variant
from tessera.server.engine.sharing import SharedTensors
from tessera.server.metering import Meter
from tessera.server.metrics import Metrics

PICTURES = np.random.default_rng(3).integers(0, 256, (5, 1, 8, 8), np.uint8)
UNTOUCHED = frozenset(seeded(Digits).state_dict()) - RUNS.keys()


@pytest.fixture(scope="module")
def tiered(tmp_path_factory: pytest.TempPathFactory) -> Tiered:
    """A `Digits` in three tiers; exported once."""
    return seal_tiered(tmp_path_factory.mktemp("tiered"))


@contextmanager
def opened(tiered: Tiered) -> Iterator[UnlockedPackage]:
    """Open and unlock the package."""
    with open_package(tiered.sealed.path, keys.ISSUERS) as package:
        yield package.unlock(keys.CONTENT_KEY)


def variant(tiered: Tiered, tier: int, **how: Any) -> LoadedProgram:
    """Load one tier."""
    with opened(tiered) as package:
        return load_variant(package, tier_key=tier_key(tier), **how)


def answers(program: LoadedProgram, pictures: "np.ndarray[Any, Any]" = PICTURES) -> list[float]:
    """Return what a program gives, flat."""
    with torch.inference_mode():
        flat: list[float] = program.run([{"image": pictures}])["logits"].reshape(-1).tolist()
        return flat


@pytest.mark.parametrize("tier", [1, 2, 3])
def test_each_tier_is_its_own_model_and_the_top_is_the_vendors(tiered: Tiered, tier: int) -> None:
    """Exact arithmetic gives each tier's bits; the top tier's are those of the module the vendor trained."""
    program = variant(tiered, tier)
    assert answers(program) == expected(tiered, tier, PICTURES)
    vendor = seeded(Digits).state_dict()
    same = all(torch.equal(value, vendor[name]) for name, value in tiered.modules[-1].state_dict().items())
    assert same
    with torch.inference_mode():
        assert (answers(program) == seeded(Digits)(torch.from_numpy(PICTURES)).flatten().tolist()) == (tier == TOP)


def test_fast_arithmetic_serves_tiers_too(tiered: Tiered) -> None:
    """Folded programs of three tiers in one pool give each tier's answers closely, and stay three."""
    shared = SharedTensors()
    programs = [variant(tiered, tier, shared=shared, arithmetic="fast") for tier in (1, 2, 3)]
    for program in programs:
        program.warm_up()
    assert {program.arithmetic for program in programs} == {"fast"}
    for tier, program in enumerate(programs, 1):
        assert np.allclose(answers(program), expected(tiered, tier, PICTURES), atol=1e-4)
    assert shared.nbytes < sum(program.device_bytes for program in programs)


def test_only_what_a_patch_changes_is_there_twice(tiered: Tiered) -> None:
    """Three tiers cost the shared tensors once and the changed ones three times, not three models."""
    shared = SharedTensors()
    programs = [variant(tiered, tier, shared=shared) for tier in (1, 2, 3)]
    state = seeded(Digits).state_dict()
    common = sum(state[name].nbytes for name in UNTOUCHED)
    changed = sum(state[name].nbytes for name in RUNS)
    assert shared.nbytes == common + 3 * changed
    pointers = [{name: value.data_ptr() for name, value in p._module.state_dict().items()} for p in programs]
    assert {name for name in pointers[0] if pointers[0][name] == pointers[2][name]} == UNTOUCHED


def test_shared_tensors_are_overwritten_with_the_last_variant(tiered: Tiered) -> None:
    """Erasing one variant leaves the other's answers; erasing both leaves zeros in the memory itself."""
    shared = SharedTensors()
    one, two = variant(tiered, 1, shared=shared), variant(tiered, 3, shared=shared)
    memory = {name: value.detach() for name, value in two._module.state_dict().items()}
    one.erase()
    assert answers(two) == expected(tiered, 3, PICTURES)
    two.erase()
    assert shared.nbytes == 0
    assert not any(value.any() for value in memory.values())


def test_a_variant_without_its_key(tiered: Tiered, tmp_path: Path) -> None:
    """No key and another package's or tier's key are wrong keys; the plain package needs none."""
    stray = [
        None,
        TierKey(tiered.sealed.manifest.package_id, 3, tier_key(2).secret),
        tier_key(3, package_id="ff" * 16),
        tier_key(3, fill=0x72),
    ]
    with opened(tiered) as package:
        for key in stray:
            with pytest.raises(WrongKey):
                load_variant(package, tier_key=key)
    plain = seal(tmp_path)
    with open_package(plain.path, keys.ISSUERS) as sealed:
        unlocked = sealed.unlock(keys.CONTENT_KEY)
        assert answers(load_variant(unlocked)) == answers(load_sealed(unlocked))


def test_a_damaged_patch_leaves_no_weights(tiered: Tiered, tmp_path: Path) -> None:
    """A patch that fails its authentication fails the load, and nothing stays in the pool."""
    raw = bytearray(tiered.sealed.path.read_bytes())
    manifest = tiered.sealed.manifest
    begin = len(raw) - manifest.body_bytes
    raw[begin + manifest.patches[0].sealed_bytes] ^= 1  # the first byte of p/02
    path = tmp_path / "damaged.tessera"
    path.write_bytes(raw)
    shared = SharedTensors()
    with open_package(path, keys.ISSUERS) as sealed:
        unlocked = sealed.unlock(keys.CONTENT_KEY)
        with pytest.raises(Tampered):
            load_variant(unlocked, tier_key=tier_key(2), shared=shared)
        assert shared.nbytes == 0
        assert answers(load_variant(unlocked, tier_key=tier_key(1))) == expected(tiered, 1, PICTURES)


def test_cutting_and_patching_is_exact() -> None:
    """The helper of these tests gives the vendor's state at the top, to the bit, and decoys at the bottom."""
    state = seeded(Digits).state_dict()
    parts = cut(state)
    assert all(torch.equal(parts.states[-1][name], value) for name, value in state.items())
    assert not any(torch.equal(parts.base[name], state[name]) for name in RUNS)
    assert len(parts.patches) == len(TIERS)


# -- the directory ---------------------------------------------------------------------------------------------------


class Shelf:
    """A model directory over one tiered package; `keys_here` is the highest tier whose key it finds."""

    def __init__(self, tiered: Tiered, keys_here: int = TOP) -> None:
        self.tiered, self.keys_here = tiered, keys_here
        self.package_id = tiered.sealed.manifest.package_id
        self.metrics = Metrics()
        self.executor = Executor("cpu", threads=1)
        self.meter = Meter(MemoryLedger().append_usage, lambda _: "", metrics=self.metrics)
        self.models = ModelDirectory(
            packages=lambda: [tiered.sealed],
            issuers=lambda: keys.ISSUERS,
            content_key=lambda _: keys.CONTENT_KEY,
            tier_key=self._tier_key,
            executor=self.executor,
            meter=self.meter,
            limits=Limits(),
            metrics=self.metrics,
            clock=ManualClock(),
            loader=partial(load_variant, arithmetic="exact"),
        )

    def _tier_key(self, package_id: str, tier: int | None) -> TierKey:
        if not self.keys_here or (tier or 1) > self.keys_here:
            raise NotFound("no installed grant holds the key of this tier", reason="grant-missing")
        return tier_key(self.keys_here if tier is None else tier, package_id=package_id)

    async def answers(self, tier: int) -> list[float]:
        """Run a tier's program."""
        batcher = await self.models.variant(self.package_id, tier)
        return await asyncio.wrap_future(self.executor.call(lambda: answers(batcher.program)))  # type: ignore[arg-type]

    async def close(self) -> None:
        """Stop everything."""
        await self.models.drain()
        await asyncio.to_thread(self.executor.close)
        await asyncio.to_thread(self.meter.close)


@pytest.fixture
async def shelf(tiered: Tiered) -> AsyncIterator[Shelf]:
    """A directory with one published package."""
    made = Shelf(tiered)
    yield made
    await made.close()


async def test_tiers_come_when_they_are_used_and_go_with_the_package(shelf: Shelf) -> None:
    """Loading brings the highest tier whose key is here; others follow at their first use; unloading takes all."""
    shelf.keys_here = 2
    await shelf.models.load("digits")
    assert [shelf.models.serves(shelf.package_id, tier) for tier in (1, 2, 3)] == [False, True, False]
    alone = shelf.models.weight_bytes(shelf.package_id)
    assert await shelf.answers(1) == expected(shelf.tiered, 1, PICTURES)
    assert await shelf.answers(2) == expected(shelf.tiered, 2, PICTURES)
    state = seeded(Digits).state_dict()
    assert shelf.models.weight_bytes(shelf.package_id) == alone + sum(state[name].nbytes for name in RUNS)
    page = shelf.metrics.render()[0].decode()
    assert 'tessera_variant_loaded{model="digits",tier="1"} 1.0' in page
    assert 'tessera_variant_loaded{model="digits",tier="2"} 1.0' in page
    programs = [shelf.models.ready_variant(shelf.package_id, tier).program for tier in (1, 2)]
    await shelf.models.unload("digits")
    assert [program.device_bytes for program in programs] == [0, 0]
    assert shelf.models.weight_bytes(shelf.package_id) == 0
    with pytest.raises(Unavailable) as caught:
        await shelf.models.variant(shelf.package_id, 1)
    assert caught.value.reason == "model-not-ready"
    assert 'tessera_variant_loaded{model="digits",tier="1"} 0.0' in shelf.metrics.render()[0].decode()
    await shelf.models.load("digits")
    assert await shelf.answers(1) == expected(shelf.tiered, 1, PICTURES)


async def test_a_tier_without_a_key_here_is_not_ready_and_harms_no_other(shelf: Shelf) -> None:
    """What cannot be loaded is `model-not-ready`; a tier that is not there `tier-unavailable`; the rest is served."""
    shelf.keys_here = 1
    await shelf.models.load("digits")
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            await shelf.models.variant(shelf.package_id, 3)
        assert caught.value.reason == "model-not-ready"
    with pytest.raises(NotFound) as missing:
        await shelf.models.variant(shelf.package_id, 4)
    assert missing.value.reason == "tier-unavailable"
    with pytest.raises(WrongKey):
        await shelf.models.ensure_loaded(shelf.package_id, tier=3, tier_key=tier_key(2))
    assert shelf.models.state(shelf.package_id) == "ready"
    assert await shelf.answers(1) == expected(shelf.tiered, 1, PICTURES)
    await shelf.models.ensure_loaded(shelf.package_id, tier=2, tier_key=tier_key(3))  # a key from above will do
    assert await shelf.answers(2) == expected(shelf.tiered, 2, PICTURES)


async def test_without_any_tier_key_the_package_fails_to_load(shelf: Shelf) -> None:
    """The reason is noted, and with a key it loads."""
    shelf.keys_here = 0
    with pytest.raises(NotFound):
        await shelf.models.load("digits")
    entry = shelf.models.entry("digits")
    assert (entry.state, entry.reason) == ("failed", "grant-missing")
    shelf.keys_here = 3
    await shelf.models.load("digits")
    assert (entry.state, entry.reason) == ("ready", "")


async def test_callers_of_one_tier_share_a_load_and_tiers_load_side_by_side(shelf: Shelf) -> None:
    """Twelve callers, three tiers: three variants, and what they share is still there once."""
    await asyncio.gather(*(shelf.models.ensure_loaded(shelf.package_id, tier=tier) for tier in (1, 2, 3) * 4))
    assert [await shelf.answers(tier) for tier in (1, 2, 3)] == [
        expected(shelf.tiered, tier, PICTURES) for tier in (1, 2, 3)
    ]
    state = seeded(Digits).state_dict()
    changed, whole = sum(state[name].nbytes for name in RUNS), sum(value.nbytes for value in state.values())
    assert shelf.models.weight_bytes(shelf.package_id) == whole + 2 * changed


async def test_sealing_while_a_tier_loads_leaves_nothing(shelf: Shelf) -> None:
    """A load under way ends before everything is erased; afterwards no program of the package has weights."""
    await shelf.models.load("digits")
    loading = asyncio.create_task(shelf.models.ensure_loaded(shelf.package_id, tier=1))
    await asyncio.sleep(0)
    await shelf.models.seal()
    await loading
    assert shelf.models.state(shelf.package_id) == "published"
    assert not any(shelf.models.serves(shelf.package_id, tier) for tier in (1, 2, 3))
    gc.collect()
    left = [found for found in gc.get_objects() if type(found) is LoadedProgram and found.device_bytes]
    assert [found for found in left if found.manifest.package_id == shelf.package_id] == []
