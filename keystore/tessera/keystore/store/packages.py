"""The packages that a node offers: verified, copied, listed (rules S-19 to S-21)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from tessera.keystore.errors import Conflict, NotFound
from tessera.keystore.package import Manifest, open_package
from tessera.keystore.store.database import Database
from tessera.keystore.store.files import (
    copy_package,
    make_private,
    remove_stale,
    settle,
    storage_errors,
    sync_directory,
    temporary_in,
)
from tessera.keystore.store.schema import PACKAGES

STALE_AFTER_S = 86_400.0
SUFFIX = ".tessera"

Issuers = Callable[[], Mapping[str, bytes]]


@dataclass(frozen=True, slots=True)
class PublishedPackage:
    """One package that this node can load; `manifest` was verified when it was published."""

    package_id: str
    model: str
    version: int
    path: Path
    size_bytes: int
    published_at_s: int
    manifest: Manifest


class Packages:
    """The folder of sealed packages and the table that lists them. Thread-safe."""

    def __init__(self, database: Database, folder: Path, issuers: Issuers) -> None:
        self._database = database
        self._folder = folder
        self._issuers = issuers

    def publish(self, path: Path, *, now_s: float) -> PublishedPackage:
        """Copy the package at `path` into the store, verify the copy, list it; the same package again changes nothing.

        Raises what `open_package` and `verify_digests` raise, and `Conflict` when another package has this model and
        version.
        """
        make_private(self._folder)
        remove_stale(self._folder, before_s=now_s - STALE_AFTER_S)
        with storage_errors("the package"), temporary_in(self._folder) as (temporary, target):
            size_bytes = copy_package(path, target)
            settle(target)
            # The copy is what gets verified: the file at `path` may change hands at any moment.
            with open_package(temporary, self._issuers()) as sealed:
                sealed.verify_digests()
                manifest = sealed.manifest
            with self._database.writing() as connection:
                self._list(connection, manifest, size_bytes, int(now_s))
                temporary.replace(self._path(manifest.package_id))
                sync_directory(self._folder)
        return self.by_id(manifest.package_id)

    def all(self) -> list[PublishedPackage]:
        """Return every package, by model and version."""
        query = select(PACKAGES).order_by(PACKAGES.c.model, PACKAGES.c.version)
        with self._database.reading() as connection:
            return [self._published(row) for row in connection.execute(query)]

    def find(self, model: str, version: int) -> PublishedPackage:
        """Return one package; version 0 means the newest. Raises `NotFound` ("model-unknown")."""
        query = select(PACKAGES).where(PACKAGES.c.model == model).order_by(PACKAGES.c.version.desc()).limit(1)
        if version:
            query = query.where(PACKAGES.c.version == version)
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise NotFound("no such model or version is published here", reason="model-unknown")
        return self._published(row)

    def by_id(self, package_id: str) -> PublishedPackage:
        """Return one package. Raises `NotFound`."""
        with self._database.reading() as connection:
            row = connection.execute(select(PACKAGES).where(PACKAGES.c.package_id == package_id)).one_or_none()
        if row is None:
            raise NotFound("no such package is published here")
        return self._published(row)

    def _list(self, connection: Connection, manifest: Manifest, size_bytes: int, now_s: int) -> None:
        document = manifest.to_json()
        same_id = PACKAGES.c.package_id == manifest.package_id
        same_name = (PACKAGES.c.model == manifest.model) & (PACKAGES.c.version == manifest.version)
        found = connection.execute(select(PACKAGES).where(same_id | same_name)).all()
        if not found:
            row = {"package_id": manifest.package_id, "model": manifest.model, "version": manifest.version}
            row |= {"size_bytes": size_bytes, "published_at_s": now_s, "manifest": document}
            connection.execute(insert(PACKAGES).values(**row))
        elif any(row.manifest != document for row in found):
            raise Conflict(
                f"another package is published as {manifest.model} version {manifest.version}",
                remedy="build the package with a higher version",
            )

    def _path(self, package_id: str) -> Path:
        return self._folder / f"{package_id}{SUFFIX}"

    def _published(self, row: Row[Any]) -> PublishedPackage:
        manifest = Manifest.from_json(row.manifest)
        return PublishedPackage(
            manifest.package_id,
            manifest.model,
            manifest.version,
            self._path(manifest.package_id),
            row.size_bytes,
            row.published_at_s,
            manifest,
        )
