"""Requests from the wire: what fits the contract becomes arrays, the rest typed errors that name the tensor."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.models import PAIR_INPUTS, PAIR_OUTPUTS, a_manifest
from tessera.keystore.errors import InvalidTensor, Malformed, TesseraError
from tessera.keystore.package import TensorSpec
from tessera.keystore.payload import payload_digest
from tessera.oip.v1 import inference_pb2 as pb
from tessera.server.config import Limits
from tessera.server.engine.datatypes import DATATYPES
from tessera.server.services import convert
from tessera.server.services.convert import Signature

LIMITS = Limits()
IMAGE = Signature(a_manifest(), LIMITS)
PAIR = Signature(a_manifest(PAIR_INPUTS, PAIR_OUTPUTS), LIMITS)
INT32_MAX = 2**31 - 1


def one(datatype: str, inner: tuple[int, ...] = (3,), *, finite: bool = False) -> Signature:
    """Return the signature of a model with one input `x`."""
    return Signature(a_manifest((TensorSpec("x", datatype, (-1, *inner), "", finite),)), LIMITS)


def request(
    name: str = "image", datatype: str = "UINT8", shape: tuple[int, ...] = (2, 1, 8, 8), raw: bytes | None = None
) -> pb.ModelInferRequest:
    """Return a request with one raw input; the right one when nothing is given."""
    made = pb.ModelInferRequest(model_name="digits")
    made.inputs.add(name=name, datatype=datatype, shape=shape)
    made.raw_input_contents.append(bytes(range(128)) if raw is None else raw)
    return made


def pair(samples: int = 2) -> pb.ModelInferRequest:
    """Return a good request of two inputs, not in contract order."""
    made = pb.ModelInferRequest(model_name="digits")
    made.inputs.add(name="keep", datatype="BOOL", shape=[samples])
    made.inputs.add(name="points", datatype="FP32", shape=[samples, 2])
    made.raw_input_contents.append(bytes([1, 0] * samples)[:samples])
    made.raw_input_contents.append(np.arange(2 * samples, dtype="<f4").tobytes())
    return made


def test_raw_contents_become_views_in_contract_order() -> None:
    """Arrays lie over the message's bytes without a copy, whatever the order of the inputs."""
    inputs = PAIR.decode(pair())
    assert list(inputs.arrays) == ["points", "keep"]
    assert (inputs.samples, inputs.bytes_in) == (2, 18)
    assert inputs.arrays["points"].tolist() == [[0, 1], [2, 3]]
    assert inputs.arrays["keep"].tolist() == [True, False]
    assert not inputs.arrays["points"].flags.owndata


TYPED: list[tuple[str, str, list[Any]]] = [
    ("BOOL", "bool_contents", [True, False, True]),
    ("INT8", "int_contents", [-128, 0, 127]),
    ("INT16", "int_contents", [-5, 0, 32767]),
    ("INT32", "int_contents", [-5, 0, INT32_MAX]),
    ("INT64", "int64_contents", [-(2**63), 0, 2**63 - 1]),
    ("UINT8", "uint_contents", [0, 1, 255]),
    ("UINT16", "uint_contents", [0, 1, 65535]),
    ("UINT32", "uint_contents", [0, 1, 2**32 - 1]),
    ("UINT64", "uint64_contents", [0, 1, 2**64 - 1]),
    ("FP32", "fp32_contents", [0.0, 1.5, -2.0]),
    ("FP64", "fp64_contents", [0.0, 1.5, 1e300]),
]


@pytest.mark.parametrize("datatype, field, values", TYPED, ids=[case[0] for case in TYPED])
def test_typed_contents_are_the_same_tensor_as_raw_ones(datatype: str, field: str, values: list[Any]) -> None:
    """Every datatype with a typed field decodes to the same array and the same digest either way (W-42, W-49)."""
    signature = one(datatype)
    typed = pb.ModelInferRequest()
    getattr(typed.inputs.add(name="x", datatype=datatype, shape=[1, 3]).contents, field).extend(values)
    array = np.array([values], DATATYPES[datatype].numpy_dtype)
    raw = request("x", datatype, (1, 3), array.tobytes())
    from_typed, from_raw = signature.decode(typed), signature.decode(raw)
    assert from_typed.arrays["x"].dtype == from_raw.arrays["x"].dtype == array.dtype
    assert from_typed.arrays["x"].tolist() == from_raw.arrays["x"].tolist() == [values]
    assert signature.digest(from_typed) == signature.digest(from_raw)
    assert signature.digest(from_raw) == payload_digest("digits", 1, [("x", datatype, (1, 3), array.tobytes())])


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_travels_raw_only(datatype: str) -> None:
    """FP16 and BF16 have no typed field; raw bytes keep their bits."""
    signature = one(datatype)
    raw = bytes([0, 60, 1, 60, 2, 60])
    assert signature.decode(request("x", datatype, (1, 3), raw)).arrays["x"].tobytes() == raw
    typed = pb.ModelInferRequest()
    typed.inputs.add(name="x", datatype=datatype, shape=[1, 3]).contents.fp32_contents.extend([1, 2, 3])
    with pytest.raises(InvalidTensor) as caught:
        signature.decode(typed)
    assert "raw_input_contents" in caught.value.public


