"""The model directory: what is published here, and what of it can run now.

    published ──load──▶ loading ──▶ ready ──unload──▶ unloaded ──load──▶ …
        ▲                  └──────▶ failed ──load──▶ …
        └── seal: everything that was loaded goes back to published, for its key is gone

A package that is ready has a *variant* for each of its tiers that was asked for: a program with the weights of that
tier and a batcher of its own. A variant is made when its tier is first used, and goes when the package does; what
variants have in common is one tensor in memory (rule W-59). Made and used in one event loop; decryption and
deserialisation run in a worker thread, warm-up in the device's.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog

from tessera.keystore.errors import NotFound, SealedError, Tampered, TesseraError, Unavailable
from tessera.keystore.package import Manifest, open_package
from tessera.keystore.secrets import ContentKey
from tessera.keystore.tiers import TierKey
from tessera.server.admission import ports
from tessera.server.admission.ports import Offer
from tessera.server.clock import Clock
from tessera.server.config import Limits
from tessera.server.engine.batcher import Batcher
from tessera.server.engine.calibration import best_batch
from tessera.server.engine.executor import Executor
from tessera.server.engine.program import Program
from tessera.server.engine.sharing import SharedTensors
from tessera.server.engine.statistics import Statistics
from tessera.server.engine.variants import VariantLoader, load_variant
from tessera.server.metering import Meter
from tessera.server.metrics import Metrics

_log = structlog.get_logger("tessera.models")

ModelState = ports.ModelState
UNLOAD_REMEDY = "ask the operator to load it"


class Warmable(Program, Protocol):
    """A program as a loader returns it, not yet tried."""

    def warm_up(self) -> None:
        """Run once at the smallest and the largest batch. Raises `Malformed` for a broken promise."""


def no_tier_key(package_id: str, tier: int | None = None) -> TierKey:
    """Stand for a node that holds no tier keys."""
    del package_id, tier
    raise NotFound("no installed grant holds the key of this tier", reason="grant-missing")


class Published(Protocol):
    """One package of the store; `PublishedPackage` is one."""

    @property
    def path(self) -> Path:
        """The sealed file."""

    @property
    def size_bytes(self) -> int:
        """Its size."""

    @property
    def published_at_s(self) -> float:
        """Unix time in seconds."""

    @property
    def manifest(self) -> Manifest:
        """Its verified manifest."""


@dataclass(eq=False)
class ModelEntry:
    """One published model and its state; changes as it is loaded and unloaded."""

    published: Published
    offer: Offer
    state: ModelState = "published"
    reason: str = ""
    """Slug of why it is not ready; empty when it is, or was never loaded."""
    _loading: "dict[int, asyncio.Task[None]]" = field(default_factory=dict, repr=False)
    """The loads under way, by tier."""
    _shared: SharedTensors = field(default_factory=SharedTensors, repr=False)
    """What its variants have in common."""
    _batch_samples: int = field(default=0, repr=False)
    """Where the program works best; measured with its first variant, for the others differ in values only."""

    @property
    def manifest(self) -> Manifest:
        """The package's manifest."""
        return self.published.manifest


