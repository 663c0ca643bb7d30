"""The reference networks: sizes, shapes, export at any batch, published parameters."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse, Malformed, NotFound
from tessera.protect import PixelModel, export_program
from tessera.protect.models import (
    ByteModel,
    CifarResNet18,
    CifarVgg19,
    CompactVgg,
    ConvMixer,
    DigitsNet,
    DnCNN,
    ResNet20,
    UNet,
    ValueStem,
    load_npz,
)


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a network in eval mode, its weights drawn from `seed` and its statistics moved from their defaults."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        for name, value in network.named_buffers():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape) + (0.5 if "var" in name else -0.5))
    return network.eval()


def digits_net() -> nn.Module:
    """Return a small network."""
    return DigitsNet(width=4)


THIRDS = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (CifarResNet18, 11_173_962),
        (CifarVgg19, 20_040_522),
        (ResNet20, 269_722),
        (CompactVgg, 1_167_434),
        (ConvMixer, 594_186),
        (DnCNN, 555_137),
        (lambda: UNet(11), 798_443),
    ],
)
def test_parameters(network: Callable[[], nn.Module], parameters: int) -> None:
    """Each network has the size that its documentation states; published sizes where there are any."""
    with torch.device("meta"):
        built = network()
    assert sum(value.numel() for value in built.parameters()) == parameters
    if isinstance(network, type):
        assert f"{parameters:,}" in (network.__doc__ or "")
    else:
        assert f"{parameters:,}" in (UNet.__doc__ or "")


SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "resnet20": (lambda: ResNet20(4, stem_block=4), (3, 16, 16), (4,)),
    "convmixer": (lambda: ConvMixer(4, width=8, depth=2, patch=4), (3, 16, 16), (4,)),
    "dncnn": (lambda: DnCNN(depth=4, width=8, channels=3, batch_norm=True), (3, 12, 20), (3, 12, 20)),
    "unet": (lambda: UNet(5, width=4, stem_block=5), (3, 45, 60), (5, 45, 60)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_export(name: str) -> None:
    """Each takes bytes, and its exported program gives at any batch what the network gives."""
    build, shape, answer = SMALL[name]
    model = PixelModel(seeded(build, 3), *(part[: shape[0]] for part in THIRDS)).eval()
    _same_when_exported(model, shape, answer)


@pytest.mark.slow
def test_export_of_a_byte_model() -> None:
    """A model that looks its pixels up in tables exports as the others do."""
    model = ByteModel(ValueStem(4, *THIRDS), seeded(lambda: CompactVgg(4), 3)).eval()
    _same_when_exported(model, (3, 16, 16), (4,))


def _same_when_exported(model: nn.Module, shape: tuple[int, ...], answer: tuple[int, ...]) -> None:
    program, tensors = export_program(model, torch.zeros((2, *shape), dtype=torch.uint8), max_batch=8)
    loaded = torch.export.load(io.BytesIO(program)).module()
    loaded.load_state_dict(tensors, strict=True, assign=True)
    for batch in (1, 3, 8):
        images = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8)
        with torch.no_grad():
            found: Tensor = loaded(images)
            wanted = model(images)
        assert found.shape == (batch, *answer)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("network", [CifarResNet18, CifarVgg19])
def test_large_networks_answer(network: Callable[..., nn.Module]) -> None:
    """The papers' networks give logits and pass gradients to their first layer."""
    built = network(classes=7, stem_block=4).train()
    logits = built(torch.randn(2, 3, 32, 32))
    logits.sum().backward()
    assert logits.shape == (2, 7)
    assert all(value.grad is not None for value in built.parameters())


def test_shortcut_a_has_no_parameters() -> None:
    """ResNet-20's shortcuts take every second pixel and pad zeros on both sides."""
    block = ResNet20().layer2[0]
    assert isinstance(block, nn.Module)
    x = torch.randn(1, 16, 8, 8)
    found = block.shortcut(x)  # type: ignore[operator]
    assert found[:, 8:24].equal(x[:, :, ::2, ::2])
    assert not found[:, :8].any()
    assert not found[:, 24:].any()


@pytest.mark.parametrize(
    "build", [lambda: DnCNN(depth=1), lambda: DnCNN(width=0), lambda: UNet(0), lambda: UNet(2, width=0)]
)
def test_networks_refuse(build: Callable[[], nn.Module]) -> None:
    """Sizes of nothing are the caller's mistake."""
    with pytest.raises(ApiMisuse):
        build()


def _saved(path: Path, network: nn.Module, **changed: np.ndarray | None) -> Path:
    arrays = {name: value.numpy() for name, value in network.state_dict().items()} | {
        name.replace("__", "."): value for name, value in changed.items()
    }
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def test_load_npz(tmp_path: Path) -> None:
    """All values are copied; only the counters of batch normalisation may be missing."""
    source, target = seeded(digits_net, 1), DigitsNet(width=4)
    load_npz(target, _saved(tmp_path / "w.npz", source, blocks__1__num_batches_tracked=None))
    assert all(value.equal(target.state_dict()[name]) for name, value in source.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"blocks__0__weight": None}, "another architecture: it lacks blocks.0.weight"),
        ({"extra": np.zeros(3)}, "another architecture: it has extra"),
        (
            {"blocks__0__weight": np.zeros((4, 1, 4, 3), np.float32)},
            r"blocks.0.weight is \(4, 1, 4, 3\), not \(4, 1, 4, 4\)",
        ),
        ({"blocks__0__weight": np.zeros((4, 1, 4, 4), np.complex64)}, "complex64"),
        ({"blocks__0__weight": np.full((4, 1, 4, 4), np.nan, np.float32)}, "NaN or infinity in blocks.0.weight"),
    ],
)
def test_load_npz_refuses(tmp_path: Path, changed: dict[str, np.ndarray | None], message: str) -> None:
    """Weights that do not fit are named, and the network keeps its own."""
    network = seeded(digits_net, 1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(Malformed, match=message) as caught:
        load_npz(network, _saved(tmp_path / "w.npz", seeded(digits_net, 2), **changed))
    assert "w.npz" in str(caught.value)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


def test_load_npz_of_no_file(tmp_path: Path) -> None:
    """A missing or damaged file is named, and many missing names are counted."""
    network = DigitsNet(width=4)
    with pytest.raises(NotFound):
        load_npz(network, tmp_path / "nowhere.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(Malformed, match=r"bad\.npz is not a readable"):
        load_npz(network, tmp_path / "bad.npz")
    with pytest.raises(Malformed, match="and 13 more"):
        load_npz(network, _saved(tmp_path / "w.npz", nn.Sequential()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_gets_pixels_in_its_own_dtype(dtype: torch.dtype) -> None:
    """Half precision and double take no float32: the adapter casts, whichever of the two was converted, and exports."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).to(dtype)
    images = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
    for model in (PixelModel(network, THIRDS[0], THIRDS[1]), PixelModel(network, THIRDS[0], THIRDS[1]).to(dtype)):
        with torch.no_grad():
            expected = model(images)
        assert expected.dtype == dtype
        program, tensors = export_program(model, images, max_batch=4)
        loaded = torch.export.load(io.BytesIO(program)).module()
        loaded.load_state_dict(tensors, strict=True, assign=True)
        assert torch.equal(loaded(images), expected)
