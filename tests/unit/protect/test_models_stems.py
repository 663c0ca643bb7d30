"""First layers that absorb a keyed transform."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.protect import PixelModel
from tessera.protect.models import BlockStem, ValueStem
from tessera.transforms import Transform, TransformError, TransformSpec

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
KEY, OTHER = InputKey(bytes(range(32))), InputKey(bytes(32))
IMAGES = torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
NATURAL = PixelModel(torch.nn.Identity(), MEAN, STD)(IMAGES)


def _keyed(text: str, key: InputKey = KEY) -> torch.Tensor:
    return torch.from_numpy(Transform(TransformSpec.parse_text(text), key, 3, 16, 24)(IMAGES.numpy()))


def test_stems_start_as_the_identity() -> None:
    """Plain pixels come out as they would without a stem."""
    with torch.no_grad():
        assert BlockStem(3, 4)(NATURAL).equal(NATURAL)
        for block in (None, 1, 4, 8):
            torch.testing.assert_close(ValueStem(block, MEAN, STD)(IMAGES), NATURAL, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("text", "block"), [("shf:4", 4), ("np:4", 4), ("shf:2", 8), ("shf:4,np:2,shf:2", 4)])
def test_block_stem_undoes_the_key(text: str, block: int) -> None:
    """Set from the key, it answers transformed images as it did plain ones, and no other key's."""
    stem = BlockStem(3, block)
    torch.manual_seed(2)
    torch.nn.init.normal_(stem.map.weight)
    torch.nn.init.normal_(stem.bias)
    model = PixelModel(stem, MEAN, STD)
    with torch.no_grad():
        before = model(IMAGES)
        stem.undo(TransformSpec.parse_text(text), KEY, MEAN, STD)
        torch.testing.assert_close(model(_keyed(text)), before, rtol=1e-4, atol=1e-3)
        assert (model(IMAGES) - before).abs().mean() > 0.3
        assert (model(_keyed(text, OTHER)) - before).abs().mean() > 0.3


@pytest.mark.parametrize(("text", "block"), [("np:4", 4), ("np:2", 4), ("ffx:4", 4), ("ffx:4:positions,np:2", 4)])
def test_value_stem_undoes_the_key(text: str, block: int) -> None:
    """Set from the key, it gives for transformed images the very numbers it gave for plain ones."""
    stem = ValueStem(block, MEAN, STD)
    with torch.no_grad():
        stem.table.add_(torch.randn(stem.table.shape, generator=torch.Generator().manual_seed(3)))
        before = stem(IMAGES)
        stem.undo(TransformSpec.parse_text(text), KEY)
        assert stem(_keyed(text)).equal(before)
        assert not stem(IMAGES).equal(before)


def test_stems_refuse_what_they_cannot_undo() -> None:
    """A table cannot move values, a linear map cannot replace them; blocks must divide."""
    with pytest.raises(ApiMisuse, match="moves values"):
        ValueStem(4, MEAN, STD).undo(TransformSpec.parse_text("shf:4"), KEY)
    with pytest.raises(ApiMisuse, match="not an affine map"):
        BlockStem(3, 4).undo(TransformSpec.parse_text("ffx:4"), KEY, MEAN, STD)
    with pytest.raises(ApiMisuse, match="3 numbers each"):
        BlockStem(3, 4).undo(TransformSpec.parse_text("shf:4"), KEY, MEAN[:1], STD[:1])
    for stem in (ValueStem(4, MEAN, STD), ValueStem(None, MEAN, STD)):
        with pytest.raises(TransformError):
            stem.undo(TransformSpec.parse_text("np:8"), KEY)
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
