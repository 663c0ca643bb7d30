"""What the operator's commands do to a node: through its running server when there is one, else on the store itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.cli import admin, kinds
from tessera.cli.options import format_moment
from tessera.cli.reading import reading
from tessera.keystore.errors import Malformed

if TYPE_CHECKING:
    from tessera.keystore.revocation import RevocationList
    from tessera.keystore.store import PublishedPackage, Store
    from tessera.v1.admin_pb2 import PublishedModel


@contextmanager
def store(keystore: Path) -> Iterator["Store"]:
    """Yield the node's store, sealed, and close it afterwards. Raises `NotFound` (`not-initialised`)."""
    from tessera.keystore.store import Store

    with reading(keystore, kinds.KEYSTORE):
        opened = Store.open(keystore)
    try:
        yield opened
    finally:
        opened.close()


def publish(keystore: Path, package: Path, *, now_s: float) -> dict[str, Any]:
    """Take a copy of a verified package into the node; return the entry."""
    if not admin.server_is_running(keystore):
        with store(keystore) as opened, reading(package, kinds.PACKAGE):
            return _of_package(opened.publish(package, now_s=now_s))
    from tessera.v1 import admin_pb2

    with reading(package, kinds.PACKAGE), admin.link(keystore) as stub:
        request = admin_pb2.PublishModelRequest(path=str(package.absolute()))
        return of_message(stub.call("PublishModel", request, admin_pb2.PublishModelResponse).model)


def models(keystore: Path) -> list[dict[str, Any]]:
    """Return the published models, by name and version; the state is `published` while no server runs."""
    if not admin.server_is_running(keystore):
        with store(keystore) as opened:
            return [_of_package(package) for package in opened.packages()]
    from tessera.v1 import admin_pb2

    with admin.link(keystore) as stub:
        answer = stub.call("ListModels", admin_pb2.ListModelsRequest(), admin_pb2.ListModelsResponse)
        return [of_message(model) for model in answer.models]


def install_licence(keystore: Path, file: Path, *, now_s: float) -> str:
    """Install the licence and grant of a licence file; return the licence id."""
    from tessera.cli.loading import licence_file

    held = licence_file(file)
    if held.grant is None:
        raise Malformed(
            f"{file} holds no grant, so the node could not open the package",
            reason="grant-missing",
            remedy="install the licence file as the vendor issued it, not the bare licence",
        )
    if not admin.server_is_running(keystore):
        with store(keystore) as opened, reading(file, kinds.LICENCE):
            return _install_directly(opened, held.licence, held.grant, now_s=now_s)
    from tessera.v1 import admin_pb2

    with reading(file, kinds.LICENCE), admin.link(keystore) as stub:
        request = admin_pb2.InstallLicenceRequest(licence=held.licence, grant=held.grant)
        return stub.call("InstallLicence", request, admin_pb2.InstallLicenceResponse).licence_id


def installed_licences(keystore: Path, *, now_s: float) -> list[dict[str, Any]]:
    """Return the licences installed on the node, with their standing at `now_s`."""
    from tessera.keystore.licence import standing

    with store(keystore) as opened:
        return [
            {
                "licence_id": entry.licence.licence_id,
                "buyer_id": entry.licence.buyer_id,
                "model": entry.licence.terms.model,
                "tier": entry.licence.terms.tier,
                "expires": format_moment(entry.licence.expires_at_s),
                "standing": "revoked" if entry.revoked is not None else standing(entry.licence, now_s).value,
            }
            for entry in opened.licences()
        ]


def apply_revocations(keystore: Path, updated: "RevocationList") -> int:
    """Put a revocation list in force on the node; return how many live sessions it closed."""
    if not admin.server_is_running(keystore):
        with store(keystore) as opened:
            opened.apply_revocations(updated)
        return 0
    from tessera.v1 import admin_pb2

    with admin.link(keystore) as stub:
        request = admin_pb2.RevokeLicencesRequest(revocation_list=updated.token)
        return stub.call("RevokeLicences", request, admin_pb2.RevokeLicencesResponse).sessions_closed


def of_message(model: "PublishedModel") -> dict[str, Any]:
    """Return the entry of a model as the running server tells it."""
    return {
        "model": model.name,
        "version": model.version,
        "package_id": model.package_id,
        "state": model.state,
        "reason": model.reason,
        "size_bytes": model.size_bytes,
        "published": format_moment(model.published_at_ms / 1000),
    }


def _of_package(package: "PublishedPackage") -> dict[str, Any]:
    return {
        "model": package.model,
        "version": package.version,
        "package_id": package.package_id,
        "state": "published",
        "reason": "",
        "size_bytes": package.size_bytes,
        "published": format_moment(package.published_at_s),
    }


def _install_directly(opened: "Store", licence_token: str, grant_token: str, *, now_s: float) -> str:
    from tessera.keystore import grant as grants
    from tessera.keystore import licence as licences

    trusted = opened.issuers()
    licence = licences.verify(licence_token, trusted)
    opened.install_licence(licence, grants.verify(grant_token, licence, trusted), now_s=now_s)
    return licence.licence_id
