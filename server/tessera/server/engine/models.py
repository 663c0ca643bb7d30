"""The model directory: what is published here, and what of it can run now.

    published ──load──▶ loading ──▶ ready ──unload──▶ unloaded ──load──▶ …
        ▲                  └──────▶ failed ──load──▶ …
        └── seal: everything that was loaded goes back to published, for its key is gone

A package file holds one set of weights, those of its highest tier, so that tier is what it can be served at (rule
W-59). Made and used in one event loop; decryption and deserialisation run in a worker thread, warm-up in the device's.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog
import torch

from tessera.keystore.errors import NotFound, Tampered, TesseraError, Unavailable
from tessera.keystore.package import Manifest, UnlockedPackage, open_package
from tessera.keystore.secrets import ContentKey
from tessera.server.admission import ports
from tessera.server.admission.ports import Offer
from tessera.server.clock import Clock
from tessera.server.config import Limits
from tessera.server.engine.batcher import Batcher
from tessera.server.engine.calibration import best_batch
from tessera.server.engine.executor import Executor
from tessera.server.engine.program import Program, load_sealed
from tessera.server.engine.statistics import Statistics
from tessera.server.metering import Meter
from tessera.server.metrics import Metrics

_log = structlog.get_logger("tessera.models")

ModelState = ports.ModelState
UNLOAD_REMEDY = "ask the operator to load it"


class Warmable(Program, Protocol):
    """A program as a loader returns it, not yet tried."""

    def warm_up(self) -> None:
        """Run once at the smallest and the largest batch. Raises `Malformed` for a broken promise."""


Loader = Callable[[UnlockedPackage, torch.device], Warmable]


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
    _loading: "asyncio.Task[None] | None" = field(default=None, repr=False)

    @property
    def manifest(self) -> Manifest:
        """The package's manifest."""
        return self.published.manifest


class ModelDirectory:
    """Published packages by name, version and id; loads, unloads and finds the batcher of each.

    `packages` and `issuers` read the store. `content_key` opens a package's key from the installed grants; it raises a
    `TesseraError` when none of them holds it.
    """

    def __init__(
        self,
        *,
        packages: Callable[[], Sequence[Published]],
        issuers: Callable[[], Mapping[str, bytes]],
        content_key: Callable[[str], ContentKey],
        executor: Executor,
        meter: Meter,
        limits: Limits,
        metrics: Metrics,
        clock: Clock,
        loader: Loader = load_sealed,
    ) -> None:
        self._packages = packages
        self._issuers = issuers
        self._content_key = content_key
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

    def statistics(self, package_id: str) -> Statistics:
        """Return the sum over a package's variants since the server started, unloaded ones included."""
        total = Statistics()
        total.add(self._statistics.get(package_id, Statistics()))
        for (owner, _), variant in self._variants.items():
            if owner == package_id:
                total.add(variant.statistics)
        return total

    def weight_bytes(self, package_id: str) -> int:
        """Return the bytes of weights and buffers that a package holds on its device now."""
        return max(
            (v.program.device_bytes for (owner, _), v in self._variants.items() if owner == package_id), default=0
        )

    async def load(self, model: str, version: int = 0) -> ModelEntry:
        """Load a published model at the operator's wish; at once when it is ready already.

        Raises `NotFound` ("model-unknown"), what `content_key` raises, and what `ensure_loaded` raises.
        """
        entry = self.entry(model, version)
        await self.ensure_loaded(entry.offer.package_id)
        return entry

    async def ensure_loaded(self, package_id: str, content_key: ContentKey | None = None) -> None:
        """Return once a package is ready; concurrent callers share one load, and one that gives up does not stop it.

        `content_key` None takes the key from the installed grants. Raises `Tampered` ("package-tampered"), `WrongKey`,
        `Malformed` or `Unavailable`; the entry is then `failed` with the error's reason and can be loaded again.
        """
        entry = self._known(package_id)
        if entry._loading is None:
            if entry.state == "ready":
                return
            entry.state, entry.reason = "loading", ""
            entry._loading = asyncio.create_task(self._load(entry, content_key))
            entry._loading.add_done_callback(_seen)
        await asyncio.shield(entry._loading)

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

    async def _load(self, entry: ModelEntry, content_key: ContentKey | None) -> None:
        try:
            program = await asyncio.to_thread(self._decrypt, entry, content_key)
            await asyncio.wrap_future(self._executor.call(program.warm_up))
            best = await asyncio.wrap_future(self._executor.call(lambda: self._best_batch(program)))
            self._install(entry, program, best)
            _log.info("model measured", model=entry.offer.model, version=entry.offer.version, batch_samples=best)
            entry.state = "ready"
        except TesseraError as error:
            entry.state, entry.reason = "failed", error.reason
            raise
        except OSError as error:
            entry.state, entry.reason = "failed", "unavailable"
            raise Unavailable("the package file cannot be read") from error
        except BaseException:
            entry.state, entry.reason = "failed", "internal"
            raise
        finally:
            entry._loading = None

    def _decrypt(self, entry: ModelEntry, content_key: ContentKey | None) -> Warmable:
        """Open, authenticate and deserialise; runs in a worker thread."""
        package_id = entry.offer.package_id
        key = content_key if content_key is not None else self._content_key(package_id)
        with open_package(entry.published.path, self._issuers()) as package:
            if package.manifest != entry.manifest:
                raise Tampered("the package file is not the one that was published", reason="package-tampered")
            return self._loader(package.unlock(key), self._executor.device)

    def _best_batch(self, program: Program) -> int:
        """Measure where the program works best; runs in a lane of the executor, as the batches will."""
        self._executor.spread(alone=False)
        return best_batch(program, at_most=min(program.max_batch, self._limits.max_batch_samples))

    def _install(self, entry: ModelEntry, program: Program, batch_samples: int) -> None:
        for tier in entry.offer.tiers:
            self._variants[entry.offer.package_id, tier] = Batcher(
                program,
                tier,
                executor=self._executor,
                meter=self._meter,
                limits=self._limits,
                metrics=self._metrics,
                clock=self._clock,
                batch_samples=batch_samples,
            )

    async def _stop_all(self, error: TesseraError) -> None:
        for entry in self.entries():
            if entry.state in ("loading", "ready"):
                await self._stop(entry, "published", error)

    async def _stop(self, entry: ModelEntry, state: ModelState, error: TesseraError) -> None:
        if entry._loading is not None:
            await asyncio.wait([entry._loading])
        stopped = [key for key in self._variants if key[0] == entry.offer.package_id]
        entry.state, entry.reason = state, ""
        programs: dict[int, Program] = {}
        for key in stopped:
            variant = self._variants.pop(key)
            await variant.close(error)
            self._statistics.setdefault(key[0], Statistics()).add(variant.statistics)
            programs[id(variant.program)] = variant.program
        for program in programs.values():  # weights must not outlive the wish, whatever cycles hold their module
            await asyncio.wrap_future(self._executor.call(program.erase))


def _offer(manifest: Manifest) -> Offer:
    return Offer(
        package_id=manifest.package_id,
        issuer_id=manifest.issuer_id,
        model=manifest.model,
        version=manifest.version,
        tiers=frozenset({max(tier.tier for tier in manifest.tiers)}),
        input_key_id=manifest.input_key_id,
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
