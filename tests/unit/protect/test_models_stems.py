"""First layers that absorb a keyed transform."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.protect import PixelModel
from tessera.protect.models import BlockStem, ValueStem

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
KEY, OTHER = InputKey(bytes(range(32))), InputKey(bytes(32))
IMAGES = torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
NATURAL = PixelModel(torch.nn.Identity(), MEAN, STD)(IMAGES)


def test_stems_start_as_the_identity() -> None:
    """Plain pixels come out as they would without a stem."""
    with torch.no_grad():
        assert BlockStem(3, 4)(NATURAL).equal(NATURAL)
        for block in (None, 1, 4, 8):
            torch.testing.assert_close(ValueStem(block, MEAN, STD)(IMAGES), NATURAL, rtol=1e-6, atol=1e-6)


def test_stems_refuse_sizes_that_make_no_layer() -> None:
    """No block, no channel, statistics that do not belong together."""
    for arguments in ((0, MEAN, STD), (4, MEAN, STD[:2]), (4, (), ()), (4, MEAN, (0.0, 1.0, 1.0))):
        with pytest.raises(ApiMisuse):
            ValueStem(*arguments)
    for channels, block in ((0, 4), (3, 0)):
        with pytest.raises(ApiMisuse):
            BlockStem(channels, block)


@settings(max_examples=30, deadline=None)
@given(block=st.sampled_from([None, 2, 4]), seed=st.integers(0, 99))
def test_value_stem_gradient(block: int | None, seed: int) -> None:
    """The gradient of a table entry is the sum of the gradients of the pixels that hold it, counted one by one."""
    draws = torch.Generator().manual_seed(seed)
    stem = ValueStem(block, MEAN, STD)
    images = torch.randint(0, 256, (2, 3, 4, 8), dtype=torch.uint8, generator=draws)
    slope = torch.randn(images.shape, generator=draws)
    stem(images).backward(slope)
    side = block or 1
    wanted = torch.zeros_like(stem.table)
    for number, channel, row, column in torch.cartesian_prod(*(torch.arange(size) for size in images.shape)).tolist():
        table = (channel * side + row % side) * side + column % side
        wanted[table, int(images[number, channel, row, column])] += slope[number, channel, row, column]
    assert stem.table.grad is not None
    torch.testing.assert_close(stem.table.grad, wanted, rtol=1e-5, atol=1e-5)
