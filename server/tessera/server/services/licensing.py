# ruff: noqa: N802 - the names of RPCs are the protocol's
"""The buyer's door: `tessera.v1.LicensingService` (rules W-10 to W-18)."""

import asyncio
from typing import Any, Final

import grpc
import structlog

from tessera.keystore.errors import NotFound, SealedError, TesseraError, Unavailable
from tessera.server.admission import Opening, Session
from tessera.server.admission.opening import Answer
from tessera.server.boundary import bearer_token
from tessera.server.config import Limits
from tessera.server.node import Node
from tessera.server.services import replies, sizes
from tessera.v1 import licensing_pb2 as pb
from tessera.v1 import licensing_pb2_grpc as pb_grpc
from tessera.v1.types_pb2 import ModelContract

Context = grpc.aio.ServicerContext[Any, Any]
_log: Final = structlog.get_logger("tessera.licensing")


class LicensingService(pb_grpc.LicensingServiceServicer):
    """Challenges, sessions and usage for buyers; every rule is the gate's."""

    def __init__(self, node: Node, limits: Limits) -> None:
        self._node = node
        self._limits = limits
        self._gate = node.gate

    async def CreateChallenge(self, request: pb.CreateChallengeRequest, context: Context) -> pb.CreateChallengeResponse:
        """Hand out a nonce."""
        del request, context
        nonce, expires_at_s = self._gate.challenge()
        return pb.CreateChallengeResponse(
            nonce=nonce,
            expires_at_ms=replies.milliseconds(expires_at_s),
            node=replies.node_identity(self._node.store.node),
        )

    async def FetchGrant(self, request: pb.FetchGrantRequest, context: Context) -> pb.FetchGrantResponse:
        """Return the newest installed grant of a licence to its buyer."""
        del context
        licence = self._gate.fetch_grant(request.licence, _answer(request.proof))
        installed = await asyncio.to_thread(self._node.store.installed, licence.licence_id)
        matching = [] if installed is None else [g for g in installed.grants if g.licence_digest == licence.digest]
        if not matching:
            raise NotFound(
                "this node holds no grant for the licence",
                reason="grant-missing",
                remedy="ask the vendor for the grant that belongs to the licence",
            )
        return pb.FetchGrantResponse(grant=matching[0].token)

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Context) -> pb.OpenSessionResponse:
        """Open a session; loads the package if its key came with this grant, off the event loop."""
        del context
        opening = self._gate.prepare(request.licence, request.grant, _answer(request.proof), request.key_confirmation)
        manifest = self._node.models.manifest(opening.offer.package_id)
        max_batch = sizes.largest_batch(manifest, self._limits)  # refuses a model whose samples could not travel
        if opening.needs_load:
            await self._load(opening)
        if opening.install:
            await self._node.install(opening.licence, opening.grant)
        past_samples = await asyncio.to_thread(self._gate.past_samples, opening)
        session = self._gate.complete(opening, past_samples)
        try:
            await self._prepare_degrading(session)
        except BaseException:  # the caller has gone: it never saw the token, which would hold its seat for an hour
            self._gate.drop(session)
            raise
        _log.info("session opened", **_named(session), tier=session.tier, notice=session.notice)
        return self._opened(session, replies.model_contract(manifest, opening.licence, session.tier, max_batch))

    async def RenewSession(self, request: pb.RenewSessionRequest, context: Context) -> pb.RenewSessionResponse:
        """Extend the session of the bearer token by a fresh proof."""
        session = self._gate.renew(bearer_token(context), _answer(request.proof))
        await self._prepare_degrading(session)
        _log.debug("session renewed", **_named(session))
        return pb.RenewSessionResponse(expires_at_ms=replies.milliseconds(session.expires_at_s))

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Context) -> pb.CloseSessionResponse:
        """End the session of the bearer token."""
        del request
        token = bearer_token(context)
        session = self._gate.session(token)
        self._gate.close(token)
        _log.info("session closed", **_named(session))
        return pb.CloseSessionResponse()

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.GetUsageResponse:
        """Return what the licence of the bearer token has used, from the ledger."""
        del request
        session = self._gate.session(bearer_token(context))
        licence = session.licence
        totals = await asyncio.to_thread(self._node.store.usage_totals, licence.licence_id)
        usage = replies.licence_usage(
            licence.licence_id,
            licence.buyer_id,
            session.model,
            totals,
            licence,
            self._gate.samples_left(session),
        )
        return pb.GetUsageResponse(usage=usage)

    def _opened(self, session: Session, contract: ModelContract) -> pb.OpenSessionResponse:
        response = pb.OpenSessionResponse(
            session_token=session.token.reveal().decode("ascii"),
            session_id=session.session_id,
            expires_at_ms=replies.milliseconds(session.expires_at_s),
            contract=contract,
            notice=session.notice,
        )
        left = self._gate.samples_left(session)
        if left is not None:
            response.samples_left = left
        return response

    async def _load(self, opening: Opening) -> None:
        """Load the package; whatever is wrong with it is our side's matter and not this buyer's."""
        try:
            await self._node.models.ensure_loaded(
                opening.offer.package_id,
                opening.keys.content_key,
                tier=opening.tier,
                tier_key=opening.keys.tier_key,
            )
        except (SealedError, Unavailable):
            raise
        except TesseraError as error:
            raise Unavailable(
                f"model {opening.offer.model} version {opening.offer.version} cannot be loaded",
                reason="model-not-ready",
                remedy="ask the operator; the model list of the node says why",
            ) from error

    async def _prepare_degrading(self, session: Session) -> None:
        """Load what a session goes over to when its licence runs out in its lifetime, so that no request waits then."""
        licence = session.licence
        below = licence.terms.expiry.tier
        if below is None or below not in session.offer.tiers or licence.expires_at_s >= session.expires_at_s:
            return
        try:
            await self._node.models.variant(session.package_id, below)
        except TesseraError as error:  # it is tried again, and answered for, by the first request that needs it
            _log.warning("tier for the grace period not loaded", **_named(session), tier=below, reason=error.reason)


def _answer(proof: pb.PossessionProof) -> Answer:
    return Answer(proof.nonce, proof.buyer_public_key, proof.signature)


def _named(session: Session) -> dict[str, str | int]:
    """Return what a log may say of a session: ids and the model, never the token."""
    return {
        "session_id": session.session_id,
        "licence_id": session.licence.licence_id,
        "buyer_id": session.licence.buyer_id,
        "model": session.model,
        "version": session.version,
    }
