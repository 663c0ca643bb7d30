"""A program that speaks the wire without the SDK: it opens a session properly and then sends whatever it likes.

This is what a buyer's modified client can do, and how the demo measures what the model is worth without the key: the
server cannot tell such tensors from keyed ones, so it answers and charges them (docs/threat-model.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import numpy as np

from tessera.cli import admin
from tessera.cli.demo.buyers import Buyer
from tessera.cli.demo.server import ServerProcess
from tessera.cli.demo.vendor import MODEL
from tessera.cli.wire import Service
from tessera.keystore.licence import parse_without_verification, read_licence_file
from tessera.keystore.proof import confirm, confirmation_key, sign_proof
from tessera.keystore.secrets import InputKey
from tessera.oip.v1 import inference_pb2 as oip
from tessera.v1 import licensing_pb2 as licensing

if TYPE_CHECKING:
    from numpy.typing import NDArray

TIMEOUT_S = 30.0
BATCH = 100


@contextmanager
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    """Yield a TLS channel to the server; what the server refuses is raised as the error it names."""
    credentials = grpc.ssl_channel_credentials(server.ca.read_bytes())
    with grpc.secure_channel(server.address, credentials) as opened:
        try:
            yield opened
        except grpc.RpcError as error:
            raise admin.refusal(error) from None


def open_session(opened: grpc.Channel, buyer: Buyer, key: InputKey) -> str:
    """Prove possession of the buyer's licence and input key; return the session's bearer token."""
    service = Service(opened, "tessera.v1.LicensingService", timeout_s=TIMEOUT_S)
    held = read_licence_file(buyer.licence_file)
    licence = parse_without_verification(held.licence)
    challenge = service.call("CreateChallenge", licensing.CreateChallengeRequest(), licensing.CreateChallengeResponse)
    place = (challenge.nonce, challenge.node.node_id, licence.digest)
    proof = licensing.PossessionProof(
        nonce=challenge.nonce,
        buyer_public_key=buyer.identity.public.verify_key,
        signature=sign_proof(buyer.identity, "open-session", *place),
    )
    request = licensing.OpenSessionRequest(
        licence=held.licence,
        grant=held.grant or "",
        proof=proof,
        key_confirmation=confirm(confirmation_key(key), *place),
    )
    return service.call("OpenSession", request, licensing.OpenSessionResponse).session_token


def infer(opened: grpc.Channel, token: str | None, images: "NDArray[np.uint8]") -> "NDArray[np.int64]":
    """Send a batch as it is, with the session's token or without one; return the predicted classes."""
    request = oip.ModelInferRequest(model_name=MODEL, raw_input_contents=[images.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=list(images.shape))
    metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
    service = Service(opened, "inference.GRPCInferenceService", timeout_s=TIMEOUT_S)
    answer = service.call("ModelInfer", request, oip.ModelInferResponse, metadata)
    scores = np.frombuffer(answer.raw_output_contents[0], dtype="<f4").reshape(len(images), -1)
    guesses: NDArray[np.int64] = scores.argmax(axis=1)
    return guesses


def accuracy(opened: grpc.Channel, token: str, images: "NDArray[np.uint8]", labels: "NDArray[np.int64]") -> float:
    """Return the share of right answers to `images` sent as they are."""
    guesses = [infer(opened, token, images[at : at + BATCH]) for at in range(0, len(images), BATCH)]
    return float(np.mean(np.concatenate(guesses) == labels))
