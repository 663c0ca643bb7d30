"""An unmodified tritonclient against the real appliance over TLS: right answers with the session header, else none."""

import asyncio
import queue
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from support.appliance import PLAIN, Site, running
from support.models import Digits, seeded

Image = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A running appliance with one plain model."""
    async with running(tmp_path, (PLAIN,)) as made:
        yield made


async def headers(site: Site) -> dict[str, str]:
    """Return the session header of a fresh session."""
    return {"authorization": f"Bearer {(await site.open()).session_token}"}


def images(samples: int) -> Image:
    """Return random images."""
    return np.random.default_rng(samples).integers(0, 256, (samples, 1, 8, 8), np.uint8)


def truth(x: Image) -> np.ndarray[Any, Any]:
    """Return what the vendor's module gives in this process."""
    with torch.inference_mode():
        logits: np.ndarray[Any, Any] = seeded(Digits)(torch.from_numpy(x)).numpy()
        return logits


def same(found: np.ndarray[Any, Any], x: Image) -> bool:
    """Tell whether `found` are the logits of `x`, up to the rounding that depends on who shares a batch (rule W-58)."""
    return found.shape == (len(x), 10) and np.allclose(found, truth(x), rtol=1e-4, atol=1e-6)


def tensor(module: Any, x: Image) -> Any:
    """Return tritonclient's input for images."""
    made = module.InferInput("image", x.shape, "UINT8")
    made.set_data_from_numpy(x)
    return made


def connect(module: Any, site: Site) -> Any:
    """Return tritonclient's client for the site."""
    roots = str(site.directory / "ca.pem")
    return module.InferenceServerClient(site.target, ssl=True, root_certificates=roots)


async def test_aio_unary(site: Site) -> None:
    """The asyncio client infers, reads metadata, configuration and statistics."""
    x, session = images(5), await headers(site)
    async with connect(triton_aio, site) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("digits", headers=session)
        answer = await client.infer("digits", [tensor(triton_aio, x)], request_id="t-1", headers=session)
        assert same(answer.as_numpy("logits"), x)
        assert answer.get_response().id == "t-1"
        outputs = [triton_aio.InferRequestedOutput("logits")]
        again = await client.infer("digits", [tensor(triton_aio, x)], "1", outputs=outputs, headers=session)
        assert same(again.as_numpy("logits"), x)
        metadata = await client.get_model_metadata("digits", headers=session, as_json=True)
        assert metadata["inputs"][0]["shape"] == ["-1", "1", "8", "8"]
        config = await client.get_model_config("digits", headers=session, as_json=True)
        assert config["config"]["max_batch_size"] == 16
        statistics = await client.get_inference_statistics("digits", headers=session, as_json=True)
        assert statistics["model_stats"][0]["inference_count"] == "10"
        index = await client.get_model_repository_index(headers=session, as_json=True)
        assert index["models"][0]["name"] == "digits"
        server = await client.get_server_metadata(as_json=True)
        assert server["name"] == "tessera"


async def test_aio_stream(site: Site) -> None:
    """The asyncio client's stream gives every frame's own answer, in order, and goes on after an error."""
    session = await headers(site)
    frames = [images(1 + i % 4) for i in range(12)]

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for index, x in enumerate(frames):
            yield {"model_name": "digits", "inputs": [tensor(triton_aio, x)], "request_id": f"f{index}"}
        yield {"model_name": "other", "inputs": [tensor(triton_aio, frames[0])], "request_id": "bad"}
        yield {"model_name": "digits", "inputs": [tensor(triton_aio, frames[0])], "request_id": "last"}

    async with connect(triton_aio, site) as client:
        got = [item async for item in client.stream_infer(requests(), headers=session)]
    assert [error for _, error in got[:12]] == [None] * 12
    for (answer, _), x in zip(got, frames, strict=False):
        assert same(answer.as_numpy("logits"), x)
    assert got[12][0] is None
    assert "model-unknown" in str(got[12][1])
    assert same(got[13][0].as_numpy("logits"), frames[0])


async def test_sync_unary_and_stream(site: Site) -> None:
    """The synchronous client, from a thread of its own, in both styles."""
    session = await headers(site)
    x = images(3)

    def talk() -> list[Any]:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        with connect(triton, site) as client:
            unary = client.infer("digits", [tensor(triton, x)], headers=session)
            client.start_stream(lambda result, error: answers.put((result, error)), headers=session)
            for index in range(4):
                client.async_stream_infer("digits", [tensor(triton, x)], request_id=f"s{index}")
            streamed = [answers.get(timeout=20) for _ in range(4)]
            client.stop_stream()
        assert [error for _, error in streamed] == [None] * 4
        assert [result.get_response().id for result, _ in streamed] == [f"s{index}" for index in range(4)]
        return [unary.as_numpy("logits"), *(result.as_numpy("logits") for result, _ in streamed)]

    for logits in await asyncio.to_thread(talk):
        assert same(logits, x)


async def test_without_the_header_there_is_no_answer(site: Site) -> None:
    """Unary and stream, sync and aio: UNAUTHENTICATED, with the reason in the message."""
    x = images(1)

    def talk() -> Any:
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        with connect(triton, site) as client:
            with pytest.raises(InferenceServerException) as unary:
                client.infer("digits", [tensor(triton, x)])
            client.start_stream(lambda result, error: answers.put((result, error)))
            _, streamed = answers.get(timeout=20)
            client.stop_stream()
        return unary.value, streamed

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "digits", "inputs": [tensor(triton_aio, x)]}

    refusals = list(await asyncio.to_thread(talk))
    async with connect(triton_aio, site) as client:
        with pytest.raises(InferenceServerException) as caught:
            await client.infer("digits", [tensor(triton_aio, x)])
        refusals.append(caught.value)
        with pytest.raises(grpc.aio.AioRpcError) as streamed:  # this one hands on gRPC's own error
            _ = [item async for item in client.stream_infer(requests())]
    assert streamed.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert (streamed.value.details() or "").startswith("session-missing: ")
    assert len(refusals) == 3
    for refusal in refusals:
        assert refusal.status() == "StatusCode.UNAUTHENTICATED"
        assert "session-missing" in refusal.message()
    assert site.appliance.node.store.usage_totals() == []
