"""The real data sets, where TESSERA_DATA names a folder that holds them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tessera.protect import PixelModel, Split
from tessera.protect.data import camvid, cifar10, denoise_set, fashion_mnist, tiny_imagenet
from tessera.protect.models import IMAGENET_MEAN, IMAGENET_STD, DnCNN, ResNet20, load_npz

DATA = Path(os.environ.get("TESSERA_DATA") or "no-data")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("TESSERA_DATA"), reason="TESSERA_DATA names no folder with data sets"),
]


def _means(split: Split) -> list[float]:
    pixels = split.train.images.numpy()
    return [round(float(pixels[:, channel].mean(dtype=np.float64)) / 255, 4) for channel in range(pixels.shape[1])]


def test_cifar10() -> None:
    """All counts are right and the means are the published ones."""
    split = cifar10(DATA)
    assert np.bincount(split.train.labels).tolist() == [5000] * 10
    assert np.bincount(split.test.labels).tolist() == [1000] * 10
    assert _means(split) == [0.4914, 0.4822, 0.4465]


def test_small_sets() -> None:
    """Counts and means of the other sets."""
    fashion = fashion_mnist(DATA)
    assert (len(fashion.train), np.bincount(fashion.test.labels).tolist()) == (20000, [1000] * 10)
    tiny = tiny_imagenet(DATA)
    assert np.bincount(tiny.test.labels).tolist() == [50] * 10
    assert _means(tiny) == pytest.approx([0.4878, 0.4502, 0.3899], abs=1e-3)
    streets = camvid(DATA)
    assert (len(streets.train), len(streets.test), streets.train.shape) == (367, 233, (3, 180, 240))
    assert _means(streets) == pytest.approx([0.4121, 0.4251, 0.4328], abs=1e-3)
    share = np.bincount(streets.test.labels.numpy().ravel(), minlength=12) / streets.test.labels.numel()
    assert share[[0, 3, 11]] == pytest.approx([0.172, 0.258, 0.037], abs=6e-4)


def test_published_resnet20() -> None:
    """Published weights give their published accuracy, here on the first 1,000 cats and dogs and so on: every tenth."""
    test = cifar10(DATA, train_files=1).test
    network = ResNet20()
    load_npz(network, DATA / "weights" / "cifar10_resnet20_akamaster.npz")
    model = PixelModel(network, IMAGENET_MEAN, IMAGENET_STD).eval()
    with torch.no_grad():
        right = model(test.images[::20]).argmax(1) == test.labels[::20]
    assert 0.89 < right.float().mean().item() < 0.95


def test_published_dncnn() -> None:
    """Published weights take noise of sigma 25 from the first picture of Set12."""
    network: nn.Module = DnCNN()
    load_npz(network, DATA / "weights" / "dncnn_sigma25_kair.npz")
    clean = torch.from_numpy(denoise_set(DATA, "Set12")[0]).float()[None, :, :128, :128] / 255
    noisy = clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)) * 25 / 255
    with torch.no_grad():
        found = network.eval()(noisy).clamp(0, 1)
    assert -10 * (noisy - clean).square().mean().log10().item() < 20.5
    assert -10 * (found - clean).square().mean().log10().item() > 28
