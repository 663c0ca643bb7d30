"""The appliance without its doors: store, vault, models, gate and meter, and what happens to all of them at once.

Made and used in one event loop. Whatever touches the disk runs in a worker thread; what it found is used on the loop.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import structlog
import torch

from tessera.keystore.errors import Denied, TesseraError, Unavailable
from tessera.keystore.grant import Grant, PackageSecrets
from tessera.keystore.licence import Licence
from tessera.keystore.package import open_package
from tessera.keystore.revocation import RevocationList
from tessera.keystore.secrets import Passphrase
from tessera.keystore.store import Store
from tessera.server.admission import Gate
from tessera.server.clock import Clock
from tessera.server.config import Settings
from tessera.server.engine import Executor, ModelDirectory, ModelEntry, load_variant
from tessera.server.logs import frames
from tessera.server.metering import Meter
from tessera.server.metrics import Metrics
from tessera.server.vault import Vault

IDLE_POLL_S = 0.01

_log = structlog.get_logger("tessera.node")


def _check_secrets(path: Path, secrets: PackageSecrets, issuers: Mapping[str, bytes]) -> None:
    """Return when `secrets` open the package at `path`: others would surprise whoever issues the next licence."""
    with open_package(path, issuers) as sealed:
        if secrets.package_id != sealed.manifest.package_id:
            raise Denied(
                "the secrets are another package's",
                reason="grant-mismatch",
                remedy="give the secrets that were written when this package was sealed, or none",
            )
        sealed.unlock(secrets.content_key)


async def _say_nothing(serving: bool) -> None:
    del serving


class Node:
    """One node of one store. `announce` is told whenever it begins or ceases to serve."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
        *,
        announce: Callable[[bool], Awaitable[None]] = _say_nothing,
    ) -> None:
        device = torch_device(settings.device)  # may refuse; nothing has been started yet
        self.store = store
        self.settings = settings
        self.clock = clock
        self.metrics = metrics
        self.vault = Vault(store)
        self.meter = Meter(store.append_usage, self.vault.receipt, metrics=metrics)
        self.executor = Executor(device, threads=settings.threads or None)
        self.models = ModelDirectory(
            packages=store.packages,
            issuers=store.issuers,
            content_key=self.vault.content_key,
            tier_key=self.vault.tier_key,
            executor=self.executor,
            meter=self.meter,
            limits=settings.limits,
            metrics=metrics,
            clock=clock,
            loader=partial(load_variant, arithmetic=settings.arithmetic),
        )
        self._announce = announce
        self._revoked = store.revoked()
        self._lock = asyncio.Lock()
        self._looking = asyncio.Lock()
        self.gate = Gate(
            clock,
            settings.limits,
            node_id=store.node.key_id,
            issuers=store.issuers,
            models=self.models,
            ledger=store,
            revoked=lambda: self._revoked,
            open_grant=self.vault.open_grant,
            installed=self._installed_grants,
            sealed=lambda: store.sealed,
        )
        metrics.watch_sessions(lambda: float(self.gate.session_count))
        metrics.watch_sealed(lambda: store.sealed)

    async def unseal(self, passphrase: Passphrase) -> None:
        """Give the store its master key and load what can be loaded. Raises `WrongKey` `wrong-passphrase`."""
        async with self._lock:
            await asyncio.to_thread(self.store.unseal, passphrase)
            await self.start_serving()

    async def start_serving(self) -> None:
        """Load every published model whose key is here, then announce; a model that fails is logged and left out."""
        for entry in self.models.entries():
            package_id = entry.offer.package_id
            if await asyncio.to_thread(self.vault.has_content_key, package_id):
                await self._try_to_load(entry)
        await self._announce(True)

    async def seal(self) -> None:
        """Forget the master key, close every session, unload every model; what is running is finished and recorded."""
        async with self._lock:
            self.store.seal()
            self.gate.drop_all()
            await self._announce(False)
            await self.models.seal()
            self.vault.forget()
            _log.info("sealed")

    async def publish(self, path: Path, secrets: PackageSecrets | None) -> ModelEntry:
        """Verify and take in a package file, and load it when its key is here. Raises what `Store.publish` raises, and
        `Denied` ("grant-mismatch") or `WrongKey` for the secrets of another package; nothing is published then.
        """
        if secrets is not None:
            await asyncio.to_thread(_check_secrets, path, secrets, self.store.issuers())
        package = await asyncio.to_thread(self.store.publish, path, now_s=self.clock.now_s())
        if secrets is not None:
            await asyncio.to_thread(self.store.put_package_secrets, secrets)
        self.models.refresh()
        _log.info("model published", model=package.model, version=package.version, package_id=package.package_id)
        entry = self.models.entry(package.model, package.version)
        if not self.store.sealed and await asyncio.to_thread(self.vault.has_content_key, package.package_id):
            await self._try_to_load(entry)
        return entry

    async def install(self, licence: Licence, grant: Grant) -> None:
        """Keep a verified licence and grant durably. Raises `Conflict` when another licence has this id."""
        await asyncio.to_thread(self.store.install_licence, licence, grant, now_s=self.clock.now_s())
        _log.info(
            "licence installed", licence_id=licence.licence_id, buyer_id=licence.buyer_id, model=licence.terms.model
        )

    async def revoke(self, revocations: RevocationList) -> int:
        """Put a verified list in force and close the sessions it ends; return how many. Raises `Conflict`."""
        await asyncio.to_thread(self.store.apply_revocations, revocations)
        closed = await self._look_for_revocations()
        _log.info("revocation list in force", number=revocations.number, sessions_closed=closed)
        return closed

    async def watch_revocations(self) -> None:
        """Follow revocations that another process puts into the store; runs until it is cancelled."""
        while True:
            await asyncio.sleep(self.settings.limits.revocation_poll_s)
            try:
                await self._look_for_revocations()
            except TesseraError as error:
                _log.warning("revocations could not be read", reason=error.reason)

    async def _look_for_revocations(self) -> int:
        """Take over what is revoked in the store and close the sessions that it ends; return how many.

        One look at a time: what a slow one saw before a list was applied must not replace what a later one has seen.
        """
        async with self._looking:
            self._revoked = await asyncio.to_thread(self.store.revoked)
            return self.gate.drop_licences(self._revoked)

    async def drain(self) -> None:
        """Refuse what is new and wait, up to `drain_grace_s`, until all that was admitted is recorded or given back."""
        self.gate.drain()
        until_s = self.clock.monotonic_s() + self.settings.limits.drain_grace_s
        while self.gate.outstanding and self.clock.monotonic_s() < until_s:  # noqa: ASYNC110 -- the gate wakes nobody
            await asyncio.sleep(IDLE_POLL_S)

    async def close(self) -> None:
        """Stop models, device thread and meter in that order, note the time, and close the store."""
        self.gate.drain()
        await self.models.drain()
        await asyncio.to_thread(self.executor.close)
        await asyncio.to_thread(self.meter.close)
        self.vault.forget()
        await asyncio.to_thread(self._close_store)

    def _close_store(self) -> None:
        try:
            self.store.note_time(int(self.clock.now_s() * 1_000_000))
        except TesseraError as error:
            _log.warning("the clock mark could not be written", reason=error.reason)
        self.store.close()

    def _installed_grants(self, licence_id: str) -> tuple[Grant, ...]:
        installed = self.store.installed(licence_id)
        return () if installed is None else installed.grants

    async def _try_to_load(self, entry: ModelEntry) -> None:
        offer = entry.offer
        try:
            await self.models.ensure_loaded(offer.package_id)
        except TesseraError as error:
            _log.error("model not loaded", model=offer.model, version=offer.version, reason=error.reason)
        except Exception as error:  # noqa: BLE001 -- no memory for one model, say; the others are served all the same
            told = {"reason": "internal", "error": type(error).__name__, "where": frames(error)}
            _log.error("model not loaded", model=offer.model, version=offer.version, **told)
        else:
            _log.info("model loaded", model=offer.model, version=offer.version)


def torch_device(setting: str) -> str:
    """Return the torch device that the setting `device` means; `auto` is CUDA where there is one.

    Raises `Unavailable` for a CUDA device that is not here: no model would load, and the node would look well.
    """
    if setting == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = setting.partition(":")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise Unavailable(
            f"the device {setting} is not on this machine",
            remedy="set device to auto or cpu, or see why torch finds no such GPU: driver, permissions, CPU-only torch",
        )
    return setting
