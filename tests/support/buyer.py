"""What the client's plans talk to in tests without a socket: a node that answers effects with the real formats.

    node = SimNode()
    answer = drive(infer(core(), …), node)          # or step by hand with next() and send()

`SimNode` keeps the wire's rules (proofs, confirmations, receipts); `refuse` makes its next answers failures.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from support import keys
from tessera.client._credentials import Credentials, Held
from tessera.client._effects import NeedSession, Pause, Plan, Reply, Rpc
from tessera.client._handshake import Clocks
from tessera.client._plans import Core, fresh_session
from tessera.client._refusals import RpcFailed
from tessera.client._retry import RetryPolicy
from tessera.client._session import Session
from tessera.keystore.errors import TesseraError
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.identity import Identity
from tessera.keystore.licence import Terms
from tessera.keystore.licence import verify as verify_licence
from tessera.keystore.payload import payload_digest
from tessera.keystore.proof import check_confirmation, check_proof, confirmation_key, input_key_id
from tessera.keystore.secrets import InputKey
from tessera.keystore.usage import genesis, sign_receipt
from tessera.oip.v1 import inference_pb2 as oip
from tessera.v1 import licensing_pb2 as pb
from tessera.v1 import types_pb2 as types

TRANSFORM = '[{"block":4,"kind":"shf"},{"block":4,"kind":"np"}]'
LIFE_S = 100.0


def contract(**changes: Any) -> types.ModelContract:
    """Return the wire contract of a keyed digit classifier: uint8 (N, 1, 8, 8) to float32 (N, 10), N at most 4."""
    fields: dict[str, Any] = {
        "name": "digits",
        "version": 3,
        "package_id": keys.PACKAGE_ID,
        "tier": 1,
        "inputs": [types.TensorContract(name="image", datatype="UINT8", shape=[-1, 1, 8, 8], layout="NCHW")],
        "outputs": [types.TensorContract(name="logits", datatype="FP32", shape=[-1, 10])],
        "transform": TRANSFORM,
        "input_key_id": input_key_id(keys.INPUT_KEY),
        "max_batch": 4,
    }
    return types.ModelContract(**(fields | changes))


def images(count: int = 2, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return (count, 1, 8, 8) random bytes."""
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)


def held(*, grant: bool = True, keyed: bool = True, buyer: Identity = keys.BUYER, model: str = "digits") -> Held:
    """Return a licence of `buyer` and, if asked, its grant."""
    licence = keys.licence(Terms(model, input_key_id=input_key_id(keys.INPUT_KEY) if keyed else None), buyer=buyer)
    secrets = PackageSecrets(keys.PACKAGE_ID, keys.CONTENT_KEY, keys.INPUT_KEY if keyed else None)
    return Held(licence, keys.grant(licence, secrets=secrets, buyer=buyer).token if grant else None)


@dataclass
class Time:
    """Both clocks of a core; pauses move them."""

    now_s: float = float(keys.NOW_S)
    monotonic_s: float = 50.0

    def advance(self, seconds: float) -> None:
        """Let both run on."""
        self.now_s += seconds
        self.monotonic_s += seconds


def core(
    *licences: Held,
    time: Time | None = None,
    identity: Identity = keys.BUYER,
    input_key: InputKey | None = None,
    retries: int = 3,
    receipts: bool = True,
) -> Core:
    """Return what plans need, with chance fixed at 0.5."""
    time = time or Time()
    return Core(
        credentials=Credentials(identity, licences or (held(),), input_key),
        policy=RetryPolicy(retries),
        clocks=Clocks(lambda: time.now_s, lambda: time.monotonic_s),
        chance=lambda: 0.5,
        receipts=receipts,
    )


def refused(status: str, reason: str = "", **trailing: str) -> RpcFailed:
    """Return a failed call as a server of ours would end it."""
    pairs = {"tessera-" + name: text for name, text in trailing.items()}
    if not reason:
        return RpcFailed(status, "broken", pairs)
    return RpcFailed(status, f"{reason}: a public sentence", {"tessera-reason": reason, **pairs})


