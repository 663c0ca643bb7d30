"""Blocking gRPC calls by name. The generated stubs are typed for asyncio only, and the handlers of the Open Inference
Protocol answer under a name that no generated stub of ours has, so commands call both through this."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import grpc
    from google.protobuf.message import Message

    Answer = TypeVar("Answer", bound=Message)

Metadata = tuple[tuple[str, str], ...]


class Service:
    """One service, such as `tessera.v1.AdminService`, on one channel. Calls raise `grpc.RpcError`."""

    def __init__(self, channel: "grpc.Channel", name: str, *, timeout_s: float) -> None:
        self._channel = channel
        self._name = name
        self._timeout_s = timeout_s

    def call(self, method: str, request: "Message", answer: "type[Answer]", metadata: Metadata = ()) -> "Answer":
        """Call `method` and return its answer."""
        rpc = self._channel.unary_unary(
            f"/{self._name}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        result: Answer = rpc(request, timeout=self._timeout_s, metadata=metadata)
        return result

    def stream(self, method: str, request: "Message", answer: "type[Answer]") -> "Iterator[Answer]":
        """Call a method that answers with a stream and return the stream.

        It may take as long as it takes: an export grows with the ledger, so that any limit is too short one day.
        """
        rpc = self._channel.unary_stream(
            f"/{self._name}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return iter(rpc(request))
