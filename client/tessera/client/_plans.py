"""The verbs of the client as plans without I/O: what is asked, in which order, what is tried again, what is given up.

Retry rules: only a refusal that says "nobody answered, nothing was charged" is sent again, with the same request id,
after a pause that grows. A session that the server does not know is reopened, once, and the request sent again.
Everything else is the caller's to decide.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tessera.client import _handshake, _tensors
from tessera.client._convert import usage_of
from tessera.client._credentials import Credentials, Held
from tessera.client._effects import CLOSE_SESSION, MODEL_INFER, USAGE, Method, NeedSession, Pause, Plan, Reply, Rpc
from tessera.client._handshake import Clocks
from tessera.client._refusals import RpcFailed, refusal, retryable, session_lost
from tessera.client._request import Accepted, Prepared, accept, prepare, request_ids
from tessera.client._retry import RetryPolicy
from tessera.client._session import Session
from tessera.client._sizes import largest_batch
from tessera.client._types import DEFAULT_MAX_MESSAGE_BYTES, Answer, Array, Inputs, Usage
from tessera.client.errors import ClientError
from tessera.keystore.errors import ApiMisuse
from tessera.v1 import licensing_pb2 as pb

RECEIPT_METADATA = "tessera-receipt"


@dataclass(frozen=True, slots=True)
class Core:
    """What every plan needs: who we are, how patient, and where time and chance come from."""

    credentials: Credentials
    policy: RetryPolicy
    clocks: Clocks
    chance: Callable[[], float]
    receipts: bool
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    """Longest message that is sent or received."""


def fresh_session(
    core: Core,
    held: Held,
    current: Session | None,
    stale: Session | None,
    note: Callable[[ClientError], None] = lambda _: None,
) -> Plan[Session]:
    """Return a session to work with: the current one, the current one renewed, or a new one.

    A driver runs one of these at a time for each licence, and many callers wait for it. `note` is told of every failure
    that is tried again, for those who cannot wait for the end.
    """
    if current is not None and (stale is None or current.token != stale.token):
        if not current.due(core.clocks.monotonic_s()):
            return current
        try:
            return (yield from _handshake.renew_session(core.credentials, held, current, core.clocks))
        except RpcFailed as failed:
            error = refusal(failed)
            if retryable(error):
                return current  # it still holds for a while; the call itself will tell how the server fares
            if not session_lost(error):
                raise error from None
    return (yield from _repeated(core, lambda: _handshake.open_session(core.credentials, held, core.clocks), note))


def _repeated(core: Core, attempt: Callable[[], Plan[Session]], note: Callable[[ClientError], None]) -> Plan[Session]:
    """Run a handshake as often as the policy allows, always from its beginning: a nonce is good once."""
    failures = 0
    while True:
        try:
            return (yield from attempt())
        except RpcFailed as failed:
            error = refusal(failed)
        failures += 1
        pause = pause_or_raise(core, error, failures)
        note(error)
        yield pause


def pause_or_raise(core: Core, error: ClientError, failures: int) -> Pause:
    """Return how long to wait before trying again; raise `error` when that is not safe or not allowed."""
    pause_s = core.policy.pause_s(failures, core.chance()) if retryable(error) else None
    if pause_s is None:
        raise error
    return Pause(pause_s, error)


def infer(core: Core, held: Held, inputs: Inputs, request_id: str | None, *, sole: bool) -> Plan[Answer]:
    """Check, split, key and send; join the answers. `sole` refuses a model with several outputs before sending."""
    began_s = core.clocks.monotonic_s()
    session: Session = yield NeedSession(held)
    if sole:
        check_sole_output(session)
    batch = _tensors.check(session.contract, inputs)
    parts = list(_tensors.split(batch, largest_batch(session.contract, core.max_message_bytes)))
    call_id, part_ids = request_ids(request_id, len(parts))
    accepted: list[Accepted] = []
    attempts = 0
    for arrays, part_id in zip(parts, part_ids, strict=True):
        sent = prepare(session, arrays, part_id, receipt=core.receipts)
        try:
            session, one, tries = yield from _send(core, held, session, sent)
        except ClientError as error:
            error.request_id = call_id  # with a part's id the whole call would be charged again
            raise
        accepted.append(one)
        attempts += tries
    outputs = _tensors.join([one.outputs for one in accepted], single=batch.single)
    seconds = core.clocks.monotonic_s() - began_s
    return answer_of(outputs, call_id, accepted, seconds, attempts)


def answer_of(
    outputs: dict[str, Array], request_id: str, accepted: Iterable[Accepted], seconds: float, attempts: int
) -> Answer:
    """Return the caller's answer with the receipts of the requests behind it."""
    receipts = [(one.record, one.token) for one in accepted if one.record is not None]
    return Answer(
        outputs=outputs,
        request_id=request_id,
        receipts=tuple(record for record, _ in receipts),
        receipt_tokens=tuple(token for _, token in receipts),
        seconds=seconds,
        attempts=attempts,
    )


def check_sole_output(session: Session) -> None:
    """Raise `ApiMisuse` when the model has several outputs and the caller asked for the one."""
    if len(session.contract.outputs) != 1:
        names = ", ".join(spec.name for spec in session.contract.outputs)
        raise ApiMisuse(f"the model has several outputs ({names})", remedy="Use infer_detailed or stream_detailed.")


def _send(core: Core, held: Held, session: Session, sent: Prepared) -> Plan[tuple[Session, Accepted, int]]:
    def rpc(session: Session) -> Rpc:
        return Rpc(MODEL_INFER, sent.message, session.token, receipt=core.receipts)

    session, reply, tries = yield from _called(core, held, session, rpc, sent.request_id)
    return session, accept(sent, reply.message, reply.trailing.get(RECEIPT_METADATA, "")), tries


def _called(
    core: Core, held: Held, session: Session, rpc: Callable[[Session], Rpc], request_id: str | None
) -> Plan[tuple[Session, Reply, int]]:
    """Make a call within a session, reopening that once and retrying as the policy allows; count the attempts."""
    failures = tries = 0
    reopened = False
    while True:
        tries += 1
        try:
            return session, (yield rpc(session)), tries
        except RpcFailed as failed:
            error = refusal(failed, request_id=request_id)
        if session_lost(error) and not reopened:
            reopened = True
            session = yield NeedSession(held, stale=session)
            continue
        failures += 1
        yield pause_or_raise(core, error, failures)
        session = yield NeedSession(held)


def usage(core: Core, held: Held) -> Plan[Usage]:
    """Ask what the licence has used."""
    session: Session = yield NeedSession(held)
    _, reply, _ = yield from _called(core, held, session, _asks(USAGE), None)
    return usage_of(reply.message.usage)


def session_of(held: Held) -> Plan[Session]:
    """Return an open session."""
    session: Session = yield NeedSession(held)
    return session


def proven_session(held: Held, session: Session) -> Plan[Session]:
    """Return `session` if the server still knows it, else another one: a call without a stream shows its true status.

    Anything else that goes wrong is left to the call that comes next.
    """
    try:
        yield _asks(USAGE)(session)
    except RpcFailed as failed:
        if session_lost(refusal(failed)):
            fresh: Session = yield NeedSession(held, stale=session)
            return fresh
    return session


def close_session(session: Session) -> Plan[None]:
    """Close a session on the server; a server that cannot be asked lets it lapse by itself."""
    try:
        yield Rpc(CLOSE_SESSION, pb.CloseSessionRequest(), session.token)
    except RpcFailed:
        return


def _asks(method: Method) -> Callable[[Session], Rpc]:
    return lambda session: Rpc(method, pb.GetUsageRequest(), session.token)
