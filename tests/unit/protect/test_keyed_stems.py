"""Stems that take keyed images: what they know before training is the same under every key."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.secrets import InputKey
from tessera.protect.models import ByteModel, CifarResNet18, ConvMixer, FastNet, PatchStem, PixelModel, fit_stems, keyed
from tessera.protect.models.statistics import scale_values, whiten
from tessera.protect.models.stems import ValueStem
from tessera.protect.transforms_torch import TorchTransform
from tessera.transforms import Transform, TransformSpec

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def pictures(count: int, side: int, seed: int = 0) -> Tensor:
    """Smooth random pictures, uint8 (count, 3, side, side): neighbours are alike, as in natural ones."""
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, side // 4 + 2, side // 4 + 2, generator=draws)
    grey = torch.rand(count, 1, side // 4 + 2, side // 4 + 2, generator=draws)
    smooth = nn.functional.interpolate(0.3 * coarse + 0.7 * grey, size=(side, side), mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8)


def locked(images: Tensor, text: str, seed: int) -> Tensor:
    """Return `images` under a spec and the key of a seed."""
    key = InputKey(seed.to_bytes(32, "big"))
    return TorchTransform(Transform(TransformSpec.parse_text(text), key, *images.shape[1:]))(images)


def components(images: Tensor, block: int) -> Tensor:
    """Return the whitened features of normalised `images`, without the sign of each component."""
    stem = PatchStem(3, block, 4, 2)
    floats = PixelModel(nn.Identity(), MEAN, STD).normalised(images)
    stem.fit(floats)
    found: Tensor = stem.whiten(floats).abs()
    return found


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["shf:4", "np:4", "shf:4,np:4", "np:2,shf:4"]), st.integers(0, 2**32))
def test_whitening_undoes_no_key_and_every_key(text: str, seed: int) -> None:
    """With one mean and deviation for all channels, whitened blocks of keyed images are those of plain images."""
    images = pictures(64, 16)
    stem, plain_stem = PatchStem(3, 4, 4, 2), PatchStem(3, 4, 4, 2)
    model = PixelModel(nn.Identity(), (0.5,) * 3, (0.25,) * 3)
    plain, hidden = model.normalised(images), model.normalised(locked(images, text, seed))
    plain_stem.fit(plain)
    stem.fit(hidden)
    # The strongest components are well apart; the faintest are turned among each other by rounding.
    expected, found = plain_stem.whiten(plain)[:, :6].abs(), stem.whiten(hidden)[:, :6].abs()
    assert float((expected - found).abs().mean()) < 0.02 * float(expected.mean())


def test_whitened_blocks_are_white() -> None:
    """Mean 0, no correlation, variance about 1 where the images have any."""
    images = PixelModel(nn.Identity(), MEAN, STD).normalised(pictures(200, 16))
    weight, bias = whiten(images, 4)
    patches = nn.functional.unfold(images, 4, stride=4).transpose(1, 2).reshape(-1, 48)
    found = patches @ weight.T + bias
    covariance = found.T @ found / len(found)
    assert float(found.mean(dim=0).abs().max()) < 1e-3
    assert torch.allclose(covariance, torch.diag(covariance.diagonal()), atol=2e-2)
    assert 0.9 < float(covariance[0, 0]) < 1.001
    assert bool((covariance.diagonal().diff() < 1e-3).all())


@pytest.mark.parametrize("text", ["ffx:4", "ffx:4:positions", "ffx:2"])
def test_values_find_their_order_again(text: str) -> None:
    """From keyed images alone each position's table comes to rise with the plain value, whatever FFX made of it."""
    images = pictures(1500, 16)
    side = TransformSpec.parse_text(text).steps[0].block
    stem = ValueStem(side, MEAN, STD)
    scale_values(stem, locked(images, text, 7))
    hidden = stem(locked(images[:200], text, 7)).detach()
    plain = images[:200].float()
    for row in range(side):
        for column in range(side):
            for channel in range(3):
                pair = torch.stack([part[:, channel, row::side, column::side].reshape(-1) for part in (hidden, plain)])
                assert float(torch.corrcoef(pair)[0, 1].abs()) > 0.95


def test_keyed_replaces_the_first_convolution() -> None:
    """Any network's first convolution becomes a stem of the same width and stride; FFX brings a table in front."""
    images = pictures(4, 32)
    for network, first, width, step in (
        (FastNet(), "enter", 24, 2),
        (CifarResNet18(), "conv1", 64, 1),
        (ConvMixer(depth=1, width=16), "embed.0", 16, 2),
    ):
        found = keyed(network, first, TransformSpec.parse_text("shf:4,np:2"), MEAN, STD)
        stem = found.get_submodule(first)
        assert isinstance(stem, PatchStem)
        assert (stem.block, stem.mix.out_channels * step**2 // 16) == (4, width)
        assert PixelModel(found, MEAN, STD)(images).shape == (4, 10)
    with_table = keyed(FastNet(), "enter", TransformSpec.parse_text("shf:4,ffx:2"), MEAN, STD)
    assert isinstance(with_table, ByteModel)
    fit_stems(with_table, images)
    assert with_table(images).shape == (4, 10)
    plain = FastNet()
    assert keyed(plain, "enter", None, MEAN, STD) is plain


def test_stems_that_do_not_fit() -> None:
    """Another layer, an image that blocks do not divide, and sizes of nothing are refused."""
    spec = TransformSpec.parse_text("np:4")
    for first in ("head", "enter.weight", "nothing", "body.2.0"):
        with pytest.raises(ApiMisuse, match="is not the network's convolution"):
            keyed(FastNet(), first, spec, MEAN, STD)
    with pytest.raises(ApiMisuse, match="blocks of 4, which do not divide 6x8"):
        PatchStem(3, 4, 2)(torch.zeros(1, 3, 6, 8))
    for sizes in ((0, 4, 8, 1), (3, 4, 8, 3), (3, 0, 8, 1)):
        with pytest.raises(ApiMisuse):
            PatchStem(*sizes)
    with pytest.raises(ApiMisuse):
        fit_stems(FastNet(), pictures(2, 8))


def test_the_fast_network_has_its_stated_size() -> None:
    """719,962 parameters; only the map that is set once does not learn."""
    assert sum(value.numel() for value in FastNet().parameters()) == 719_962
    stem = PatchStem(3, 4, 24, 2)
    assert [name for name, value in stem.named_parameters() if value.requires_grad] == ["mix.weight"]
    assert components(pictures(20, 8), 4).shape == (20, 48, 2, 2)
