# ruff: noqa: N802 - the names of RPCs are the protocol's
"""The operator's door: `tessera.v1.AdminService`, on a Unix socket that only the operator may open (rules W-32 to
W-36)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc

from tessera.keystore import canonical, revocation
from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore.errors import Denied, Malformed, NotFound, WrongKey
from tessera.keystore.grant import decode_package_secrets
from tessera.keystore.identity import PublicIdentity
from tessera.keystore.licence import Licence, Terms
from tessera.keystore.package import Manifest
from tessera.keystore.secrets import Passphrase
from tessera.keystore.store import UsageTotals
from tessera.server.admission.accounts import period_start_us
from tessera.server.admission.opening import blaming_the_peer
from tessera.server.node import Node
from tessera.server.services import replies
from tessera.v1 import admin_pb2 as pb
from tessera.v1 import admin_pb2_grpc as pb_grpc
from tessera.v1 import types_pb2

MAX_TERMS_BYTES: Final = 16_384
MAX_PASSPHRASE_BYTES: Final = 4096

Context = grpc.aio.ServicerContext[Any, Any]


class IssueTerms(NamedTuple):
    """What `IssueLicenceRequest.terms` says (rule W-35)."""

    terms: Terms
    not_before_s: int
    expires_at_s: int


class AdminService(pb_grpc.AdminServiceServicer):
    """Every RPC of the operator; the socket's permissions are the authentication."""

    def __init__(self, node: Node, *, version: str) -> None:
        self._node = node
        self._store = node.store
        self._version = version

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        """Tell the state of the node; answers while sealed and while draining."""
        del request, context
        records, _ = await asyncio.to_thread(self._store.ledger_head)
        return pb.GetStatusResponse(
            sealed=self._store.sealed,
            draining=self._node.gate.draining,
            node=replies.node_identity(self._store.node),
            version=self._version,
            sessions=self._node.gate.session_count,
            models=self._models(),
            ledger_records=records,
        )

    async def Unseal(self, request: pb.UnsealRequest, context: Context) -> pb.UnsealResponse:
        """Unseal the store and load what can be loaded; answers once that is done."""
        del context
        if not 0 < len(request.passphrase) <= MAX_PASSPHRASE_BYTES:
            raise WrongKey("a passphrase has 1 to 4096 bytes", reason="wrong-passphrase")
        await self._node.unseal(Passphrase(request.passphrase))
        return pb.UnsealResponse()

    async def Seal(self, request: pb.SealRequest, context: Context) -> pb.SealResponse:
        """Seal the store; answers once no model and no session is left."""
        del request, context
        await self._node.seal()
        return pb.SealResponse()

    async def PublishModel(self, request: pb.PublishModelRequest, context: Context) -> pb.PublishModelResponse:
        """Take in a package file, with its secrets if this node is to issue licences."""
        del context
        path = Path(request.path)
        if not path.is_absolute() or "\0" in request.path:
            raise Malformed("the path of a package is absolute")
        secrets = decode_package_secrets(request.secrets) if request.secrets else None
        return pb.PublishModelResponse(model=replies.published_model(await self._node.publish(path, secrets)))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """List published models by name and version."""
        del request, context
        return pb.ListModelsResponse(models=self._models())

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        """Load a model with a key from an installed grant."""
        del context
        self._node.vault.identity()  # SealedError before anything is marked as failed
        entry = await self._node.models.load(request.name, _version(request.version))
        return pb.LoadModelResponse(model=replies.published_model(entry))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        """Unload a model; what is running is finished first."""
        del context
        entry = await self._node.models.unload(request.name, _version(request.version))
        return pb.UnloadModelResponse(model=replies.published_model(entry))

    async def InstallLicence(self, request: pb.InstallLicenceRequest, context: Context) -> pb.InstallLicenceResponse:
        """Verify and keep a licence with its grant."""
        del context
        issuers = self._store.issuers()
        with blaming_the_peer():
            licence = licences.verify(request.licence, issuers)
            grant = grants.verify(request.grant, licence, issuers)
        await self._node.install(licence, grant)
        return pb.InstallLicenceResponse(licence_id=licence.licence_id)

    async def IssueLicence(self, request: pb.IssueLicenceRequest, context: Context) -> pb.IssueLicenceResponse:
        """Issue a licence and its grant with the issuer key of this store, and install both."""
        del context
        now_s = self._node.clock.now_s()
        wanted = issue_terms(request.terms, request.model, now_s)
        buyer = PublicIdentity.from_json(request.buyer_identity)
        manifest = self._newest_covered(wanted.terms)
        _check_input_key(wanted.terms, manifest)
        vault = self._node.vault
        issuer, secrets = vault.issuer(manifest.issuer_id), vault.package_secrets(manifest.package_id)
        licence = licences.issue(
            wanted.terms,
            issuer=issuer,
            buyer=buyer,
            node=self._store.node,
            not_before_s=wanted.not_before_s,
            expires_at_s=wanted.expires_at_s,
            now_s=now_s,
        )
        grant = grants.issue(licence, issuer=issuer, secrets=secrets, buyer=buyer, node=self._store.node, now_s=now_s)
        await self._node.install(licence, grant)
        return pb.IssueLicenceResponse(licence_id=licence.licence_id, licence=licence.token, grant=grant.token)

    async def RevokeLicences(self, request: pb.RevokeLicencesRequest, context: Context) -> pb.RevokeLicencesResponse:
        """Put a signed revocation list in force and close the sessions that it ends."""
        del context
        with blaming_the_peer():
            revocations = revocation.verify(request.revocation_list, self._store.issuers())
        closed = await self._node.revoke(revocations)
        return pb.RevokeLicencesResponse(
            number=revocations.number, revoked=len(revocations.revoked), sessions_closed=closed
        )

    async def GetUsageReport(self, request: pb.GetUsageReportRequest, context: Context) -> pb.GetUsageReportResponse:
        """Sum the ledger by licence and model."""
        del request, context
        return pb.GetUsageReportResponse(usages=await asyncio.to_thread(self._usages))

    async def ExportUsage(
        self, request: pb.ExportUsageRequest, context: Context
    ) -> AsyncIterator[pb.ExportUsageResponse]:
        """Stream the ledger in pages; the last message carries the checkpoint over the head that it reached."""
        del context
        if request.from_sequence < 0:
            raise Malformed("a sequence number is not negative")
        # The checkpoint is made first: records that come in meanwhile follow it, and none that it counts is missing.
        checkpoint = await asyncio.to_thread(self._node.vault.checkpoint, self._node.clock.now_s())
        last, _ = await asyncio.to_thread(self._store.ledger_head)
        sequence = max(1, request.from_sequence)
        while sequence <= last:
            limit = min(self._node.settings.limits.usage_page_records, last - sequence + 1)
            records = await asyncio.to_thread(self._store.usage_records, sequence, limit)
            if not records:
                break
            yield pb.ExportUsageResponse(records=[record.canonical_bytes().decode("ascii") for record in records])
            sequence = records[-1].sequence + 1
        yield pb.ExportUsageResponse(checkpoint=checkpoint)

    def _models(self) -> list[pb.PublishedModel]:
        return [replies.published_model(entry) for entry in self._node.models.entries()]

    def _newest_covered(self, terms: Terms) -> Manifest:
        for offer in self._node.models.offers(terms.model):
            above = terms.max_version is not None and offer.version > terms.max_version
            if terms.min_version <= offer.version and not above:
                return self._node.models.manifest(offer.package_id)
        raise NotFound("no version that the terms cover is published here", reason="model-unknown")

    def _usages(self) -> list[types_pb2.LicenceUsage]:
        known = {installed.licence.licence_id: installed.licence for installed in self._store.licences()}
        return [self._usage(total, known.get(total.licence_id)) for total in self._store.usage_totals()]

    def _usage(self, total: UsageTotals, licence: Licence | None) -> types_pb2.LicenceUsage:
        left = None
        if licence is not None and licence.terms.quota is not None:
            quota = licence.terms.quota
            since_us = period_start_us(quota.period, self._node.clock.now_s())
            left = max(0, quota.samples - self._store.samples_used(total.licence_id, since_us))
        return replies.licence_usage(total.licence_id, total.buyer_id, total.model, [total], licence, left)


