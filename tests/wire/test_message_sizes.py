"""Requests and answers that would not fit into one message: split where that helps, else refused in good time."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from torch import nn

from support import keys
from support.appliance import PLAIN, Site, bearer, header, running
from support.background import expected, images
from support.models import seal
from tessera.client import AsyncClient, MessageTooLarge
from tessera.keystore import grant as grants
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.licence import LicenceFile, Terms
from tessera.keystore.package import TensorSpec
from tessera.oip.v1 import inference_pb2 as oip
from tessera.server.config import Limits
from tessera.server.services.sizes import FRAME_BYTES, PORT_BYTES
from tessera.v1 import admin_pb2

pytestmark = pytest.mark.slow

AROUND = FRAME_BYTES + PORT_BYTES
"""What is reserved in a message with one tensor."""
IN_BYTES, OUT_BYTES = 64, 40
"""One sample of the digits model: 1x8x8 of uint8 in, ten float32 out."""


def client(site: Site, **settings: Any) -> AsyncClient:
    """Return a client with a fresh licence for the digits."""
    licence = site.licence()
    held = LicenceFile(licence.token, site.grant(licence, kind=PLAIN).token)
    return AsyncClient(
        site.target, identity=keys.BUYER, licence=held, root_certificates=site.root_certificates, **settings
    )


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        (Limits(max_message_bytes=AROUND + 3 * IN_BYTES), 3),
        (Limits(max_message_bytes=AROUND + 4 * IN_BYTES - 1), 3),
        (Limits(max_tensor_bytes=5 * IN_BYTES), 5),
        (Limits(max_answer_bytes=AROUND + 2 * OUT_BYTES), 2),
        (Limits(), 16),
    ],
)
async def test_the_contract_says_how_many_samples_fit(tmp_path: Path, limits: Limits, most: int) -> None:
    """So a batch of any length is split into requests whose messages keep to the server's limits, both ways."""
    async with running(tmp_path, limits=limits) as site, client(site) as caller:
        assert (await caller.contract("digits")).max_batch == most
        x = images(20)
        answer = await caller.infer_detailed("digits", x)
        assert [record.samples for record in answer.receipts] == [most] * (20 // most) + [20 % most] * (20 % most > 0)
        assert np.allclose(answer.output, expected(x), atol=1e-5)
        packed = [scores async for scores in caller.stream("digits", x, pack=most)]
        assert np.allclose(np.stack(packed), expected(x), atol=1e-5)


async def test_a_batch_is_never_larger_than_the_queue(tmp_path: Path) -> None:
    """A queue shorter than the package's largest batch: the contract says so, and what it allows is answered."""
    async with running(tmp_path, limits=Limits(max_queue_samples=5)) as site, client(site) as caller:
        assert (await caller.contract("digits")).max_batch == 5
        x = images(12)
        assert np.allclose(await caller.infer("digits", x), expected(x), atol=1e-5)


async def test_an_answer_that_could_not_travel_is_refused_before_inference(tmp_path: Path) -> None:
    """Also for callers who do not split; nothing is charged, and the remedy says what to do."""
    async with running(tmp_path, limits=Limits(max_answer_bytes=AROUND + 2 * OUT_BYTES)) as site:
        opened = await site.open()
        raw = images(16)
        tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=raw.shape)
        request = oip.ModelInferRequest(model_name="digits", inputs=[tensor], raw_input_contents=[raw.tobytes()])
        call = site.channel().unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError, match="640 bytes") as caught:
            await call(request, metadata=bearer(opened.session_token))
        assert header(caught.value, "tessera-reason") == "message-too-large"
        assert "fewer samples" in header(caught.value, "tessera-remedy")
        async with client(site) as other:
            assert (await other.usage("digits")).samples == 0


async def test_a_model_whose_samples_do_not_fit_opens_no_session(tmp_path: Path) -> None:
    """The buyer learns which setting the operator has to raise; no seat is taken."""
    async with (
        running(tmp_path, limits=Limits(max_answer_bytes=AROUND + OUT_BYTES - 1)) as site,
        client(site) as caller,
    ):
        with pytest.raises(MessageTooLarge) as caught:
            await caller.contract("digits")
        assert "TESSERA_LIMITS__MAX_ANSWER_BYTES=1048576" in caught.value.remedy
        status = await site.admin().GetStatus(admin_pb2.GetStatusRequest())
        assert status.sessions == 0


async def test_a_client_keeps_to_its_own_limit(tmp_path: Path) -> None:
    """It splits for it, and refuses before it sends what could not come back."""
    async with running(tmp_path) as site:
        async with client(site, max_message_bytes=AROUND + 7 * IN_BYTES) as caller:
            answer = await caller.infer_detailed("digits", images(16))
            assert [record.samples for record in answer.receipts] == [7, 7, 2]
        async with client(site, max_message_bytes=AROUND + OUT_BYTES) as caller:
            with pytest.raises(MessageTooLarge, match="request of one sample") as caught:
                await caller.infer("digits", images(1))
            assert f"max_message_bytes={AROUND + IN_BYTES}" in caught.value.remedy
            assert (await caller.usage("digits")).samples == 0
            with pytest.raises(MessageTooLarge):
                _ = [scores async for scores in caller.stream("digits", images(2))]


class Frames(nn.Module):
    """Full-HD frames in, a map of twelve scores a pixel out: 6 MB and 100 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 12, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the scores."""
        scores: torch.Tensor = self.mix(image.float() / 255)
        return scores


async def test_full_hd_frames_and_their_maps_travel_once_the_limits_are_raised(tmp_path: Path) -> None:
    """What the guide tells operator and buyer to set is enough; with less each is told what is missing."""
    inputs = (TensorSpec("image", "UINT8", (-1, 3, 1080, 1920), "NCHW"),)
    outputs = (TensorSpec("scores", "FP32", (-1, 12, 1080, 1920)),)
    sealed = await asyncio.to_thread(
        lambda: seal(tmp_path, Frames().eval(), model="frames", inputs=inputs, outputs=outputs, max_batch=2)
    )
    limits = Limits(max_message_bytes=8 * 2**20, max_answer_bytes=128 * 2**20, max_batch_samples=2)
    async with running(tmp_path / "site", limits=limits, arithmetic="exact") as site:
        await site.admin().PublishModel(admin_pb2.PublishModelRequest(path=str(sealed.path)))
        licence = site.licence(Terms("frames"))
        secrets = PackageSecrets(sealed.manifest.package_id, keys.CONTENT_KEY, None)
        now_s = site.clock.now_s()
        grant = grants.issue(
            licence, issuer=keys.ISSUER, secrets=secrets, buyer=keys.BUYER.public, node=site.node, now_s=now_s
        )
        held: dict[str, Any] = {"identity": keys.BUYER, "licence": LicenceFile(licence.token, grant.token)}
        held |= {"root_certificates": site.root_certificates, "timeout_s": 60.0}
        frame = np.random.default_rng(0).integers(0, 256, (3, 1080, 1920), dtype=np.uint8)
        async with AsyncClient(site.target, **held) as small:
            with pytest.raises(MessageTooLarge, match="answer of one sample") as caught:
                await small.infer("frames", frame)
            needed = int(caught.value.remedy.rpartition("=")[2].split()[0])
            assert 12 * 4 * 1080 * 1920 < needed < 96 * 2**20
        async with AsyncClient(site.target, **held, max_message_bytes=needed) as enough:
            found = await enough.infer("frames", frame)
        with torch.inference_mode():
            wanted = sealed.module(torch.from_numpy(frame[None]))[0].numpy()
        assert np.allclose(found, wanted, atol=1e-5)
