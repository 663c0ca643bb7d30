"""The boundary's table: complete, and its words fit for a peer."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.keystore import errors
from tessera.keystore.errors import InvalidTensor, Malformed, TesseraError, Unauthenticated
from tessera.server import boundary


def tree(root: type[TesseraError]) -> set[type[TesseraError]]:
    """Every class below `root`, itself left out."""
    below = set(root.__subclasses__())
    return below.union(*(tree(kind) for kind in below)) if below else below


def test_the_table_is_complete() -> None:
    """Every class of the shared tree has an entry of its own; every other one has a class above it that has."""
    shared = {kind for kind in tree(TesseraError) if kind.__module__ == errors.__name__}
    assert shared == set(boundary.STATUS)
    of_a_server = (kind for kind in tree(TesseraError) if not kind.__module__.startswith("tessera.client."))
    for kind in of_a_server:
        assert any(base in boundary.STATUS for base in kind.__mro__), kind


def test_subclasses_take_the_nearest_status() -> None:
    """A room's own error is answered like the class it stands below."""

    class Odd(Malformed):
        """A local error."""

    assert boundary.status_of(Odd("x")) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("error", [ValueError("key=SECRET"), errors.ApiMisuse("SECRET"), TesseraError("SECRET")])
def test_faults_of_ours_have_one_face(error: Exception) -> None:
    """What is our fault is shown as one word, whatever the exception said."""
    face = boundary.public_face(error)
    assert boundary.details_of(face) == "internal: internal error"
    assert "SECRET" not in str(boundary.trailing_metadata(face, "id"))


def test_a_refusal_is_told_in_three_ways() -> None:
    """Details, plain metadata and rich status say the same reason; the tensor and the remedy are there."""
    error = InvalidTensor("tensor x is wrong", tensor="x", remedy="send floats")
    pairs = dict(boundary.trailing_metadata(error, "id-1"))
    assert boundary.details_of(error) == "invalid-tensor: tensor x is wrong"
    assert (pairs["tessera-reason"], pairs["tessera-remedy"]) == ("invalid-tensor", "send floats")
    assert (pairs["tessera-tensor"], pairs["x-request-id"]) == ("x", "id-1")
    raw = pairs["grpc-status-details-bin"]
    assert isinstance(raw, bytes)
    status = status_pb2.Status.FromString(raw)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, info.reason, info.domain) == (3, "invalid-tensor", "tessera")
    assert dict(info.metadata) == {"tensor": "x", "remedy": "send floats"}


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=2000), st.text(max_size=2000), st.text(max_size=2000))
def test_any_words_make_valid_metadata(public: str, remedy: str, tensor: str) -> None:
    """Whatever an error says, the metadata is printable ASCII of bounded length."""
    error = InvalidTensor(public, tensor=tensor, remedy=remedy)
    for key, value in boundary.trailing_metadata(error, "id"):
        if not key.endswith("-bin"):
            assert isinstance(value, str)
            assert len(value) <= boundary.MAX_PUBLIC_CHARS
            assert all(" " <= char <= "~" for char in value)


def test_every_default_reason_is_known() -> None:
    """Each class's default reason stands in REASONS."""
    assert {kind.default_reason for kind in tree(TesseraError)} <= set(errors.REASONS)
    assert Unauthenticated("x").reason == "session-missing"
