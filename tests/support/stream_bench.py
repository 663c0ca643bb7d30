"""A bench for the client's stream machine: the pipeline and the simulated node that answers it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from support.buyer import SimNode, contract, core, drive, images, scores
from tessera.client._pipeline import Pipeline, Reconnect
from tessera.client._plans import session_of
from tessera.client._request import Prepared
from tessera.oip.v1 import inference_pb2 as oip


class Bench:
    """A pipeline, the node that answers it, and the keyed frames it was given."""

    def __init__(self, *, retries: int = 3, **options: Any) -> None:
        self.node = SimNode(contract=contract(max_batch=8))
        using = core(time=self.node.time, retries=retries)
        self.session = drive(session_of(using.credentials.held[0]), self.node, using)
        settings: dict[str, Any] = {"window": 4, "pack": 1, "on_error": "raise", "timeout_s": 10.0}
        self.pipeline = Pipeline(using, self.session, **(settings | options))

    def offer(self, *frames: Any) -> None:
        """Offer frames, then end."""
        for frame in frames:
            self.pipeline.offer(frame)
        self.pipeline.end()

    def take(self, lane: int = 0, now_s: float = 0.0) -> Prepared:
        """Take a request that must be there."""
        sent = self.pipeline.take(lane, now_s)
        assert sent is not None
        return sent

    def answer(self, sent: Prepared, lane: int = 0, now_s: float = 0.0) -> Reconnect | None:
        """Give the right answer with its receipt."""
        response = oip.ModelStreamInferResponse(infer_response=self.node.inferred(sent.message))
        response.infer_response.parameters["tessera_receipt"].string_param = self.node.receipt(sent.message)
        return self.pipeline.receive(lane, response, now_s)

    def refuse(self, sent: Prepared, reason: str, lane: int = 0, now_s: float = 0.0) -> Reconnect | None:
        """Refuse one item as our server does."""
        response = oip.ModelStreamInferResponse(error_message=f"{reason}: not this one")
        response.infer_response.id = sent.request_id
        response.infer_response.parameters["tessera_reason"].string_param = reason
        return self.pipeline.receive(lane, response, now_s)

    def expected(self, frame: Any) -> Any:
        """What the model says of a single frame."""
        return scores(self.session.keying({"image": frame[np.newaxis]})["image"])[0]


def frames(count: int) -> Sequence[Any]:
    """Return single samples."""
    return list(images(count))
