"""Real stores in a temporary folder, cheap to unseal, and the accidents that happen to them."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support import keys
from support.packages import SmallPackage, small_package
from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore.grant import Grant, PackageSecrets
from tessera.keystore.identity import Identity
from tessera.keystore.keyfile import KdfCost
from tessera.keystore.licence import Licence
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import MasterKey, Passphrase
from tessera.keystore.store import Store

PASSPHRASE = Passphrase(b"correct horse battery staple")
CHEAP = KdfCost.danger_for_tests


def make_store(
    directory: Path,
    *,
    master: Passphrase | MasterKey = PASSPHRASE,
    name: str = "node",
    hosts: Sequence[str] = ("localhost", "127.0.0.1", "::1"),
    now_s: float = keys.NOW_S,
) -> Store:
    """Return a new unsealed store in `directory` whose passphrase costs nothing to guess.

    Its certificates begin at `now_s`; a test that makes TLS connections gives the real time.
    """
    return Store.create(directory, master=master, node_name=name, hosts=hosts, now_s=now_s, cost=CHEAP)


def licensed(
    store: Store, *, licence_id: str = "lic-1", issuer: Identity = keys.ISSUER, secrets: PackageSecrets = keys.SECRETS
) -> tuple[Licence, Grant]:
    """Return a licence for `keys.BUYER` with a grant for the node of `store`; neither is installed."""
    assert secrets.input_key is not None
    licence = licences.issue(
        licences.Terms("digits", input_key_id=input_key_id(secrets.input_key)),
        issuer=issuer,
        buyer=keys.BUYER.public,
        node=store.node,
        not_before_s=keys.NOW_S,
        expires_at_s=keys.NOW_S + keys.YEAR_S,
        now_s=keys.NOW_S,
        licence_id=licence_id,
    )
    return licence, grants.issue(
        licence, issuer=issuer, secrets=secrets, buyer=keys.BUYER.public, node=store.node, now_s=keys.NOW_S
    )


def trusted_package(store: Store, path: Path) -> SmallPackage:
    """Write a small package at `path` and make `store` trust its issuer."""
    package = small_package(path)
    assert isinstance(package.issuer, Identity)
    store.trust_issuer(package.issuer.public)
    return package


@contextmanager
def full_disk(store: Store) -> Iterator[None]:
    """Let the database of `store` grow no further within the block, as on a full disk."""
    with store._database.writing() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    try:
        yield
    finally:
        with store._database.writing() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1073741823")


def damaged_copy(directory: Path, target: Path, *, offset: int, mask: int) -> Path:
    """Copy a closed store to `target` with one byte of its database changed, and return `target`."""
    shutil.copytree(directory, target)
    raw = bytearray((target / "keystore.db").read_bytes())
    raw[offset % len(raw)] ^= mask
    (target / "keystore.db").write_bytes(raw)
    return target
