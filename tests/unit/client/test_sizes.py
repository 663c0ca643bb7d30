"""How many samples the client puts into one message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.client import MessageTooLarge, ModelContract, TensorContract
from tessera.client._sizes import FRAME_BYTES, PORT_BYTES, largest_batch

AROUND = FRAME_BYTES + PORT_BYTES


def contract(inner: int, outer: int, max_batch: int = 64) -> ModelContract:
    """Return the contract of a model with `inner` bytes a sample in and `outer` bytes out."""
    ports = [TensorContract(name, "UINT8", (-1, size), "") for name, size in (("in", inner), ("out", outer))]
    return ModelContract("m", 1, "0" * 32, 1, (ports[0],), (ports[1],), "", "", max_batch)


@given(
    inner=st.integers(1, 5000), outer=st.integers(1, 5000), limit=st.integers(1, 40_000), max_batch=st.integers(1, 64)
)
def test_the_largest_batch_fits_and_one_more_would_not(inner: int, outer: int, limit: int, max_batch: int) -> None:
    """For requests and answers alike; where not one sample fits it is refused with the number that would do."""
    room = limit - AROUND
    if room < max(inner, outer):
        with pytest.raises(MessageTooLarge) as caught:
            largest_batch(contract(inner, outer, max_batch), limit)
        assert caught.value.status is None
        assert "max_message_bytes=" in caught.value.remedy
        return
    found = largest_batch(contract(inner, outer, max_batch), limit)
    assert 1 <= found <= max_batch
    assert found * max(inner, outer) <= room
    assert found == max_batch or (found + 1) * max(inner, outer) > room
