"""Protobuf on one side, the appliance's own types on the other; nothing else knows both (rules W-40 to W-49).

A `Signature` is made once for each package and then checks and converts every request for it. Whatever a peer sends
ends in arrays that fit the contract or in `Malformed`, and in `InvalidTensor` where a tensor is to blame; nothing is
charged either way.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from tessera.keystore.errors import InvalidTensor, Malformed, TesseraError
from tessera.keystore.package import Manifest, TensorSpec
from tessera.keystore.payload import payload_digest
from tessera.keystore.tiers import MAX_TIERS
from tessera.oip.v1 import inference_pb2 as pb
from tessera.server.boundary import details_of, public_face
from tessera.server.config import Limits
from tessera.server.engine.batcher import Answer
from tessera.server.engine.datatypes import DATATYPES
from tessera.server.services import sizes

Array = npt.NDArray[Any]
_Message = TypeVar("_Message", pb.ModelInferRequest, pb.ModelMetadataRequest)

RECEIPT_PARAMETERS: Final = ("tessera_receipt", "tessera-receipt")
TIER_PARAMETER: Final = "tessera_tier"
SHOWN_NAME_CHARS: Final = 64
FEWER: Final = "send fewer samples in one request, or ask the operator to raise the server's TESSERA_LIMITS__* sizes"

_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
_WIRE: Final = {"int_contents": np.dtype("<i4"), "uint_contents": np.dtype("<u4")}
"""Types of the fields that carry narrower integers too; any other field has the type of its datatype."""
_FLOATING: Final = frozenset({"FP16", "BF16", "FP32", "FP64"})
_BF16_EXPONENT: Final = 0x7F80


class Inputs(NamedTuple):
    """The checked tensors of one request, in contract order."""

    arrays: dict[str, Array]
    """Read-only views into the message, or arrays made of typed contents; batch axis first."""
    samples: int
    """Length of the batch axis, the same for all."""
    bytes_in: int
    """Bytes of all tensors in their raw form."""


class Port:
    """One input of a contract, with everything precomputed that a request is held against."""

    __slots__ = ("bf16", "contents", "datatype", "dtype", "finite", "inner", "name", "sample_bytes")

    def __init__(self, spec: TensorSpec) -> None:
        self.name = spec.name
        self.datatype = spec.datatype
        self.dtype = DATATYPES[spec.datatype].numpy_dtype
        self.inner = list(spec.shape[1:])
        self.sample_bytes = self.dtype.itemsize * int(np.prod(self.inner, dtype=object))
        self.contents = _CONTENTS.get(spec.datatype)
        self.finite = spec.finite and spec.datatype in _FLOATING
        self.bf16 = spec.datatype == "BF16"

    def samples(self, tensor: pb.ModelInferRequest.InferInputTensor, limits: Limits, max_batch: int) -> int:
        """Return the length of the batch axis after holding datatype and shape against the contract."""
        if tensor.datatype != self.datatype:
            raise self.refuse(f"is {shown(tensor.datatype)} and the contract says {self.datatype}")
        if len(tensor.shape) != 1 + len(self.inner):
            raise self.refuse(f"has {len(tensor.shape)} dimensions and the contract says {1 + len(self.inner)}")
        shape = list(tensor.shape)
        if shape[1:] != self.inner:
            raise self.refuse(f"has shape {shape} and the contract says {[-1, *self.inner]}")
        if not 1 <= shape[0] <= max_batch:
            raise self.refuse(f"has {shape[0]} samples and the model takes 1 to {max_batch}")
        if shape[0] * self.sample_bytes > limits.tensor_bytes:
            raise self.refuse(f"is larger than {limits.tensor_bytes} bytes", reason="message-too-large", remedy=FEWER)
        return shape[0]

    def from_raw(self, raw: bytes, samples: int) -> Array:
        """Return the array over `raw`, without a copy."""
        if len(raw) != samples * self.sample_bytes:
            raise self.refuse(f"holds {len(raw)} bytes and its shape asks for {samples * self.sample_bytes}")
        array: Array = np.frombuffer(raw, self.dtype)
        if self.datatype == "BOOL" and array.view(np.uint8).max() > 1:
            raise self.refuse("is BOOL and holds a byte that is neither 0 nor 1")
        return self._checked(array, samples)

    def from_contents(self, contents: pb.InferTensorContents, samples: int) -> Array:
        """Return the array of typed contents, copied once by numpy."""
        if self.contents is None:
            raise self.refuse(f"is {self.datatype}, which only travels in raw_input_contents")
        filled = [field.name for field, _ in contents.ListFields()]
        if filled != [self.contents]:
            raise self.refuse(f"is {self.datatype}, whose values belong in {self.contents} alone")
        values = getattr(contents, self.contents)
        if len(values) * self.dtype.itemsize != samples * self.sample_bytes:
            raise self.refuse(
                f"holds {len(values)} values and its shape asks for "
                f"{samples * self.sample_bytes // self.dtype.itemsize}"
            )
        wide = np.array(values, _WIRE.get(self.contents, self.dtype))
        if wide.dtype != self.dtype:
            bounds = np.iinfo(self.dtype)
            if wide.min() < bounds.min or wide.max() > bounds.max:
                raise self.refuse(f"holds a value that is not {self.datatype}")
        return self._checked(wide.astype(self.dtype), samples)

    def refuse(self, what: str, reason: str | None = None, remedy: str = "") -> InvalidTensor:
        """Return the error that blames this tensor."""
        return InvalidTensor(f"tensor {self.name} {what}", tensor=self.name, reason=reason, remedy=remedy)

    def _checked(self, flat: Array, samples: int) -> Array:
        if self.finite:
            bad = (flat & _BF16_EXPONENT == _BF16_EXPONENT).any() if self.bf16 else not np.isfinite(flat).all()
            if bad:
                raise self.refuse("holds NaN or infinity, which the contract forbids")
        return flat.reshape(samples, *self.inner)


class Signature:
    """The contract of one package as the wire sees it."""

    def __init__(self, manifest: Manifest, limits: Limits) -> None:
        self.manifest = manifest
        self._limits = limits
        self._model = manifest.model
        self._version = manifest.version
        self._version_text = str(manifest.version)
        self._ports = {spec.name: Port(spec) for spec in manifest.inputs}
        self._outputs = {spec.name: spec.datatype for spec in manifest.outputs}
        self._all_outputs = tuple(self._outputs)
        self._output_bytes = {spec.name: sizes.sample_bytes([spec]) for spec in manifest.outputs}

    def decode(self, request: pb.ModelInferRequest) -> Inputs:
        """Return the request's tensors. Raises `Malformed` or `InvalidTensor` (rules W-41 to W-46)."""
        tensors, raw = request.inputs, request.raw_input_contents
        if len(tensors) > self._limits.max_tensors:
            raise Malformed(f"a request has at most {self._limits.max_tensors} tensors", reason="invalid-tensor")
        if raw and len(raw) != len(tensors):
            raise Malformed(f"{len(tensors)} inputs came with {len(raw)} raw contents", reason="invalid-tensor")
        found: dict[str, Array] = {}
        samples = 0
        for index, tensor in enumerate(tensors):
            port = self._port(tensor, found)
            count = port.samples(tensor, self._limits, self.manifest.max_batch)
            if samples and count != samples:
                raise port.refuse(f"has {count} samples and the tensors before it {samples}")
            samples = count
            if raw:
                if tensor.HasField("contents"):
                    raise port.refuse("has typed contents beside raw_input_contents")
                found[port.name] = port.from_raw(raw[index], samples)
            else:
                found[port.name] = port.from_contents(tensor.contents, samples)
        if len(found) != len(self._ports):
            missing = next(name for name in self._ports if name not in found)
            raise InvalidTensor(f"tensor {missing} is missing", tensor=missing)
        arrays = {name: found[name] for name in self._ports} if len(found) > 1 else found
        return Inputs(arrays, samples, sum(array.nbytes for array in arrays.values()))

    def digest(self, inputs: Inputs) -> str:
        """Return the payload digest of checked tensors (rule W-49)."""
        return payload_digest(
            self._model,
            self._version,
            ((name, self._ports[name].datatype, array.shape, array.data) for name, array in inputs.arrays.items()),
        )

    def wanted(self, request: pb.ModelInferRequest) -> tuple[str, ...]:
        """Return the names of the requested outputs, all of them when none is named. Raises `InvalidTensor` (W-47)."""
        if not request.outputs:
            return self._all_outputs
        if len(request.outputs) > len(self._outputs):
            raise Malformed("more outputs are requested than the model has", reason="invalid-tensor")
        names: dict[str, None] = {}
        for output in request.outputs:
            name = shown(output.name)
            if output.name not in self._outputs or output.name in names:
                raise InvalidTensor(f"output {name} is unknown or requested twice", tensor=name)
            if output.parameters:
                raise InvalidTensor(f"output {name} asks for an extension that is not offered", tensor=name)
            names[output.name] = None
        return tuple(names)

    def check_answer(self, samples: int, wanted: Sequence[str]) -> None:
        """Raise `Malformed` (`message-too-large`) when the wanted outputs of `samples` could not travel (rule W-46)."""
        limit = self._limits.max_answer_bytes
        needed = samples * sum(self._output_bytes[name] for name in wanted)
        if needed > sizes.room(limit, len(wanted)):
            raise Malformed(
                f"the answer to {samples} samples would hold {needed} bytes, and this server sends at most {limit}",
                reason="message-too-large",
                remedy=FEWER,
            )

    def response(self, answer: Answer, request_id: str, wanted: Sequence[str]) -> pb.ModelInferResponse:
        """Return the answer with raw output contents, in the order asked for (rule W-47)."""
        response = pb.ModelInferResponse(model_name=self._model, model_version=self._version_text, id=request_id)
        for name in wanted:
            array = answer.outputs[name]
            response.outputs.add(name=name, datatype=self._outputs[name], shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        response.parameters["tessera_sequence"].int64_param = answer.record.sequence
        return response

    def _port(self, tensor: pb.ModelInferRequest.InferInputTensor, found: Mapping[str, Array]) -> Port:
        port = self._ports.get(tensor.name)
        name = shown(tensor.name)
        if port is None:
            raise InvalidTensor(f"the model has no input {name}", tensor=name)
        if tensor.name in found:
            raise InvalidTensor(f"tensor {name} is given twice", tensor=name)
        if "shared_memory_region" in tensor.parameters:
            raise InvalidTensor(f"tensor {name} is in shared memory, which is not offered", tensor=name)
        return port


def parse_infer(raw: bytes, limits: Limits) -> pb.ModelInferRequest:
    """Return the request in `raw`. Raises `Malformed`; `InvalidTensor` naming the largest tensor if it is too large."""
    try:
        request = pb.ModelInferRequest.FromString(raw)
    except DecodeError:
        raise Malformed("the message is not a ModelInferRequest") from None
    if len(raw) > limits.max_message_bytes:
        raise _too_large(request, limits.max_message_bytes)
    return request


def request_id(request: pb.ModelInferRequest, limits: Limits) -> str:
    """Return the request's id, empty when it has none. Raises `Malformed` for one that cannot be recorded (W-48)."""
    found = request.id
    if len(found) > limits.max_request_id_bytes or not found.isascii() or not found.isprintable():
        raise Malformed(f"a request id is at most {limits.max_request_id_bytes} printable ASCII characters")
    return found


def model_version(text: str) -> int:
    """Return the version named on the wire, 0 for the server's choice. Raises `Malformed` unless it is a positive
    decimal."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()) or text[0] == "0" or len(text) > 18:
        raise Malformed("a model version is a positive decimal number")
    return int(text)


def wants_receipt(request: pb.ModelInferRequest) -> bool:
    """Return whether a parameter of the request asks for a receipt: true, 1 or "1"."""
    parameters = request.parameters
    for name in RECEIPT_PARAMETERS:
        if name in parameters:
            value = parameters[name]
            return value.bool_param or value.int64_param == 1 or value.string_param in ("1", "true")
    return False


def wanted_tier(request: pb.ModelInferRequest) -> int | None:
    """Return the tier that a parameter of the request asks for, None for the licence's own (rule W-67).

    Raises `Malformed` for anything but an integer that can be a tier.
    """
    if TIER_PARAMETER not in request.parameters:
        return None
    value = request.parameters[TIER_PARAMETER]
    if value.WhichOneof("parameter_choice") != "int64_param" or not 1 <= value.int64_param <= MAX_TIERS:
        raise Malformed(f"the parameter {TIER_PARAMETER} is an integer (int64_param) from 1 to {MAX_TIERS}")
    return value.int64_param


def stream_answer(response: pb.ModelInferResponse, receipt: str | None) -> pb.ModelStreamInferResponse:
    """Return one item of a stream, with its receipt as a parameter (rule W-62)."""
    if receipt is not None:
        response.parameters["tessera_receipt"].string_param = receipt
    return pb.ModelStreamInferResponse(infer_response=response)


def stream_error(error: BaseException, request_id: str) -> pb.ModelStreamInferResponse:
    """Return one item of a stream that says why there is no answer (rule W-63); never an exception's own text."""
    face = public_face(error)
    response = pb.ModelInferResponse(id=request_id)
    response.parameters["tessera_reason"].string_param = face.reason
    if face.remedy:
        response.parameters["tessera_remedy"].string_param = face.remedy
    if isinstance(face, InvalidTensor):
        response.parameters["tessera_tensor"].string_param = face.tensor
    return pb.ModelStreamInferResponse(error_message=details_of(face), infer_response=response)


def reason_of(error: BaseException) -> str:
    """Return the slug that a peer sees for `error`."""
    return public_face(error).reason


def shown(name: str) -> str:
    """Return a peer's name as printable ASCII of bounded length, fit for a message and a metadata value."""
    return ascii(name[:SHOWN_NAME_CHARS])[1:-1][:SHOWN_NAME_CHARS]


def _too_large(request: pb.ModelInferRequest, max_bytes: int) -> TesseraError:
    what = f"a message has at most {max_bytes} bytes"
    if not request.inputs:
        return Malformed(what, reason="message-too-large", remedy=FEWER)
    raw = request.raw_input_contents
    sizes = [len(raw[i]) if i < len(raw) else t.contents.ByteSize() for i, t in enumerate(request.inputs)]
    name = shown(request.inputs[int(np.argmax(sizes))].name)
    what = f"{what}; tensor {name} is the largest in this one"
    return InvalidTensor(what, tensor=name, reason="message-too-large", remedy=FEWER)