class ModelDirectory:
    """Published packages by name, version and id; loads, unloads and finds the batcher of each.

    `packages` and `issuers` read the store. `content_key` opens a package's key from the installed grants, `tier_key`
    that of one of its tiers (None: the highest there is); they raise a `TesseraError` when no grant holds it.
    """

    def __init__(
        self,
        *,
        packages: Callable[[], Sequence[Published]],
        issuers: Callable[[], Mapping[str, bytes]],
        content_key: Callable[[str], ContentKey],
        tier_key: Callable[[str, int | None], TierKey] = no_tier_key,
        executor: Executor,
        meter: Meter,
        limits: Limits,
        metrics: Metrics,
        clock: Clock,
        loader: VariantLoader = load_variant,
    ) -> None:
        self._packages = packages
        self._issuers = issuers
        self._content_key = content_key
        self._tier_key = tier_key
        self._executor = executor
        self._meter = meter
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._loader = loader
        self._entries: dict[str, ModelEntry] = {}
        self._variants: dict[tuple[str, int], Batcher] = {}
        self._statistics: dict[str, Statistics] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the published packages again, after a package was published; states of known ones stay."""
        for package in self._packages():
            package_id = package.manifest.package_id
            if package_id not in self._entries:
                self._entries[package_id] = ModelEntry(package, _offer(package.manifest))

    def entries(self) -> list[ModelEntry]:
        """Return every published model, by name and version."""
        return sorted(self._entries.values(), key=lambda entry: (entry.offer.model, entry.offer.version))

    def entry(self, model: str, version: int = 0) -> ModelEntry:
        """Return one published model; version 0 means the newest. Raises `NotFound` ("model-unknown")."""
        for entry in reversed(self.entries()):
            if entry.offer.model == model and version in (0, entry.offer.version):
                return entry
        raise NotFound("no such model is published here", reason="model-unknown")

    def offers(self, model: str) -> Sequence[Offer]:
        """Return the published packages of this name, newest version first."""
        return [entry.offer for entry in reversed(self.entries()) if entry.offer.model == model]

    def state(self, package_id: str) -> ModelState:
        """Return the state of a published package. Raises `NotFound` ("model-unknown")."""
        return self._known(package_id).state

    def manifest(self, package_id: str) -> Manifest:
        """Return the manifest of a published package. Raises `NotFound` ("model-unknown")."""
        return self._known(package_id).manifest

    def ready_variant(self, package_id: str, tier: int) -> Batcher:
        """Return the batcher that serves `tier` of a package.

        Raises `Unavailable` ("model-not-ready") when it is not loaded, `NotFound` ("tier-unavailable",
        "model-unknown").
        """
        variant = self._variants.get((package_id, tier))
        if variant is not None:
            return variant
        entry = self._known(package_id)
        if entry.state == "ready":
            raise NotFound(f"model {entry.offer.model} is not served at tier {tier}", reason="tier-unavailable")
        raise _not_ready(entry)

    def serves(self, package_id: str, tier: int) -> bool:
        """Return whether `tier` of a package can be served at once."""
        return (package_id, tier) in self._variants

    async def variant(self, package_id: str, tier: int) -> Batcher:
        """Return the batcher that serves `tier` of a package that is ready; its first use loads it.

        Raises what `ready_variant` raises, and `Unavailable` ("model-not-ready") when the tier will not load.
        """
        entry = self._known(package_id)
        if (package_id, tier) not in self._variants and entry.state == "ready" and tier in entry.offer.tiers:
            try:
                await self.ensure_loaded(package_id, tier=tier)
            except (SealedError, Unavailable):
                raise
            except TesseraError as error:
                raise _not_ready(entry) from error
        return self.ready_variant(package_id, tier)

    def statistics(self, package_id: str) -> Statistics:
        """Return the sum over a package's variants since the server started, unloaded ones included."""
        total = Statistics()
        total.add(self._statistics.get(package_id, Statistics()))
        for (owner, _), variant in self._variants.items():
            if owner == package_id:
                total.add(variant.statistics)
        return total

    def weight_bytes(self, package_id: str) -> int:
        """Return the bytes of weights and buffers that a package holds now; what variants share counts once."""
        programs = [variant.program for (owner, _), variant in self._variants.items() if owner == package_id]
        shared = self._known(package_id)._shared.nbytes if len(programs) > 1 else 0
        return shared or sum(program.device_bytes for program in programs)

    async def load(self, model: str, version: int = 0) -> ModelEntry:
        """Load a published model at the operator's wish; at once when it is ready already.

        Raises `NotFound` ("model-unknown"), what `content_key` raises, and what `ensure_loaded` raises.
        """
        entry = self.entry(model, version)
        await self.ensure_loaded(entry.offer.package_id)
        return entry

    async def ensure_loaded(
        self,
        package_id: str,
        content_key: ContentKey | None = None,
        *,
        tier: int | None = None,
        tier_key: TierKey | None = None,
    ) -> None:
        """Return once a package is ready at a tier; concurrent callers share one load, and one that gives up does not
        stop it.

        `tier` None means any tier, the highest whose key is here if none is loaded. Keys that are None are taken from
        the installed grants; `tier_key` is of `tier` or above. Raises `Tampered` ("package-tampered"), `WrongKey`,
        `Malformed`, `Unavailable` or `NotFound` ("tier-unavailable"); unless another tier is served, the entry is then
        `failed` with the error's reason and can be loaded again.
        """
        entry = self._known(package_id)
        if tier is None:
            if entry.state == "ready":
                return
            tier = await self._first_tier(entry)
        if tier not in entry.offer.tiers:
            raise NotFound(f"model {entry.offer.model} has no tier {tier}", reason="tier-unavailable")
        task = entry._loading.get(tier)
        if task is None:
            if (package_id, tier) in self._variants:
                return
            if entry.state != "ready":
                entry.state, entry.reason = "loading", ""
            task = entry._loading[tier] = asyncio.create_task(self._load(entry, tier, content_key, tier_key))
            task.add_done_callback(_seen)
        await asyncio.shield(task)

    async def unload(self, model: str, version: int = 0) -> ModelEntry:
        """Stop serving a model and free its memory; waiting requests are refused, running ones finish.

        Raises `NotFound` ("model-unknown"). Unloading what is not loaded only notes the wish.
        """
        entry = self.entry(model, version)
        await self._stop(entry, "unloaded", _not_ready(entry))
        return entry

    async def seal(self) -> None:
        """Unload everything, for the store is being sealed; the models are `published` again."""
        error = Unavailable("the store is being sealed", reason="model-not-ready")
        await self._stop_all(error)

    async def drain(self) -> None:
        """Refuse new work, let work in flight finish and free everything, for the server is shutting down."""
        await self._stop_all(Unavailable("the server is shutting down", reason="draining"))

    def _known(self, package_id: str) -> ModelEntry:
        entry = self._entries.get(package_id)
        if entry is None:
            raise NotFound("no such model is published here", reason="model-unknown")
        return entry

    async def _first_tier(self, entry: ModelEntry) -> int:
        """Return the tier to load when none is asked for. Marks the entry as failed when no key is here."""
        if not entry.manifest.patches:
            return max(entry.offer.tiers)
        try:
            return (await asyncio.to_thread(self._tier_key, entry.offer.package_id, None)).tier
        except TesseraError as error:
            self._failed(entry, error.reason)
            raise

    async def _load(
        self, entry: ModelEntry, tier: int, content_key: ContentKey | None, tier_key: TierKey | None
    ) -> None:
        reason = "internal"
        try:
            program = await asyncio.to_thread(self._decrypt, entry, tier, content_key, tier_key)
            await self._try(entry, program)
            self._install(entry, program, tier)
            reason = ""
        except TesseraError as error:
            reason = error.reason
            raise
        except OSError as error:
            reason = "unavailable"
            raise Unavailable("the package file cannot be read") from error
        finally:
            del entry._loading[tier]
            if reason:
                self._failed(entry, reason)
            else:
                entry.state = "ready"

    def _failed(self, entry: ModelEntry, reason: str) -> None:
        """Note that a load has failed, unless another tier is served or may yet be."""
        if entry.state != "ready" and not entry._loading:
            entry.state, entry.reason = "failed", reason

    def _decrypt(
        self, entry: ModelEntry, tier: int, content_key: ContentKey | None, tier_key: TierKey | None
    ) -> Warmable:
        """Open, authenticate and deserialise; runs in a worker thread."""
        package_id = entry.offer.package_id
        key = content_key if content_key is not None else self._content_key(package_id)
        if entry.manifest.patches:
            tier_key = (tier_key if tier_key is not None else self._tier_key(package_id, tier)).at(tier)
        else:
            tier_key = None
        with open_package(entry.published.path, self._issuers()) as package:
            if package.manifest != entry.manifest:
                raise Tampered("the package file is not the one that was published", reason="package-tampered")
            unlocked = package.unlock(key)
            return self._loader(unlocked, self._executor.device, tier_key=tier_key, shared=entry._shared)

    async def _try(self, entry: ModelEntry, program: Warmable) -> None:
        """Warm the program up and, once for a package, measure it; what fails leaves no weights behind."""
        try:
            await asyncio.wrap_future(self._executor.call(program.warm_up))
            if not entry._batch_samples:
                measured = self._executor.call(lambda: self._best_batch(program))
                entry._batch_samples = await asyncio.wrap_future(measured)
                _log.info(
                    "model measured",
                    model=entry.offer.model,
                    version=entry.offer.version,
                    batch_samples=entry._batch_samples,
                )
        except BaseException:
            self._executor.call(program.erase)
            raise

    def _best_batch(self, program: Program) -> int:
        """Measure where the program works best; runs in a lane of the executor, as the batches will."""
        self._executor.spread(alone=False)
        return best_batch(program, at_most=min(program.max_batch, self._limits.max_batch_samples))

    def _install(self, entry: ModelEntry, program: Program, tier: int) -> None:
        self._variants[entry.offer.package_id, tier] = Batcher(
            program,
            tier,
            executor=self._executor,
            meter=self._meter,
            limits=self._limits,
            metrics=self._metrics,
            clock=self._clock,
            batch_samples=entry._batch_samples,
        )
        self._metrics.model(entry.offer.model).loaded(tier, True)
        _log.info("variant loaded", model=entry.offer.model, version=entry.offer.version, tier=tier)

    async def _stop_all(self, error: TesseraError) -> None:
        for entry in self.entries():
            if entry.state in ("loading", "ready"):
                await self._stop(entry, "published", error)

    async def _stop(self, entry: ModelEntry, state: ModelState, error: TesseraError) -> None:
        while entry._loading:
            await asyncio.wait(entry._loading.values())
        stopped = {key: self._variants.pop(key) for key in list(self._variants) if key[0] == entry.offer.package_id}
        entry.state, entry.reason = state, ""
        for (package_id, tier), variant in stopped.items():
            self._metrics.model(entry.offer.model).loaded(tier, False)
            await variant.close(error)
            self._statistics.setdefault(package_id, Statistics()).add(variant.statistics)
        for variant in stopped.values():  # weights must not outlive the wish, whatever cycles hold their module
            await asyncio.wrap_future(self._executor.call(variant.program.erase))


def _offer(manifest: Manifest) -> Offer:
    return Offer(
        package_id=manifest.package_id,
        issuer_id=manifest.issuer_id,
        model=manifest.model,
        version=manifest.version,
        tiers=frozenset(tier.tier for tier in manifest.tiers),
        tier_keys=bool(manifest.patches),
        input_key_id=manifest.input_key_id,
        input_key_ids=frozenset(manifest.input_key_ids),
        max_batch=manifest.max_batch,
    )


def _not_ready(entry: ModelEntry) -> Unavailable:
    return Unavailable(
        f"model {entry.offer.model} version {entry.offer.version} is not loaded",
        reason="model-not-ready",
        remedy=UNLOAD_REMEDY,
    )


def _seen(task: "asyncio.Task[None]") -> None:
    """Mark the error as seen: every waiter may have gone away, and the entry keeps the reason."""
    if not task.cancelled():
        task.exception()
