"""The boundary on a real server: all kinds of call, both styles, nothing but our words."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import structlog
from google.rpc import status_pb2

from tessera.keystore.errors import Denied, Malformed
from tessera.server.boundary import Boundary

LEAK = "key=SECRET"
KINDS = ("unary_unary", "unary_stream", "unary_write", "stream_unary", "stream_stream", "stream_rw")


class Counted:
    """What the boundary has counted."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.refusals: list[str] = []

    def request(self, rpc: str, code: str, seconds: float) -> None:
        """Note a call."""
        assert seconds >= 0
        self.requests.append((rpc, code))

    def refusal(self, reason: str) -> None:
        """Note a refusal."""
        self.refusals.append(reason)


def parse(raw: bytes) -> bytes:
    """A request's bytes; some of them do not decode."""
    if raw == b"undecodable":
        raise ValueError(LEAK)
    return raw


class Handlers:
    """One method of each kind and style; each does what `act` says, after one answer where it streams."""

    def __init__(self, act: Callable[[], Awaitable[None]]) -> None:
        self._act = act

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        """Answer once."""
        context.set_trailing_metadata((("kept", "yes"),))
        await self._act()
        return request

    async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Answer by yielding."""
        yield request
        await self._act()

    async def unary_write(self, request: bytes, context: Any) -> None:
        """Answer by writing."""
        await context.write(request)
        await self._act()

    async def stream_unary(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        """Answer the last request."""
        last = b""
        async for request in requests:
            last = request
        await self._act()
        return last

    async def stream_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer each request by yielding."""
        async for request in requests:
            yield request
        await self._act()

    async def stream_rw(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """Answer each request by reading and writing."""
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)
        await self._act()


@asynccontextmanager
async def server(act: Callable[[], Awaitable[None]]) -> AsyncIterator[tuple[grpc.aio.Channel, Counted]]:
    """A server of `Handlers` behind the boundary, and a channel to it."""
    counted, handlers = Counted(), Handlers(act)
    table = {
        kind: getattr(grpc, f"{_shape(kind)}_rpc_method_handler")(
            getattr(handlers, kind), request_deserializer=parse, response_serializer=bytes
        )
        for kind in KINDS
    }
    running = grpc.aio.server(interceptors=(Boundary(counted, max_message_bytes=1000),))
    running.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", table),))
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel, counted
    await running.stop(None)


def _shape(kind: str) -> str:
    return {"unary_write": "unary_stream", "stream_rw": "stream_stream", "other": "unary_unary"}.get(kind, kind)


async def call(channel: grpc.aio.Channel, kind: str, raw: bytes = b"hello", **how: Any) -> tuple[list[bytes], Any]:
    """Call one method; return its answers and the finished call."""
    made = getattr(channel, _shape(kind))(f"/t.T/{kind}")
    request = iter([raw]) if kind.startswith("stream") else raw
    running = made(request, timeout=10, **how)
    if _shape(kind).endswith("_unary"):
        return [await running], running
    return [answer async for answer in running], running


async def refused(channel: grpc.aio.Channel, kind: str, raw: bytes = b"hello", **how: Any) -> grpc.aio.AioRpcError:
    """Call one method that is refused; return the error."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, kind, raw, **how)
    return caught.value


async def leak() -> None:
    """Raise what must not get out."""
    raise ValueError(LEAK)


async def nothing() -> None:
    """Do nothing."""


@pytest.mark.parametrize("kind", KINDS)
async def test_a_bare_exception_is_one_word(kind: str) -> None:
    """`ValueError("key=SECRET")` reaches the peer, the metadata and the log as an internal error, for every kind."""
    with structlog.testing.capture_logs() as logs:
        async with server(leak) as (channel, counted):
            error = await refused(channel, kind)
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal: internal error")
    assert "SECRET" not in f"{error} {error.trailing_metadata()} {logs}"
    assert [(log["error"], log["rpc"]) for log in logs] == [("ValueError", f"t.T/{kind}")]
    assert counted.requests == [(f"t.T/{kind}", "INTERNAL")]
    assert counted.refusals == ["internal"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refusal_keeps_its_words(kind: str) -> None:
    """A typed refusal arrives with status, reason, remedy and rich status, for every kind."""

    async def deny() -> None:
        raise Denied("no", reason="licence-expired", remedy="renew it")

    async with server(deny) as (channel, counted):
        error = await refused(channel, kind, metadata=(("x-request-id", "call-7"),))
    trailing = dict(error.trailing_metadata() or ())
    assert (error.code(), error.details()) == (grpc.StatusCode.PERMISSION_DENIED, "licence-expired: no")
    assert (trailing["tessera-reason"], trailing["tessera-remedy"]) == ("licence-expired", "renew it")
    assert trailing["x-request-id"] == "call-7"
    raw = trailing["grpc-status-details-bin"]
    assert isinstance(raw, bytes)
    assert status_pb2.Status.FromString(raw).code == 7
    assert counted.refusals == ["licence-expired"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_good_call_passes(kind: str) -> None:
    """An answer is untouched, the caller's id comes back, metadata set by the handler stays, the call is counted."""
    async with server(nothing) as (channel, counted):
        answers, finished = await call(channel, kind, metadata=(("x-request-id", "call-7"),))
        trailing = dict(await finished.trailing_metadata())
    assert answers == [b"hello"]
    assert trailing["x-request-id"] == "call-7"
    assert ("kept" in trailing) == (kind == "unary_unary")
    assert counted.requests == [(f"t.T/{kind}", "OK")]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_does_not_decode_is_malformed(kind: str) -> None:
    """A decoder's exception is answered in our words, for every kind."""
    async with server(nothing) as (channel, _):
        error = await refused(channel, kind, b"undecodable")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "SECRET" not in str(error)
    assert (error.details() or "").startswith("malformed: ")


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_too_large_is_refused_with_a_reason(kind: str) -> None:
    """One byte over the limit is INVALID_ARGUMENT message-too-large, at the limit it passes."""
    async with server(nothing) as (channel, _):
        assert (await call(channel, kind, b"x" * 1000))[0] == [b"x" * 1000]
        error = await refused(channel, kind, b"x" * 1001)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.details() or "").startswith("message-too-large: ")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_caller_who_goes_away_is_no_fault(kind: str) -> None:
    """Cancellation passes through untouched and is counted as such."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with server(wait) as (channel, counted):
        made = getattr(channel, _shape(kind))(f"/t.T/{kind}")
        running = made(iter([b"hello"]) if kind.startswith("stream") else b"hello")
        await begun.wait()
        running.cancel()
        await asyncio.wait_for(ended.wait(), 5)
    assert counted.requests == [(f"t.T/{kind}", "CANCELLED")]
    assert counted.refusals == []


@pytest.mark.parametrize("sent", ["x" * 129, ""])
async def test_an_unfit_request_id_is_replaced(sent: str) -> None:
    """An id that is too long or empty is not repeated; a refusal carries one of ours."""

    async def refuse() -> None:
        raise Malformed("no")

    async with server(refuse) as (channel, _):
        error = await refused(channel, "unary_unary", metadata=(("x-request-id", sent),))
    given = dict(error.trailing_metadata() or ())["x-request-id"]
    assert given != sent
    assert len(given) == 32


async def test_an_unknown_method_is_grpcs_to_answer() -> None:
    """A method that is not registered is UNIMPLEMENTED and never becomes a label."""
    async with server(nothing) as (channel, counted):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "other")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert counted.requests == []
