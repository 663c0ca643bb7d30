"""How a bundle or a package is cut into tiers, and the sealed file that tier keys are tried on.

The keys of a bundle do not exist yet, so it is sealed as `tessera package build` would, under fresh keys, into a folder
that is deleted again; what is tried is the real writer and the real reader either way.
"""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from torch import Tensor

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.identity import Identity
from tessera.keystore.package import PatchEntry, UnlockedPackage, decode_patch, open_package
from tessera.keystore.tiers import TierKey
from tessera.protect.audit.cut import Cut, Vault
from tessera.protect.audit.programs import ProgramModel
from tessera.protect.bundle import Bundle
from tessera.protect.seal import seal_bundle

Opening = Callable[[], AbstractContextManager[Vault]]


def cut_of_bundle(bundle: Bundle) -> Cut | None:
    """Return how `bundle` is cut; None for one without tiers."""
    if not bundle.tiers:
        return None
    return _cut(
        tuple(tier.name for tier in bundle.tiers),
        bundle.tensors,
        tuple(decode_patch(tier.patch) for tier in bundle.tiers),
        bundle.program,
        functools.partial(_sealed, bundle),
    )


def cut_of_package(
    package: UnlockedPackage,
    program: bytes,
    tensors: Mapping[str, Tensor],
    top: TierKey | None,
    opening: Opening | None,
) -> Cut | None:
    """Return how a package with the public weights `tensors` is cut; None where it has no patches.

    Raises `ApiMisuse` without the key of its top tier, and what reading patches raises.
    """
    tiers = package.manifest.tiers
    if not package.manifest.patches:
        return None
    if top is None or top.tier != len(tiers):
        raise ApiMisuse(
            f"the package has {len(tiers)} tiers, and an audit of it needs the key of the highest",
            remedy="Give the package's .secrets file, which holds it.",
        )
    increments = tuple(package.read_patch(top.at(tier)) for tier in range(1, top.tier + 1))
    return _cut(tuple(tier.name for tier in tiers), tensors, increments, program, opening or _closed)


def opening_of(path: Path, issuers: Mapping[str, bytes], secrets: PackageSecrets) -> Opening | None:
    """Return what opens the package at `path` again; None for one whose tiers have no keys."""
    return None if secrets.tier_key is None else functools.partial(_opened, path, issuers, secrets)


def _cut(
    names: tuple[str, ...],
    public: Mapping[str, Tensor],
    increments: tuple[tuple[PatchEntry, ...], ...],
    program: bytes,
    sealed: Opening,
) -> Cut:
    return Cut(
        names=names,
        public=public,
        increments=increments,
        model=functools.partial(ProgramModel, program),
        sealed=sealed,
    )


@contextmanager
def _sealed(bundle: Bundle) -> Iterator[Vault]:
    # Tier keys have nothing to do with how inputs are keyed, and a model for buyers would ask for all their records.
    plain = dataclasses.replace(bundle, transform=None, input_key_id=None, input_key_ids=())
    issuer = Identity.generate("issuer", "audit")
    with tempfile.TemporaryDirectory(prefix="tessera-audit-") as folder:
        path = Path(folder) / "audit.tessera"
        _, secrets = seal_bundle(plain, path, issuer=issuer, model="audit", version=1, now_s=time.time())
        with _opened(path, {issuer.key_id: issuer.public.verify_key}, secrets) as vault:
            yield vault


@contextmanager
def _opened(path: Path, issuers: Mapping[str, bytes], secrets: PackageSecrets) -> Iterator[Vault]:
    assert secrets.tier_key is not None
    with open_package(path, issuers) as sealed:
        yield Vault(path, sealed.unlock(secrets.content_key), secrets.tier_key)


def _closed() -> AbstractContextManager[Vault]:
    raise ApiMisuse("tier keys are tried on the package's file", remedy="Use subject_of_file, which knows the file.")