@dataclass
class SimNode:
    """A node with the wire's rules and no transport. Outputs are the sums of what arrives, so keyed inputs show."""

    identity: Identity = keys.NODE
    contract: types.ModelContract = field(default_factory=contract)
    time: Time = field(default_factory=Time)
    refuse: dict[str, deque[RpcFailed]] = field(default_factory=dict)
    seen: list[Rpc] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    tamper: Callable[[oip.ModelInferResponse], None] = lambda _: None
    rewrite_receipt: Callable[[dict[str, Any]], None] = lambda _: None
    sessions: int = 0
    slots: dict[str, Session] = field(default_factory=dict)
    _nonces: int = 0

    def fails(self, method: str, *failures: RpcFailed) -> None:
        """Let the next calls of a method fail."""
        self.refuse.setdefault(method, deque()).extend(failures)

    def methods(self) -> list[str]:
        """Return the names of the methods called so far."""
        return [rpc.method.path.rpartition("/")[2] for rpc in self.seen]

    def answer(self, rpc: Rpc) -> Reply:
        """Answer one call. Raises `RpcFailed`."""
        self.seen.append(rpc)
        name = rpc.method.path.rpartition("/")[2]
        if self.refuse.get(name):
            raise self.refuse[name].popleft()
        reply = getattr(self, "_" + name)(rpc)
        return reply if isinstance(reply, Reply) else Reply(reply)

    def _CreateChallenge(self, rpc: Rpc) -> pb.CreateChallengeResponse:
        self._nonces += 1
        public = self.identity.public
        node = types.NodeIdentity(node_id=public.key_id, verify_key=public.verify_key, seal_key=public.seal_key)
        return pb.CreateChallengeResponse(nonce=self._nonce(), expires_at_ms=0, node=node)

    def _FetchGrant(self, rpc: Rpc) -> pb.FetchGrantResponse:
        licence = self._proved(rpc, "fetch-grant", rpc.message.licence)  # type: ignore[attr-defined]
        return pb.FetchGrantResponse(grant=keys.grant(licence).token)

    def _OpenSession(self, rpc: Rpc) -> pb.OpenSessionResponse:
        message: Any = rpc.message
        licence = self._proved(rpc, "open-session", message.licence)
        if licence.terms.input_key_id is not None:
            key = confirmation_key(keys.INPUT_KEY)
            try:
                check_confirmation(key, message.key_confirmation, self._nonce(), self.identity.key_id, licence.digest)
            except TesseraError as error:
                raise refused("PERMISSION_DENIED", error.reason) from error
        self.sessions += 1
        return pb.OpenSessionResponse(
            session_token=f"token-{self.sessions}",
            session_id=f"session-{self.sessions}",
            expires_at_ms=int((self.time.now_s + LIFE_S) * 1000),
            contract=self.contract,
            samples_left=100,
        )

    def _RenewSession(self, rpc: Rpc) -> pb.RenewSessionResponse:
        return pb.RenewSessionResponse(expires_at_ms=int((self.time.now_s + LIFE_S) * 1000))

    def _CloseSession(self, rpc: Rpc) -> pb.CloseSessionResponse:
        return pb.CloseSessionResponse()

    def _GetUsage(self, rpc: Rpc) -> pb.GetUsageResponse:
        return pb.GetUsageResponse(
            usage=types.LicenceUsage(licence_id="lic-1", model="digits", requests=2, samples=5, samples_left=95)
        )

    def _ModelInfer(self, rpc: Rpc) -> Reply:
        message: Any = rpc.message
        response = self.inferred(message)
        return Reply(response, {"tessera-receipt": self.receipt(message)} if rpc.receipt else {})

    def inferred(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        """Return ten times the sum of each image's weighted bytes; what `scores` computes."""
        shape = tuple(request.inputs[0].shape)
        logits = scores(np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(shape))
        response = oip.ModelInferResponse(
            model_name=request.model_name,
            model_version=request.model_version,
            id=request.id,
            outputs=[oip.ModelInferResponse.InferOutputTensor(name="logits", datatype="FP32", shape=logits.shape)],
            raw_output_contents=[logits.tobytes()],
        )
        self.tamper(response)
        return response

    def receipt(self, request: oip.ModelInferRequest) -> str:
        """Return the signed receipt of a request."""
        tensor = request.inputs[0]
        raw = request.raw_input_contents[0]
        changes: dict[str, Any] = {
            "request_id": request.id,
            "version": self.contract.version,
            "samples": tensor.shape[0],
            "payload_digest": payload_digest(
                request.model_name, self.contract.version, [(tensor.name, tensor.datatype, tensor.shape, raw)]
            ),
        }
        self.rewrite_receipt(changes)
        return sign_receipt(keys.draft(1, **changes).recorded(1, genesis(self.identity.key_id)), self.identity)

    def _nonce(self) -> bytes:
        return self._nonces.to_bytes(32, "big")

    def _proved(self, rpc: Rpc, purpose: Any, token: str) -> Any:
        proof = rpc.message.proof  # type: ignore[attr-defined]
        licence = verify_licence(token, keys.ISSUERS)
        try:
            check_proof(
                proof.buyer_public_key,
                proof.signature,
                purpose,
                self._nonce(),
                self.identity.key_id,
                licence.digest,
                expected_buyer_id=licence.buyer_id,
            )
        except TesseraError as error:
            raise refused("PERMISSION_DENIED", error.reason) from error
        return licence


def scores(keyed: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return what the simulated model says of (N, 1, 8, 8) bytes: (N, 10) position-weighted sums."""
    weights = np.arange(640, dtype=np.float32).reshape(64, 10)
    result: np.ndarray[Any, np.dtype[np.float32]] = keyed.reshape(len(keyed), 64).astype(np.float32) @ weights
    return result


def drive(plan: Plan[Any], node: SimNode, using: Core | None = None) -> Any:
    """Run a plan against a simulated node, as the real drivers do; `using` opens its sessions."""
    try:
        effect = next(plan)
        while True:
            failed: Exception | None = None
            result: Any = None
            try:
                result = _perform(effect, node, using)
            except (RpcFailed, TesseraError) as error:
                failed = error
            effect = plan.send(result) if failed is None else plan.throw(failed)
    except StopIteration as stop:
        return stop.value


def _perform(effect: Any, node: SimNode, using: Core | None) -> Any:
    match effect:
        case Rpc():
            return node.answer(effect)
        case Pause(seconds, _):
            node.pauses.append(seconds)
            node.time.advance(seconds)
            return None
        case NeedSession(licence, stale):
            assert using is not None
            slot = licence.licence.licence_id
            node.slots[slot] = drive(fresh_session(using, licence, node.slots.get(slot), stale), node, using)
            return node.slots[slot]
        case _:
            raise AssertionError(effect)


def names(errors: Iterable[object]) -> list[str]:
    """Return the class names of some values."""
    return [type(error).__name__ for error in errors]
