"""The load: closed loops over the wire, the same bytes for every server, and the in-process limit beside them."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import grpc
import numpy as np
import numpy.typing as npt

from tessera.client import AsyncClient
from tessera.keystore.usage import verify_receipt
from tessera.oip.v1 import PUBLIC_SERVICE
from tessera.oip.v1 import inference_pb2 as pb

Images = npt.NDArray[np.uint8]
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Target:
    """One server, and what a request to it costs the client: metadata, key, receipts."""

    address: str
    root_certificates: bytes
    metadata: Metadata
    transform: Callable[[Images], Images]
    node_keys: dict[str, bytes] | None
    """With keys, every answer's receipt is verified."""


def request_of(images: Images, target: Target, model: str) -> pb.ModelInferRequest:
    """Return one request of one or more samples, keyed as the target wants it."""
    keyed = target.transform(images)
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=keyed.shape)
    return pb.ModelInferRequest(
        model_name=model, id=uuid.uuid4().hex, inputs=[tensor], raw_input_contents=[keyed.tobytes()]
    )


class Loop:
    """Drives `concurrency` workers for `seconds` and counts answered samples."""

    def __init__(self, images: Images, model: str, seconds: float) -> None:
        self._images = images
        self._model = model
        self._seconds = seconds

    async def unary(self, target: Target, concurrency: int) -> "Seen":
        """One ModelInfer call a sample, `concurrency` at a time over one connection."""
        async with _channel(target) as channel:
            call = channel.unary_unary(
                f"/{PUBLIC_SERVICE}/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )

            async def once(index: int) -> None:
                sent = call(request_of(self._image(index), target, self._model), metadata=target.metadata)
                await sent
                if target.node_keys is not None:
                    trailing = dict(await sent.trailing_metadata() or ())
                    verify_receipt(str(trailing["tessera-receipt"]), target.node_keys)

            return await self._closed_loop(concurrency, once)

    async def streaming(self, target: Target, concurrency: int) -> "Seen":
        """`concurrency` streams, one sample on its way in each."""
        async with _channel(target) as channel:
            method = channel.stream_stream(
                f"/{PUBLIC_SERVICE}/ModelStreamInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelStreamInferResponse.FromString,
            )
            calls = [method(metadata=target.metadata) for _ in range(concurrency)]
            free = list(range(concurrency))

            async def once(index: int) -> None:
                lane = free.pop()
                await calls[lane].write(request_of(self._image(index), target, self._model))
                answer = await calls[lane].read()
                if not isinstance(answer, pb.ModelStreamInferResponse) or answer.error_message:
                    raise RuntimeError("the stream ended or an item was refused")
                if target.node_keys is not None:
                    receipt = answer.infer_response.parameters["tessera_receipt"].string_param
                    verify_receipt(receipt, target.node_keys)
                free.append(lane)

            try:
                return await self._closed_loop(concurrency, once)
            finally:
                for call in calls:
                    await call.done_writing()
                    await call.read()

    async def sdk(self, client: AsyncClient, concurrency: int, *, pack: int = 1) -> "Seen":
        """The product's own client: one stream, `concurrency` samples on their way, `pack` to a request, receipts
        verified."""
        done, started_s = 0, time.perf_counter()
        until_s = started_s + self._seconds

        async def frames() -> AsyncIterator[Images]:
            index = 0
            while time.perf_counter() < until_s:
                yield self._images[index % len(self._images)]
                index += 1

        async for _ in client.stream(self._model, frames(), window=concurrency // pack, pack=pack):
            done += 1
        return Seen(done / (time.perf_counter() - started_s), [])

    def _image(self, index: int) -> Images:
        start = index % len(self._images)
        return self._images[start : start + 1]

    async def _closed_loop(self, concurrency: int, once: Callable[[int], Awaitable[None]]) -> "Seen":
        waits: list[float] = []
        index = 0
        started_s = time.perf_counter()
        until_s = started_s + self._seconds

        async def worker() -> None:
            nonlocal index
            while (began_s := time.perf_counter()) < until_s:
                index += 1
                await once(index)
                waits.append(time.perf_counter() - began_s)

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return Seen(len(waits) / (time.perf_counter() - started_s), waits)


@dataclass(frozen=True)
class Seen:
    """Samples a second, and the seconds that each call took."""

    rate: float
    waits: list[float]

    def percentile_ms(self, share: float) -> float | None:
        """Return the given percentile of the waits in milliseconds; None where they were not taken."""
        return float(np.percentile(self.waits, share * 100)) * 1e3 if self.waits else None


def _channel(target: Target) -> grpc.aio.Channel:
    return grpc.aio.secure_channel(target.address, grpc.ssl_channel_credentials(target.root_certificates))
