"""Opening and renewing a session, as plans without I/O.

Order of `open_session`:
  1. If the licence names an input key that is neither given nor in a grant at hand: challenge, FetchGrant with a proof.
  2. Open the input key from the grant with the buyer's identity.
  3. Challenge, then OpenSession with the proof and the key confirmation, both bound to this nonce, node and licence.
  4. Check that the answer is the licence's own node, read the contract, and hold the input key against it.

What the server can judge is left to the server, so that its refusal, with its reason, is what the caller sees: somebody
else's licence and a wrong input key are sent as they are. Nothing is inferred or charged before all of it fits.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tessera.client._convert import contract_of, node_of
from tessera.client._credentials import Credentials, Held
from tessera.client._effects import CREATE_CHALLENGE, FETCH_GRANT, OPEN_SESSION, RENEW_SESSION, Plan, Rpc
from tessera.client._session import Keying, Session, renewal_s
from tessera.client.errors import GrantInvalid, ProtocolError, ServerUnverified
from tessera.keystore import grant as grants
from tessera.keystore.copyright import bound_key
from tessera.keystore.errors import TesseraError
from tessera.keystore.identity import PublicIdentity
from tessera.keystore.proof import Purpose, confirm, confirmation_key, sign_proof
from tessera.keystore.secrets import InputKey, SecretBytes
from tessera.v1 import licensing_pb2 as pb

MAX_TOKEN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Clocks:
    """Where plans take the time from."""

    now_s: Callable[[], float]
    """Unix time."""
    monotonic_s: Callable[[], float]


def open_session(credentials: Credentials, held: Held, clocks: Clocks) -> Plan[Session]:
    """Return an open session.

    Raises `ProtocolError`, `WrongInputKey`, `GrantInvalid` or `ServerUnverified`; `RpcFailed` passes through.
    """
    grant, key = held.grant or "", credentials.input_key
    if held.licence.terms.input_key_id is None:
        key = None
    elif key is None:
        if not grant:
            grant = yield from _fetch_grant(credentials, held)
        key = _key_of(grant, credentials, held)
    node, nonce = yield from _challenge()
    record = held.licence.terms.copyright
    if key is not None and record is not None:
        key = bound_key(key, record)
    digest = held.licence.digest
    confirmation = b"" if key is None else confirm(confirmation_key(key), nonce, node.key_id, digest)
    request = pb.OpenSessionRequest(
        licence=held.licence.token,
        grant=grant,
        proof=_proof("open-session", nonce, node, credentials, held),
        key_confirmation=confirmation,
    )
    reply = yield Rpc(OPEN_SESSION, request)
    return _session(reply.message, node, held, key, clocks)


def renew_session(credentials: Credentials, held: Held, session: Session, clocks: Clocks) -> Plan[Session]:
    """Return the same session with a later end. `RpcFailed` passes through."""
    node, nonce = yield from _challenge()
    if node.key_id != session.node.key_id:
        raise ServerUnverified("another node answers for this session than the one that opened it")
    proof = _proof("renew-session", nonce, node, credentials, held)
    reply = yield Rpc(RENEW_SESSION, pb.RenewSessionRequest(proof=proof), token=session.token)
    expires_at_s = reply.message.expires_at_ms / 1000
    renew_at_s = renewal_s(expires_at_s, clocks.now_s(), clocks.monotonic_s())
    return replace(session, expires_at_s=expires_at_s, renew_at_s=renew_at_s)


def _challenge() -> Plan[tuple[PublicIdentity, bytes]]:
    reply = yield Rpc(CREATE_CHALLENGE, pb.CreateChallengeRequest())
    return node_of(reply.message), bytes(reply.message.nonce)


def _fetch_grant(credentials: Credentials, held: Held) -> Plan[str]:
    node, nonce = yield from _challenge()
    proof = _proof("fetch-grant", nonce, node, credentials, held)
    reply = yield Rpc(FETCH_GRANT, pb.FetchGrantRequest(licence=held.licence.token, proof=proof))
    return str(reply.message.grant)


def _proof(
    purpose: Purpose, nonce: bytes, node: PublicIdentity, credentials: Credentials, held: Held
) -> pb.PossessionProof:
    return pb.PossessionProof(
        nonce=nonce,
        buyer_public_key=credentials.identity.public.verify_key,
        signature=sign_proof(credentials.identity, purpose, nonce, node.key_id, held.licence.digest),
    )


def _key_of(grant: str, credentials: Credentials, held: Held) -> InputKey | None:
    """Return the input key of a grant; None when the licence is another buyer's, which is for the server to refuse.

    The issuer's signature is not checked: a buyer knows no issuer's key, and need not, for the key counts only if its
    id is the one in the contract.
    """
    if held.licence.buyer_id != credentials.identity.key_id:
        return None
    try:
        parsed = grants.parse_without_verification(grant)
        key = grants.open_for_buyer(parsed, credentials.identity, held.licence.terms.copyright)
    except TesseraError:
        key = None
    if key is None:
        raise GrantInvalid(
            "the grant holds no input key that this identity could open",
            reason="grant-mismatch",
            remedy="Use the licence file as the vendor issued it, with the identity that it was issued to.",
        )
    return key


def _session(opened: Any, node: PublicIdentity, held: Held, key: InputKey | None, clocks: Clocks) -> Session:
    token = opened.session_token.encode("utf-8")
    if not 0 < len(token) <= MAX_TOKEN_BYTES or not all(0x20 < byte < 0x7F for byte in token):
        raise ProtocolError("the server's session token is not usable")
    if held.licence.node_id not in (None, node.key_id):
        raise ServerUnverified(
            "this node accepted a licence that is for another node",
            remedy="Check the address; ask the operator which node the licence is for.",
        )
    contract = contract_of(opened.contract)
    if contract.name != held.licence.terms.model:
        raise ProtocolError("the server opened a session for another model than the licence's")
    keying = Keying(contract, key)
    if contract.input_key_id != (held.licence.terms.input_key_id or ""):
        raise ProtocolError(
            "the server's contract names another input key than the licence, or none; nothing was sent",
            remedy="Check the address; ask the operator which package the node serves.",
        )
    expires_at_s = opened.expires_at_ms / 1000
    return Session(
        token=SecretBytes(token),
        session_id=opened.session_id,
        licence=held.licence,
        contract=contract,
        node=node,
        keying=keying,
        expires_at_s=expires_at_s,
        renew_at_s=renewal_s(expires_at_s, clocks.now_s(), clocks.monotonic_s()),
        samples_left=opened.samples_left if opened.HasField("samples_left") else None,
        notice=opened.notice,
    )
