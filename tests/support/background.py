"""A real appliance behind a blocking client: the server lives on an event loop in a thread of its own.

with Background(tmp_path) as site, client(site) as c:
    c.infer("digits", images(1))
"""

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from support import keys
from support.appliance import KEYED, PLAIN, Kind, Site, running
from support.models import Digits, seeded
from tessera.client import Client
from tessera.keystore.identity import Identity
from tessera.keystore.licence import LicenceFile


class Background:
    """Serves `kinds`, by default `PLAIN` and `KEYED`, while it is entered."""

    def __init__(self, folder: Path, kinds: tuple[Kind, ...] = (PLAIN, KEYED)) -> None:
        self._kinds = kinds
        self._ready, self._done = threading.Event(), threading.Event()
        self._folder = folder
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.site: Site

    def __enter__(self) -> Site:
        self._thread.start()
        assert self._ready.wait(60)
        return self.site

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(60)

    async def _serve(self) -> None:
        try:
            async with running(self._folder, self._kinds) as site:
                self.site = site
                self._ready.set()
                await asyncio.to_thread(self._done.wait)
        finally:
            self._ready.set()


def file(
    site: Site, kind: Kind = PLAIN, *, grant: bool = True, buyer: Identity = keys.BUYER, **terms: Any
) -> LicenceFile:
    """Return a fresh licence with its grant."""
    licence = site.licence(kind=kind, buyer=buyer, **terms)
    return LicenceFile(licence.token, site.grant(licence, kind=kind, buyer=buyer).token if grant else None)


def client(site: Site, *licences: LicenceFile, **settings: Any) -> Client:
    """Return a client of `keys.BUYER` for a fresh licence, or the given ones."""
    given: dict[str, Any] = {
        "identity": keys.BUYER,
        "licence": licences or file(site),
        "root_certificates": site.root_certificates,
        "retries": 0,
    }
    return Client(site.target, **(given | settings))


def images(count: int) -> Any:
    """Return (count, 1, 8, 8) random bytes."""
    return np.random.default_rng(count).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)


def expected(x: Any) -> Any:
    """Return what the published model says in this very process."""
    with torch.inference_mode():
        return seeded(Digits)(torch.from_numpy(x)).numpy()
