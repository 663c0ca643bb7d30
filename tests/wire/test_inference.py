"""The inference service on a real port: unary and stream, refusals, limits, charging, and what is said of models."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from support import keys
from support.models import Sealed, seal
from support.rig import Rig, rig
from tessera.keystore.licence import Quota, Terms
from tessera.keystore.payload import payload_digest
from tessera.keystore.usage import verify_receipt
from tessera.oip.v1 import PUBLIC_SERVICE
from tessera.oip.v1 import inference_pb2 as pb
from tessera.server.config import Limits

LIMITS = Limits(max_message_bytes=64 * 1024, message_headroom_bytes=64 * 1024, max_stream_window=4)
Metadata = tuple[tuple[str, str], ...]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    """A sealed classifier, exported once."""
    return seal(tmp_path_factory.mktemp("digits"))


class Wire:
    """A rig, a channel to it and a session."""

    def __init__(self, node: Rig, sealed: Sealed, channel: grpc.aio.Channel) -> None:
        self.node = node
        self.sealed = sealed
        self.channel = channel
        self.metadata: Metadata = self.session()

    def session(self, terms: Terms | None = None) -> Metadata:
        """Return the metadata of a fresh session."""
        return tuple(self.node.headers(terms).items())

    def call(self, rpc: str, request: Any, metadata: Metadata | None = None, **options: Any) -> Any:
        """Call a unary method by name; the response type follows from it."""
        response = getattr(pb, f"{rpc}Response")
        method = self.channel.unary_unary(
            f"/{PUBLIC_SERVICE}/{rpc}",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return method(request, metadata=self.metadata if metadata is None else metadata, **options)

    def stream(self, metadata: Metadata | None = None) -> Any:
        """Open a stream of raw requests."""
        method = self.channel.stream_stream(
            f"/{PUBLIC_SERVICE}/ModelStreamInfer",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        return method(metadata=self.metadata if metadata is None else metadata)

    async def ask(self, requests: Iterable[Any], metadata: Metadata | None = None) -> list[Any]:
        """Send all, close, and return all answers."""
        stream = self.stream(metadata)
        for request in requests:
            await stream.write(request)
        await stream.done_writing()
        return [item async for item in stream]

    def truth(self, x: np.ndarray[Any, Any]) -> bytes:
        """Return the vendor's logits."""
        with torch.inference_mode():
            raw: bytes = self.sealed.module(torch.from_numpy(x)).numpy().tobytes()
            return raw


@pytest.fixture
async def wire(digits: Sealed) -> AsyncIterator[Wire]:
    """A served model and an open session."""
    async with rig(digits, limits=LIMITS) as node, grpc.aio.insecure_channel(node.target) as channel:
        yield Wire(node, digits, channel)


