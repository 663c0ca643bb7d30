"""The only place that knows both the wire messages and the client's own values; judges what the server sends."""

from collections.abc import Mapping, Sequence
from typing import Any

from tessera.client._types import NUMPY_TYPES, Array, ModelContract, TensorContract, Usage
from tessera.client.errors import ProtocolError
from tessera.keystore.errors import Malformed
from tessera.keystore.identity import PublicIdentity
from tessera.oip.v1 import inference_pb2 as oip
from tessera.v1 import licensing_pb2, types_pb2

MAX_TENSORS = 64
MAX_RANK = 16
_DATATYPES = {dtype: name for name, dtype in NUMPY_TYPES.items()}


def node_of(challenge: licensing_pb2.CreateChallengeResponse) -> PublicIdentity:
    """Return the node that asks. Raises `ProtocolError` when its keys are no keys or its id is not the keys' own."""
    try:
        node = PublicIdentity("node", "node", challenge.node.verify_key, challenge.node.seal_key)
    except Malformed:
        raise ProtocolError("the server's node identity is not well-formed") from None
    if node.key_id != challenge.node.node_id or len(challenge.nonce) != 32:
        raise ProtocolError("the server's challenge is not well-formed")
    return node


def contract_of(message: types_pb2.ModelContract) -> ModelContract:
    """Return the contract. Raises `ProtocolError` when a client could not work by it."""
    contract = ModelContract(
        name=message.name,
        version=message.version,
        package_id=message.package_id,
        tier=message.tier,
        inputs=tuple(_tensor_of(tensor) for tensor in message.inputs),
        outputs=tuple(_tensor_of(tensor) for tensor in message.outputs),
        transform=message.transform,
        input_key_id=message.input_key_id,
        max_batch=message.max_batch,
    )
    counts = (len(contract.inputs), len(contract.outputs))
    complete = contract.name and contract.version > 0 and contract.max_batch > 0
    if not complete or min(counts) < 1 or max(counts) > MAX_TENSORS:
        raise ProtocolError("the server's model contract is incomplete")
    return contract


def _tensor_of(message: types_pb2.TensorContract) -> TensorContract:
    shape = tuple(message.shape)
    if not message.name or not 1 <= len(shape) <= MAX_RANK or shape[0] != -1 or any(axis < -1 for axis in shape):
        raise ProtocolError("a tensor of the server's model contract is not well-formed")
    return TensorContract(message.name, message.datatype, shape, message.layout, message.finite)


def usage_of(message: types_pb2.LicenceUsage) -> Usage:
    """Return the usage of one licence."""
    return Usage(
        licence_id=message.licence_id,
        model=message.model,
        requests=message.requests,
        samples=message.samples,
        bytes_in=message.bytes_in,
        compute_seconds=message.compute_seconds,
        quota_samples=message.quota_samples if message.HasField("quota_samples") else None,
        samples_left=message.samples_left if message.HasField("samples_left") else None,
    )


def infer_request(contract: ModelContract, arrays: Mapping[str, Array], request_id: str) -> oip.ModelInferRequest:
    """Return the wire request for checked arrays: raw contents, in contract order, for the contract's very version."""
    return oip.ModelInferRequest(
        model_name=contract.name,
        model_version=str(contract.version),
        id=request_id,
        inputs=[
            oip.ModelInferRequest.InferInputTensor(name=name, datatype=_DATATYPES[array.dtype], shape=array.shape)
            for name, array in arrays.items()
        ],
        raw_input_contents=[array.tobytes() for array in arrays.values()],
    )


def raw_outputs(response: oip.ModelInferResponse) -> dict[str, tuple[str, Sequence[int], bytes]]:
    """Return datatype, shape and raw bytes by output name. Raises `ProtocolError` for typed or uneven contents."""
    if len(response.outputs) != len(response.raw_output_contents):
        raise ProtocolError("the answer's outputs and raw contents do not pair up")
    found: dict[str, tuple[str, Sequence[int], bytes]] = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.name in found:
            raise ProtocolError("the answer names an output twice")
        found[output.name] = (output.datatype, tuple(output.shape), raw)
    return found


def text_parameter(parameters: Mapping[str, Any], name: str) -> str:
    """Return a string parameter of an answer, or the empty string."""
    return str(parameters[name].string_param) if name in parameters else ""  # reading a map field would add the key
