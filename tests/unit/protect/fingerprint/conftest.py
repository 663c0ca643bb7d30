"""A network that has every kind of weight, and buyers."""

import pytest
import torch
from torch import Tensor, nn

from tessera.keystore.copyright import CopyrightRecord
from tessera.keystore.package import TensorSpec
from tessera.keystore.secrets import InputKey
from tessera.protect import Bundle, PixelModel, bundle_of_module

SECRET = InputKey(bytes(range(32)))
RECORDS = tuple(CopyrightRecord("Acme", f"Buyer {number}", f"L-{number}") for number in range(8))


class Net(nn.Module):
    """Convolutions with batch norms, a plain convolution and two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 48, 3, padding=1)
        self.fc1 = nn.Linear(48, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 10)."""
        x = self.bn1(self.conv1(x)).relu()
        x = self.conv2(x).relu().mean((2, 3))
        logits: Tensor = self.fc2(self.fc1(x).relu())
        return logits


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The network with random weights, exported."""
    torch.manual_seed(5)
    network = Net()
    with torch.no_grad():
        network.bn1.weight.uniform_(0.5, 2)
        network.bn1.bias.uniform_(-0.5, 0.5)
        network.bn1.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
        network.bn1.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return bundle_of_module(PixelModel(network, (0.5,) * 3, (0.25,) * 3).eval(), (3, 8, 8), max_batch=16)


def vendor(tensors: dict[str, Tensor]) -> Bundle:
    """Return a bundle of these weights, whose program is none."""
    return Bundle(
        inputs=(TensorSpec("image", "UINT8", (-1, 3, 8, 8), "NCHW"),),
        outputs=(TensorSpec("logits", "FP32", (-1, 10)),),
        transform=None,
        input_key_id=None,
        quality={},
        max_batch=16,
        torch_version=torch.__version__,
        program=b"",
        tensors=tensors,
    )
