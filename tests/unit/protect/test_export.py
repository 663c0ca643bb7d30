"""Exported programs carry no weights and compute the same bits once they have them back."""

import io
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.protect import CifarResNet18, DigitsNet, PixelModel, bundle_of_module, export_program
from tessera.protect.export import check_no_nan

WINDOW = 16


def load(program: bytes, tensors: dict[str, Tensor]) -> nn.Module:
    """Load a program as a server does (rule B-5)."""
    module: nn.Module = torch.export.load(io.BytesIO(program)).module()
    module.load_state_dict(tensors, strict=True, assign=True)
    return module


def seeded(network: nn.Module, channels: int) -> PixelModel:
    """Return an eval-mode pixel model with random weights and random normalisation statistics."""
    draws = torch.Generator().manual_seed(7)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=draws) * 0.2 + 0.05)
    model = PixelModel(network, [0.47] * channels, [0.25] * channels)
    model.eval()
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    "network, shape, max_batch",
    [(DigitsNet(), (1, 8, 8), 64), (DigitsNet(), (1, 8, 8), 2), (CifarResNet18(), (3, 32, 32), 8)],
    ids=["digits", "digits-pairs", "resnet18"],
)
def test_same_bits_at_every_batch_size(network: nn.Module, shape: tuple[int, int, int], max_batch: int) -> None:
    """With its weights back a program equals the model exactly at batch 1, 3 and the largest (rules B-2, B-5)."""
    model = seeded(network, shape[0])
    program, tensors = export_program(model, torch.zeros((1, *shape), dtype=torch.uint8), max_batch=max_batch)
    loaded = load(program, tensors)
    with torch.no_grad():
        for batch in sorted({1, min(3, max_batch), max_batch}):
            pixels = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8)
            assert torch.equal(loaded(pixels), model(pixels))


def test_no_weights_in_the_program() -> None:
    """No 16-byte stretch of any weight occurs in the program, nor its numbers as decimal text (rule B-3)."""
    model = seeded(DigitsNet(width=16), 1)
    program, tensors = export_program(model, torch.zeros((2, 1, 8, 8), dtype=torch.uint8), max_batch=8)
    archive = zipfile.ZipFile(io.BytesIO(program))
    everything = program + b"".join(archive.read(name) for name in archive.namelist())
    assert sorted(tensors) == sorted(model.state_dict())
    for name, value in tensors.items():
        raw = value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.ndim else b""
        for start in range(0, max(0, len(raw) - WINDOW), 4):
            assert raw[start : start + WINDOW] not in everything, name
        if value.is_floating_point():
            assert not any(repr(number)[:9].encode() in everything for number in value.reshape(-1)[:50].tolist()[1:])


def test_nothing_of_the_vendors_machine_in_the_program() -> None:
    """Source paths, example values and the CPU of the export stay out (rule B-3)."""
    program, _ = export_program(
        seeded(DigitsNet(width=16), 1), torch.full((3, 1, 8, 8), 77, dtype=torch.uint8), max_batch=8
    )
    assert str(Path(__file__).parent).encode() not in program
    assert b"protect/models/" not in program
    exported = torch.export.load(io.BytesIO(program))
    assert exported.example_inputs is None
    assert not [node for node in exported.graph.nodes if "device" in node.kwargs]


def test_weights_are_copies() -> None:
    """The tensors share no memory with the model or each other, tied weights included; the model is not changed."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.second(self.first(x))
            return found

    model = Tied().train()
    program, tensors = export_program(model, torch.zeros(2, 4), max_batch=4)
    pointers = {value.data_ptr() for value in tensors.values()}
    assert len(pointers) == len(tensors) == 4
    assert not pointers & {value.data_ptr() for value in model.parameters()}
    assert model.training
    assert all(value.requires_grad for value in model.parameters())
    pixels = torch.randn(3, 4)
    assert torch.equal(load(program, tensors)(pixels), model(pixels))


class Hidden(nn.Module):
    """Keeps weights where no state dict sees them."""

    def __init__(self, *, how: str) -> None:
        super().__init__()
        self.how = how
        values = torch.randn(8, 8)
        if how == "attribute":
            self.table = values
        else:
            self.register_buffer("table", values, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the table."""
        return x @ self.table