BAD: dict[str, pb.ModelInferRequest] = {
    "wrong datatype": request(datatype="FP32"),
    "no datatype": request(datatype=""),
    "BYTES": request(datatype="BYTES", raw=INT32_MAX.to_bytes(4, "little") + bytes(4)),
    "rank too low": request(shape=(2, 64)),
    "rank too high": request(shape=(2, 1, 8, 8, 1)),
    "no shape": request(shape=()),
    "wrong dimension": request(shape=(2, 1, 8, 9)),
    "dims swapped": request(shape=(1, 2, 8, 8)),
    "negative dimension": request(shape=(2, 1, 8, -8)),
    "two negative dimensions": request(shape=(2, 1, -8, -8)),
    "negative batch": request(shape=(-2, 1, 8, 8)),
    "zero batch": request(shape=(0, 1, 8, 8), raw=b""),
    "batch above the maximum": request(shape=(9, 1, 8, 8), raw=bytes(9 * 64)),
    "product overflows": request(shape=(2**62, 1, 8, 8)),
    "one byte short": request(raw=bytes(127)),
    "one byte long": request(raw=bytes(129)),
    "empty": request(raw=b""),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_the_contract_names_the_tensor(bad: pb.ModelInferRequest) -> None:
    """Datatype, shape and length faults are InvalidTensor for `image` (rules W-43, W-44)."""
    with pytest.raises(InvalidTensor) as caught:
        IMAGE.decode(bad)
    assert caught.value.tensor == "image"
    assert caught.value.reason == "invalid-tensor"


def test_a_set_of_inputs_that_is_not_the_contracts_is_refused() -> None:
    """Unknown, missing and duplicate names, and inputs of different lengths, name the tensor to blame (W-41)."""
    unknown = request("imag\u00e9\n" + "x" * 200)
    with pytest.raises(InvalidTensor) as caught:
        IMAGE.decode(unknown)
    assert caught.value.tensor.isascii()
    assert caught.value.tensor.isprintable()
    assert len(caught.value.tensor) <= convert.SHOWN_NAME_CHARS
    missing = pair()
    del missing.inputs[1], missing.raw_input_contents[1]
    twice = pair()
    twice.inputs[0].CopyFrom(twice.inputs[1])
    twice.raw_input_contents[0] = twice.raw_input_contents[1]
    uneven = pair()
    uneven.inputs[0].shape[0] = 1
    uneven.raw_input_contents[0] = b"\x01"
    for bad in (missing, twice, uneven):
        with pytest.raises(InvalidTensor) as caught:
            PAIR.decode(bad)
        assert caught.value.tensor == "points"
    with pytest.raises(InvalidTensor):
        IMAGE.decode(pb.ModelInferRequest())


def test_raw_and_typed_contents_are_not_mixed() -> None:
    """Typed contents beside raw ones, a wrong count of raw ones, and shared memory are refused (W-42)."""
    mixed = request()
    mixed.inputs[0].contents.uint_contents.append(1)
    with pytest.raises(InvalidTensor):
        IMAGE.decode(mixed)
    for count in (0, 2):
        counted = request()
        del counted.raw_input_contents[:]
        counted.raw_input_contents.extend([bytes(128)] * count)
        with pytest.raises(Malformed):
            IMAGE.decode(counted)
    shared = request()
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(InvalidTensor):
        IMAGE.decode(shared)


@pytest.mark.parametrize("field, values", [("uint_contents", [256, 0, 0]), ("int_contents", [1, 2, 3])])
def test_typed_values_that_are_not_the_datatypes_are_refused(field: str, values: list[int]) -> None:
    """A value out of range and the wrong typed field are refused, not wrapped around."""
    bad = pb.ModelInferRequest()
    getattr(bad.inputs.add(name="x", datatype="UINT8", shape=[1, 3]).contents, field).extend(values)
    with pytest.raises(InvalidTensor):
        one("UINT8").decode(bad)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_where_the_contract_says_so(datatype: str, value: float) -> None:
    """A finite input refuses them in every floating datatype; another input takes them (W-45)."""
    if datatype == "BF16":
        raw = (np.array([[1, value, 2]], "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    else:
        raw = np.array([[1, value, 2]], DATATYPES[datatype].numpy_dtype).tobytes()
    with pytest.raises(InvalidTensor) as caught:
        one(datatype, finite=True).decode(request("x", datatype, (1, 3), raw))
    assert caught.value.tensor == "x"
    assert one(datatype).decode(request("x", datatype, (1, 3), raw)).samples == 1


def test_a_raw_bool_is_nought_or_one() -> None:
    """Any other byte would be undefined behaviour in a kernel (W-44)."""
    with pytest.raises(InvalidTensor):
        one("BOOL").decode(request("x", "BOOL", (1, 3), b"\x00\x01\x02"))


def test_a_message_that_is_too_large_names_its_largest_tensor() -> None:
    """4 MiB and one byte is refused with message-too-large, naming the tensor (W-46)."""
    big = pair()
    big.raw_input_contents[1] = bytes(LIMITS.max_message_bytes)
    with pytest.raises(InvalidTensor) as caught:
        convert.parse_infer(big.SerializeToString(), LIMITS)
    assert (caught.value.tensor, caught.value.reason) == ("points", "message-too-large")
    nothing = pb.ModelInferRequest(raw_input_contents=[bytes(LIMITS.max_message_bytes)])
    with pytest.raises(Malformed) as other:
        convert.parse_infer(nothing.SerializeToString(), LIMITS)
    assert other.value.reason == "message-too-large"


def test_requested_outputs_are_honoured() -> None:
    """None means all; a subset keeps its order; unknown, doubled and extended ones are refused (W-47)."""
    assert PAIR.wanted(pair()) == ("scaled", "sum")
    some = pair()
    some.outputs.add(name="sum")
    assert PAIR.wanted(some) == ("sum",)
    some.outputs.add(name="scaled")
    assert PAIR.wanted(some) == ("sum", "scaled")
    for name in ("nope", "sum"):
        bad = pair()
        bad.outputs.add(name="sum")
        bad.outputs.add(name=name)
        with pytest.raises(InvalidTensor):
            PAIR.wanted(bad)
    extended = pair()
    extended.outputs.add(name="sum").parameters["classification"].int64_param = 3
    with pytest.raises(InvalidTensor) as caught:
        PAIR.wanted(extended)
    assert caught.value.tensor == "sum"


@pytest.mark.parametrize("text", ["0", "01", "-1", "1.0", "x", " 1", "１", "9" * 19])
def test_a_version_is_a_positive_decimal(text: str) -> None:
    """Anything else is Malformed; the empty text leaves the choice to the server (W-40)."""
    assert convert.model_version("") == 0
    assert convert.model_version("17") == 17
    with pytest.raises(Malformed):
        convert.model_version(text)


@pytest.mark.parametrize("text", ["a" * 129, "a\nb", "caf\u00e9", "\x7f"])
def test_a_request_id_can_be_recorded(text: str) -> None:
    """At most 128 printable ASCII characters (W-48)."""
    assert convert.request_id(pb.ModelInferRequest(id="frame 1"), LIMITS) == "frame 1"
    with pytest.raises(Malformed):
        convert.request_id(pb.ModelInferRequest(id=text), LIMITS)


def test_an_error_item_never_carries_an_exceptions_text() -> None:
    """A foreign exception is one word in a stream; ours carry reason, tensor and id (W-63)."""
    item = convert.stream_error(ValueError("key=SECRET"), "r1")
    assert "SECRET" not in str(item)
    assert item.infer_response.parameters["tessera_reason"].string_param == "internal"
    ours = convert.stream_error(InvalidTensor("tensor x is bad", tensor="x"), "r2")
    assert ours.error_message == "invalid-tensor: tensor x is bad"
    assert ours.infer_response.id == "r2"


@given(raw=st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_random_bytes_end_in_a_typed_error(raw: bytes) -> None:
    """Random bytes are refused by one of our errors, or decode to inputs that fit."""
    _decode(raw)


@given(data=st.data(), which=st.sampled_from(["image", "pair"]))
@settings(max_examples=200, deadline=None)
def test_mutated_requests_end_in_a_typed_error(data: st.DataObject, which: str) -> None:
    """Bytes changed, cut out or repeated anywhere in a good message end in our errors or in inputs that fit."""
    raw = bytearray((request() if which == "image" else pair()).SerializeToString())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, max(0, len(raw) - 1)))
        match data.draw(st.sampled_from(["set", "cut", "repeat"])):
            case "set":
                raw[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 8))]
            case _:
                raw[at:at] = raw[at : at + data.draw(st.integers(1, 8))]
    _decode(bytes(raw))


def _decode(raw: bytes) -> None:
    for signature in (IMAGE, PAIR):
        refusal: TesseraError | None = None
        try:
            message = convert.parse_infer(raw, LIMITS)
            inputs = signature.decode(message)
            signature.wanted(message)
            convert.request_id(message, LIMITS)
            convert.model_version(message.model_version)
            convert.wants_receipt(message)
        except TesseraError as error:
            refusal = error
        if refusal is None:
            assert all(len(array) == inputs.samples for array in inputs.arrays.values())
            assert len(signature.digest(inputs)) == 64
        else:
            assert refusal.reason in ("malformed", "invalid-tensor", "message-too-large")
            assert refusal.public.isprintable()