def images(samples: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return random images."""
    return np.random.default_rng(seed).integers(0, 256, (samples, 1, 8, 8), np.uint8)


def request(x: np.ndarray[Any, Any], request_id: str = "", **fields: Any) -> pb.ModelInferRequest:
    """Return the request for images."""
    made = pb.ModelInferRequest(model_name="digits", id=request_id, **fields)
    made.inputs.add(name="image", datatype="UINT8", shape=x.shape)
    made.raw_input_contents.append(x.tobytes())
    return made


def trailer(error: grpc.aio.AioRpcError, name: str) -> str:
    """Return one trailing metadata value."""
    return next((str(value) for key, value in error.trailing_metadata() or () if key == name), "")


async def refused(call: Any) -> grpc.aio.AioRpcError:
    """Return the error of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_an_answer_and_its_record(wire: Wire) -> None:
    """Right logits, the id given back, one ledger record that says exactly what was sent, and a receipt on request."""
    x = images(3)
    call = wire.call("ModelInfer", request(x, "r-1"), (*wire.metadata, ("tessera-receipt", "1")))
    answer = await call
    assert answer.raw_output_contents[0] == wire.truth(x)
    assert (answer.model_name, answer.model_version, answer.id) == ("digits", "1", "r-1")
    assert list(answer.outputs[0].shape) == [3, 10]
    (record,) = wire.node.ledger.records
    assert (record.samples, record.bytes_in, record.request_id) == (3, 192, "r-1")
    assert record.payload_digest == payload_digest("digits", 1, [("image", "UINT8", (3, 1, 8, 8), x.tobytes())])
    receipt = dict(await call.trailing_metadata())["tessera-receipt"]
    assert verify_receipt(receipt, keys.NODES) == record
    assert answer.parameters["tessera_sequence"].int64_param == record.sequence


async def test_without_an_id_the_server_makes_one(wire: Wire) -> None:
    """Two requests without ids are two records."""
    first, second = [await wire.call("ModelInfer", request(images(1))) for _ in range(2)]
    assert first.id
    assert first.id != second.id
    assert len(wire.node.ledger.records) == 2


async def test_a_retry_is_charged_once_and_a_conflict_is_refused(wire: Wire) -> None:
    """Same id and payload: same answer, one record. Same id, other payload: ALREADY_EXISTS."""
    answers = [await wire.call("ModelInfer", request(images(1), "r")) for _ in range(2)]
    assert answers[0].raw_output_contents == answers[1].raw_output_contents
    assert len(wire.node.ledger.records) == 1
    error = await refused(wire.call("ModelInfer", request(images(1, seed=1), "r")))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    assert trailer(error, "tessera-reason") == "request-id-conflict"
    assert len(wire.node.ledger.records) == 1


@pytest.mark.parametrize("rpc", ["ModelInfer", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"])
@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer nope"),)], ids=["none", "unknown"])
async def test_no_session_no_answer(wire: Wire, rpc: str, metadata: Metadata) -> None:
    """Every RPC about a model is UNAUTHENTICATED without a session, before anything in it is looked at."""
    error = await refused(wire.call(rpc, b"\xff not protobuf" if rpc == "ModelInfer" else b"", metadata))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert trailer(error, "tessera-reason") == ("session-unknown" if metadata else "session-missing")
    assert (error.details() or "").startswith(trailer(error, "tessera-reason") + ": ")


@pytest.mark.parametrize("name, version", [("other", ""), ("digits", "2"), ("", "")])
async def test_another_model_is_not_found(wire: Wire, name: str, version: str) -> None:
    """A model or version that the session is not for is NOT_FOUND, model-unknown, everywhere."""
    bad = request(images(1))
    bad.model_name, bad.model_version = name, version
    calls = [wire.call("ModelInfer", bad)]
    calls += [wire.call(rpc, getattr(pb, f"{rpc}Request")(name=name, version=version)) for rpc in ("ModelReady",)]
    for call in calls:
        error = await refused(call)
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert trailer(error, "tessera-reason") == "model-unknown"
    fine = request(images(1))
    fine.model_version = "1"
    assert (await wire.call("ModelInfer", fine)).model_version == "1"


async def test_a_bad_tensor_costs_nothing_and_the_server_stays_up(wire: Wire) -> None:
    """INVALID_ARGUMENT naming the tensor; no record, no reservation; the next request is answered."""
    bad = request(images(2))
    bad.inputs[0].shape[0] = -2
    error = await refused(wire.call("ModelInfer", bad))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert trailer(error, "tessera-tensor") == "image"
    error = await refused(wire.call("ModelInfer", b"\xff\xff\xff"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert wire.node.ledger.records == []
    assert wire.node.gate.outstanding == 0
    await wire.call("ModelInfer", request(images(1)))


async def test_one_byte_too_many_names_the_tensor(wire: Wire) -> None:
    """A message one byte above the limit is INVALID_ARGUMENT, message-too-large, naming its largest tensor."""
    big = request(images(1))
    big.raw_input_contents[0] = b""
    padding = LIMITS.max_message_bytes + 1 - big.ByteSize()
    big.raw_input_contents[0] = bytes(padding - 3)
    while big.ByteSize() <= LIMITS.max_message_bytes:
        big.raw_input_contents[0] += b"\0"
    assert big.ByteSize() == LIMITS.max_message_bytes + 1
    error = await refused(wire.call("ModelInfer", big))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (trailer(error, "tessera-reason"), trailer(error, "tessera-tensor")) == ("message-too-large", "image")
    (item,) = await wire.ask([big])
    assert item.infer_response.parameters["tessera_tensor"].string_param == "image"
    assert wire.node.ledger.records == []


async def test_a_stream_answers_in_order_with_each_items_own_id(wire: Wire) -> None:
    """More frames than the window, of different sizes: every answer is its own frame's, in order."""
    frames = [images(1 + i % 5, seed=i) for i in range(20)]
    items = await wire.ask(request(x, f"f{i}") for i, x in enumerate(frames))
    assert [item.infer_response.id for item in items] == [f"f{i}" for i in range(20)]
    for item, x in zip(items, frames, strict=True):  # rounding depends on who shares a batch (rule W-58)
        found = np.frombuffer(item.infer_response.raw_output_contents[0], "<f4")
        np.testing.assert_allclose(found, np.frombuffer(wire.truth(x), "<f4"), rtol=1e-4, atol=1e-6)
    assert all(item.error_message == "" for item in items)
    assert [record.request_id for record in wire.node.ledger.records] == [f"f{i}" for i in range(20)]


async def test_frames_of_one_stream_share_batches(wire: Wire) -> None:
    """What is in flight while the ledger writes shares the next batches: fewer transactions than frames."""
    wire.node.ledger.gate.clear()
    stream = wire.stream()
    for index in range(4):
        await stream.write(request(images(1), f"f{index}"))
    assert await asyncio.to_thread(wire.node.ledger.entered.wait, 5)
    wire.node.ledger.gate.set()
    await stream.done_writing()
    assert [item.infer_response.id async for item in stream] == ["f0", "f1", "f2", "f3"]
    assert sum(wire.node.ledger.transactions) == 4


async def test_a_refused_item_does_not_end_the_stream(wire: Wire) -> None:
    """Bad bytes, a bad tensor and a conflict are items of their own with id and reason; the others are answered."""
    good = request(images(1), "good")
    bad = request(images(1), "bad")
    bad.inputs[0].datatype = "FP32"
    conflict = request(images(1, seed=5), "good")
    items = await wire.ask([good, b"\xff\xff", bad, conflict, request(images(2), "last")])
    reasons = [item.infer_response.parameters["tessera_reason"].string_param for item in items]
    assert reasons == ["", "malformed", "invalid-tensor", "request-id-conflict", ""]
    assert [item.infer_response.id for item in items] == ["good", "", "bad", "good", "last"]
    assert [bool(item.error_message) for item in items] == [False, True, True, True, False]
    assert items[2].error_message.startswith("invalid-tensor: ")
    assert [record.request_id for record in wire.node.ledger.records] == ["good", "last"]


async def test_triton_grpc_error_closes_the_stream_with_the_status(wire: Wire) -> None:
    """With that metadata the first failure is the stream's status."""
    bad = request(images(1), "bad")
    bad.inputs[0].datatype = "FP32"
    stream = wire.stream((*wire.metadata, ("triton_grpc_error", "true")))
    await stream.write(request(images(1), "good"))
    assert (await stream.read()).infer_response.id == "good"
    await stream.write(bad)
    error = await refused(stream.read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert trailer(error, "tessera-reason") == "invalid-tensor"


async def test_a_stream_without_a_session_is_refused_as_a_whole(wire: Wire) -> None:
    """UNAUTHENTICATED with a reason, not an item."""
    error = await refused(wire.ask([request(images(1))], ()))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert trailer(error, "tessera-reason") == "session-missing"


async def test_a_receipt_travels_as_a_parameter_in_a_stream(wire: Wire) -> None:
    """Asked for by a parameter of the request, given as `tessera_receipt`; other items have none."""
    wants = request(images(1), "with")
    wants.parameters["tessera_receipt"].bool_param = True
    with_, without = await wire.ask([wants, request(images(1), "without")])
    receipt = with_.infer_response.parameters["tessera_receipt"].string_param
    assert verify_receipt(receipt, keys.NODES).request_id == "with"
    assert "tessera_receipt" not in without.infer_response.parameters


async def test_a_quota_runs_out_in_the_middle_of_a_stream(wire: Wire) -> None:
    """Exactly the quota is answered; the rest are quota-exhausted, uncharged; a retry of a charged one is answered."""
    metadata = wire.session(Terms("digits", quota=Quota(3, "total")))
    items = await wire.ask([request(images(1), f"f{i}") for i in range(5)], metadata)
    reasons = [item.infer_response.parameters["tessera_reason"].string_param for item in items]
    assert reasons == ["", "", "", "quota-exhausted", "quota-exhausted"]
    assert len(wire.node.ledger.records) == 3
    (again,) = await wire.ask([request(images(1), "f1")], metadata)
    assert again.infer_response.parameters["tessera_sequence"].int64_param == 2


async def test_a_client_that_goes_away_leaves_nothing_behind(wire: Wire) -> None:
    """A cancelled stream with frames in flight: every permit is settled and charges equal records."""
    wire.node.ledger.gate.clear()
    stream = wire.stream()
    for index in range(4):
        await stream.write(request(images(1), f"f{index}"))
    assert await asyncio.to_thread(wire.node.ledger.entered.wait, 5)
    stream.cancel()
    wire.node.ledger.gate.set()
    await wire.call("ModelInfer", request(images(1), "after"))
    batcher = wire.node.models.ready_variant(wire.sealed.manifest.package_id, 1)
    await batcher._idle.wait()
    assert wire.node.gate.outstanding == 0
    assert wire.node.ledger.records[-1].request_id == "after"


async def test_the_window_holds_a_fast_sender_back(wire: Wire) -> None:
    """With the ledger held, at most the window and two more frames are in the server's care, however many are sent."""
    wire.node.ledger.gate.clear()
    stream = wire.stream()

    async def send() -> None:
        for index in range(40):
            await stream.write(request(images(1), f"f{index}"))
        await stream.done_writing()

    sender = asyncio.create_task(send())
    assert await asyncio.to_thread(wire.node.ledger.entered.wait, 5)
    await wire.call("ServerLive", pb.ServerLiveRequest())
    assert wire.node.gate.outstanding <= LIMITS.max_stream_window + 2
    wire.node.ledger.gate.set()
    await sender
    assert len([item async for item in stream]) == 40


async def test_what_is_said_without_a_session(wire: Wire) -> None:
    """Live, ready and metadata of the server are for everyone."""
    assert (await wire.call("ServerLive", pb.ServerLiveRequest(), ())).live
    assert (await wire.call("ServerReady", pb.ServerReadyRequest(), ())).ready
    assert "streaming" in (await wire.call("ServerMetadata", pb.ServerMetadataRequest(), ())).extensions
    wire.node.gate.drain()
    assert not (await wire.call("ServerReady", pb.ServerReadyRequest(), ())).ready
    error = await refused(wire.call("ModelInfer", request(images(1))))
    assert (error.code(), trailer(error, "tessera-reason")) == (grpc.StatusCode.UNAVAILABLE, "draining")


async def test_what_is_said_of_a_model(wire: Wire) -> None:
    """Readiness, metadata, configuration, statistics and index agree with the manifest and with what was run."""
    named = {"name": "digits"}
    await wire.call("ModelInfer", request(images(3)))
    assert (await wire.call("ModelReady", pb.ModelReadyRequest(**named))).ready
    metadata = await wire.call("ModelMetadata", pb.ModelMetadataRequest(**named))
    assert list(metadata.inputs[0].shape) == [-1, 1, 8, 8]
    config = (await wire.call("ModelConfig", pb.ModelConfigRequest(**named))).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (16, [1, 8, 8])
    assert config.HasField("dynamic_batching")
    (stats,) = (await wire.call("ModelStatistics", pb.ModelStatisticsRequest())).model_stats
    assert (stats.inference_count, stats.execution_count) == (3, 1)
    assert stats.inference_stats.success.ns >= stats.inference_stats.compute_infer.ns > 0
    assert [batch.batch_size for batch in stats.batch_stats] == [3]
    (entry,) = (await wire.call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True))).models
    assert (entry.name, entry.version, entry.state) == ("digits", "1", "READY")


async def test_an_unloaded_model_is_unavailable_and_says_so(wire: Wire) -> None:
    """model-not-ready for inference, ready=false, UNAVAILABLE in the index; nothing is reserved."""
    await wire.node.models.unload("digits")
    error = await refused(wire.call("ModelInfer", request(images(1))))
    assert (error.code(), trailer(error, "tessera-reason")) == (grpc.StatusCode.UNAVAILABLE, "model-not-ready")
    assert not (await wire.call("ModelReady", pb.ModelReadyRequest(name="digits"))).ready
    (entry,) = (await wire.call("RepositoryIndex", pb.RepositoryIndexRequest())).models
    assert (entry.state, entry.reason) == ("UNAVAILABLE", "unloaded")
    assert (await wire.call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True))).models == []
    assert wire.node.gate.outstanding == 0


async def test_a_deadline_reaches_the_queue(wire: Wire) -> None:
    """A call whose deadline passes while the ledger is held ends for the client, and its permit is settled."""
    wire.node.ledger.gate.clear()
    error = await refused(wire.call("ModelInfer", request(images(1), "slow"), timeout=0.2))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wire.node.ledger.gate.set()
    assert (await wire.call("ModelInfer", request(images(1), "slow"))).id == "slow"
    assert wire.node.gate.outstanding == 0
    assert len(wire.node.ledger.records) == 1
