"""The composition root: an answer through the whole appliance, charged once, in the ledger, across a restart."""

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest

from support.appliance import PASSPHRASE, Site, bearer, header, running
from tessera.keystore.licence import Quota
from tessera.keystore.usage import verify_receipt
from tessera.oip.v1 import inference_pb2 as oip
from tessera.server.app import Appliance
from tessera.server.config import Limits
from tessera.v1 import licensing_pb2 as pb

pytestmark = pytest.mark.slow


async def infer(site: Site, token: str, request_id: str, samples: int = 1, fill: int = 1) -> oip.ModelInferResponse:
    """Run a request of constant images."""
    call = site.channel().unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelInferResponse.FromString,
    )
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[samples, 1, 8, 8])
    raw = np.full((samples, 1, 8, 8), fill, np.uint8).tobytes()
    request = oip.ModelInferRequest(model_name="digits", id=request_id, inputs=[tensor], raw_input_contents=[raw])
    running_call = call(request, metadata=(*bearer(token), ("tessera-receipt", "1")), timeout=10)
    answer: oip.ModelInferResponse = await running_call
    receipt = dict(await running_call.trailing_metadata())["tessera-receipt"]
    record = verify_receipt(str(receipt), {site.node.key_id: site.node.verify_key})
    assert (record.request_id, record.samples) == (request_id, samples)
    return answer


async def test_answers_are_charged_once_and_survive_a_restart(tmp_path: Path) -> None:
    """The quota is used by fresh requests, not by retries, not even after it is used up or after a restart."""
    async with running(tmp_path) as site:
        licence = site.licence(quota=Quota(3))
        token = (await site.open(licence)).session_token
        first = await infer(site, token, "r-1", samples=2)
        again = await infer(site, token, "r-1", samples=2)
        assert first.raw_output_contents == again.raw_output_contents
        await infer(site, token, "r-2")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await infer(site, token, "r-3")
        assert (caught.value.code(), header(caught.value, "tessera-reason")) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "quota-exhausted",
        )
        await infer(site, token, "r-2")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await infer(site, token, "r-2", fill=2)
        assert (caught.value.code(), header(caught.value, "tessera-reason")) == (
            grpc.StatusCode.ALREADY_EXISTS,
            "request-id-conflict",
        )
        used = (await site.licensing().GetUsage(pb.GetUsageRequest(), metadata=bearer(token))).usage
        assert (used.requests, used.samples, used.samples_left) == (2, 3, 0)
    async with Appliance(site.settings(), passphrase=PASSPHRASE, clock=site.clock) as appliance:
        site.running = appliance
        token = (await site.open(licence)).session_token
        await infer(site, token, "r-1", samples=2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await infer(site, token, "r-4")
        assert header(caught.value, "tessera-reason") == "quota-exhausted"
        await site.close()


async def test_sealing_stops_inference_with_a_reason(tmp_path: Path) -> None:
    """Once sealed the same token is answered UNAVAILABLE store-sealed."""
    async with running(tmp_path) as site:
        token = (await site.open()).session_token
        await infer(site, token, "r-1")
        await site.appliance.node.seal()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await infer(site, token, "r-2")
        assert (caught.value.code(), header(caught.value, "tessera-reason")) == (
            grpc.StatusCode.UNAVAILABLE,
            "store-sealed",
        )
        await site.appliance.node.unseal(PASSPHRASE)
        await infer(site, (await site.open()).session_token, "r-2")


async def test_a_client_may_keep_an_idle_stream_alive(tmp_path: Path) -> None:
    """Pings at the pace that the server allows end nothing; gRPC's own limit is one in five minutes."""
    pace = [("grpc.keepalive_time_ms", 1000), ("grpc.http2.max_pings_without_data", 0)]
    async with running(tmp_path, limits=Limits(client_ping_s=0.05)) as site:
        token = (await site.open()).session_token
        credentials = grpc.ssl_channel_credentials(site.root_certificates)
        async with grpc.aio.secure_channel(site.target, credentials, options=pace) as channel:
            stream = channel.stream_stream(
                "/inference.GRPCInferenceService/ModelStreamInfer",
                request_serializer=oip.ModelInferRequest.SerializeToString,
                response_deserializer=oip.ModelStreamInferResponse.FromString,
            )(metadata=bearer(token))
            await stream.write(oip.ModelInferRequest(id="first"))
            answer = await stream.read()
            assert isinstance(answer, oip.ModelStreamInferResponse)
            assert answer.infer_response.id == "first"
            silence = asyncio.ensure_future(stream.read())
            await asyncio.wait((silence,), timeout=5)  # gRPC pings once a second at most; the third was too many
            assert not silence.done()
            stream.cancel()
            await asyncio.wait((silence,))