def test_hidden_weights() -> None:
    """A tensor kept as a plain attribute is refused with the remedy; a non-persistent buffer is sealed (rule B-4)."""
    with pytest.raises(ApiMisuse) as caught:
        export_program(Hidden(how="attribute"), torch.zeros(2, 8), max_batch=4)
    assert "buffer" in caught.value.remedy
    model = Hidden(how="buffer")
    program, tensors = export_program(model, torch.zeros(2, 8), max_batch=4)
    assert list(tensors) == ["table"]
    x = torch.randn(1, 8)
    assert torch.equal(load(program, tensors)(x), model(x))


class Odd(nn.Module):
    """Gives something that cannot be served, by `how`."""

    calls: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.linear = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> object:
        """Return what `how` says."""
        y: Tensor = self.linear(x)
        match self.how:
            case "pair":
                return y, y
            case "branch":
                return y if bool(y.sum() > 0) else -y
            case "fixed":
                return y.reshape(2, 4)
            case "state":
                self.calls.add_(1)
                return y
            case _:
                return y.sum(dim=0)


@pytest.mark.parametrize("how", ["pair", "branch", "fixed", "lost", "state"])
def test_modules_that_do_not_export(how: str) -> None:
    """Two outputs, branches on data, a fixed or lost batch, changed state: `ApiMisuse` with a remedy (rule B-1)."""
    with pytest.raises(ApiMisuse) as caught:
        export_program(Odd(how), torch.zeros(2, 4), max_batch=4)
    assert caught.value.remedy


class Mixing(nn.Module):
    """An answer that the other samples of the batch have a part in, by `how`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.linear, self.norm = nn.Linear(12, 4), nn.BatchNorm2d(4, track_running_stats=how == "chance")

    def forward(self, x: Tensor) -> Tensor:
        """Return what `how` says."""
        y: Tensor = self.linear(x.reshape(-1, 12).float() / 255)
        normed: Tensor = self.norm(x.float().reshape(-1, 4, 1, 3))
        match self.how:
            case "softmax":
                return y.softmax(dim=0)
            case "chance":
                return F.dropout(y) + normed.mean(dim=(2, 3))  # in eval mode too, which is its own affair
            case _:
                return y + normed.mean(dim=3).flatten(1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("how", ["norm", "softmax"])
def test_samples_do_not_meet(how: str, dtype: torch.dtype) -> None:
    """A batch norm of the batch or an operation over it is refused: buyers share batches (rule B-1); alone it may."""
    example = torch.zeros(2, 3, 2, 2, dtype=dtype)
    with pytest.raises(ApiMisuse, match="other samples of its batch") as caught:
        export_program(Mixing(how), example, max_batch=4)
    assert "running statistics" in caught.value.remedy
    export_program(Mixing(how), example, max_batch=1)


def test_chance_is_no_trace_of_a_sample() -> None:
    """What a model draws by chance is not taken for an influence of other samples."""
    export_program(Mixing("chance"), torch.zeros(2, 3, 2, 2), max_batch=4)


def test_the_reason_that_torch_gives_is_told() -> None:
    """`len(x)` fixes the batch; the refusal says so, with torch's own words."""

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(1, 3).expand(len(x), -1)

    with pytest.raises(ApiMisuse, match="Constraints violated") as caught:
        export_program(Fixed(), torch.zeros(2, 3), max_batch=4)
    assert "x.shape[0]" in caught.value.remedy


def test_nan_is_refused() -> None:
    """A model with a NaN among its weights is named and not sealed (rule B-6); infinities are allowed."""
    model = seeded(DigitsNet(width=4), 1)
    check_no_nan({"a": torch.tensor([1.0, float("inf")]), "b": torch.tensor([1, 2])})
    with torch.no_grad():
        next(iter(model.network.parameters()))[0, 0, 0, 0] = float("nan")
    with pytest.raises(Malformed, match=r"network\.blocks\.0\.weight"):
        bundle_of_module(model, (1, 8, 8))