def issue_terms(text: str, model: str, now_s: float) -> IssueTerms:
    """Return what a request to issue asks for (rule W-35).

    The document is the terms' claim (L rules) with two more members: `exp`, required, and `nbf`, by default now; both
    Unix seconds. `model` may be left out of it, and must not differ. Raises `Malformed`.
    """
    document = canonical.parse(text.encode("utf-8"), max_bytes=MAX_TERMS_BYTES)
    if not isinstance(document, dict):
        raise Malformed("the terms of a licence are a JSON object")
    claims = {"model": model, **document}
    expires_at_s, not_before_s = claims.pop("exp", None), claims.pop("nbf", int(now_s))
    for value in (expires_at_s, not_before_s):
        if not isinstance(value, int) or isinstance(value, bool):
            raise Malformed("exp and nbf are Unix times in whole seconds, and exp is required")
    if claims["model"] != model:
        raise Malformed("the terms name another model than the request")
    return IssueTerms(Terms.from_claims(claims), int(not_before_s), int(expires_at_s))


def _check_input_key(terms: Terms, manifest: Manifest) -> None:
    """Raise `Denied` `grant-mismatch` unless the package answers under the key that the terms name (rule C-5)."""
    if terms.input_key_id not in (manifest.input_key_ids or (manifest.input_key_id,)):
        raise Denied(
            "the terms name an input key that the package was not trained for",
            reason="grant-mismatch",
            remedy="name an input key of the package, and the copyright record that it is bound to, if any",
        )


def _version(version: int) -> int:
    if version < 0:
        raise Malformed("a model version is not negative")
    return version
