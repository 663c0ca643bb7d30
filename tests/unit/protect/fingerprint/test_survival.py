"""What a thief does to a copy, and that it still says whose it was."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tessera.keystore.secrets import InputKey
from tessera.protect import Bundle
from tessera.protect.fingerprint import identify, mark
from tessera.protect.selective.bundled import module_of
from unit.protect.fingerprint.conftest import RECORDS, SECRET, vendor

Tensors = dict[str, Tensor]


def each(change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    """Change every matrix and kernel."""
    return lambda tensors: {
        name: change(one) if one.is_floating_point() and one.ndim > 1 else one for name, one in tensors.items()
    }


def int8(tensor: Tensor) -> Tensor:
    """Round to 255 steps, one size for the whole tensor."""
    step = tensor.abs().max() / 127
    return (tensor / step).round() * step


def raw_int8(tensor: Tensor) -> Tensor:
    """Give bytes without their scales, one for each row."""
    rows = tensor.flatten(1)
    return (rows / rows.abs().amax(1, keepdim=True) * 127).round().to(torch.int8).reshape(tensor.shape)


def pruned(share: float) -> Callable[[Tensor], Tensor]:
    """Cut the smallest weights."""

    def change(tensor: Tensor) -> Tensor:
        limit = tensor.abs().flatten().kthvalue(max(1, int(share * tensor.numel()))).values
        return torch.where(tensor.abs() > limit, tensor, torch.zeros(()))

    return change


def noise(share: float) -> Callable[[Tensor], Tensor]:
    """Add Gaussian noise of a share of the weights' own size."""
    draws = torch.Generator().manual_seed(3)
    return lambda one: one + share * one.square().mean().sqrt() * torch.randn(one.shape, generator=draws)


def shuffled(tensors: Tensors) -> Tensors:
    """Move and rescale hidden channels, through the batch norm, the plain convolution and the dense layers."""
    draws = torch.Generator().manual_seed(7)

    def order(count: int) -> Tensor:
        return torch.randperm(count, generator=draws)

    def factors(count: int) -> Tensor:
        return torch.exp(torch.rand(count, generator=draws) * 2 - 1)

    found, layer = {name: one.clone() for name, one in tensors.items()}, "network.{}".format
    one, first, after = order(32), factors(32), factors(32)
    found[layer("conv1.weight")] = (found[layer("conv1.weight")] * first[:, None, None, None])[one]
    found[layer("conv1.bias")] = (found[layer("conv1.bias")] * first)[one]
    found[layer("bn1.running_mean")] = (found[layer("bn1.running_mean")] * first)[one]
    found[layer("bn1.running_var")] = (found[layer("bn1.running_var")] * first**2)[one]
    for part in ("weight", "bias"):
        found[layer(f"bn1.{part}")] = found[layer(f"bn1.{part}")][one] * after
    two, second = order(48), factors(48)
    kernel = found[layer("conv2.weight")][:, one] / after[:, None, None]
    found[layer("conv2.weight")] = (kernel * second[:, None, None, None])[two]
    found[layer("conv2.bias")] = (found[layer("conv2.bias")] * second)[two]
    three, third = order(64), factors(64)
    dense = (found[layer("fc1.weight")] / second)[:, two]
    found[layer("fc1.weight")] = (dense * third[:, None])[three]
    found[layer("fc1.bias")] = (found[layer("fc1.bias")] * third)[three]
    found[layer("fc2.weight")] = (found[layer("fc2.weight")] / third)[:, three]
    return found


def renamed(tensors: Tensors) -> Tensors:
    """Give every tensor another name, in another order."""
    return {f"w{number}": one for number, one in enumerate(reversed(list(tensors.values())))}


def two_dimensional(tensors: Tensors) -> Tensors:
    """Dense layers as convolutions of 1x1."""
    return {name: one[:, :, None, None] if "fc" in name and one.ndim == 2 else one for name, one in tensors.items()}


THEFTS: dict[str, Callable[[Tensors], Tensors]] = {
    "float16": each(lambda one: one.half()),
    "bfloat16": each(lambda one: one.bfloat16()),
    "int8": each(int8),
    "int8 without scales": each(raw_int8),
    "half cut off": each(pruned(0.5)),
    "nine tenths cut off": each(pruned(0.9)),
    "5 % noise": each(noise(0.05)),
    "weight decay": each(lambda one: one * 0.9),
    "turned round": each(lambda one: -one),
    "channels moved and rescaled": shuffled,
    "renamed": renamed,
    "renamed, moved and rescaled, int8": lambda tensors: each(int8)(renamed(shuffled(tensors))),
    "moved and rescaled, half cut off": lambda tensors: each(pruned(0.5))(shuffled(tensors)),
    "1x1 convolutions": two_dimensional,
    "one layer": lambda tensors: {"x": tensors["network.conv2.weight"]},
}


@pytest.mark.parametrize("theft", THEFTS)
def test_a_copy_is_known_after(bundle: Bundle, theft: str) -> None:
    """The buyer is named, and nobody else."""
    leaked = THEFTS[theft](mark(bundle.tensors, SECRET, RECORDS[3]))
    found = identify(bundle, leaked, SECRET, RECORDS)
    assert [one.record for one in found.named] == [RECORDS[3]]
    assert found.suspects[0].carried_by >= 1


def test_the_moved_network_is_the_same_network(bundle: Bundle) -> None:
    """The thief of these tests breaks nothing: `shuffled` computes what it did before."""
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    other = dataclasses.replace(bundle, tensors=shuffled(bundle.tensors))
    assert torch.allclose(module_of(bundle)(images), module_of(other)(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 5])
def test_all_who_mixed_their_copies_are_named(bundle: Bundle, count: int) -> None:
    """Averaging copies weakens each mark by the number of buyers, and names them all."""
    copies = [mark(bundle.tensors, SECRET, record) for record in RECORDS[:count]]
    mixed = {name: sum(copy[name] for copy in copies) / count for name in bundle.tensors}
    found = identify(bundle, mixed, SECRET, RECORDS)  # type: ignore[arg-type]  # a sum of tensors
    assert {one.record for one in found.named} == set(RECORDS[:count])


def test_layers_that_were_put_back_do_not_drown_the_one_that_was_not(bundle: Bundle) -> None:
    """A thief who knows most of the original, as of a public backbone, puts it back with hardly any noise."""
    copy = mark(bundle.tensors, SECRET, RECORDS[3])
    draws = torch.Generator().manual_seed(2)
    for size in (0.0, 1e-6, 1e-3, 0.1):
        back = {name: one + size * torch.randn(one.shape, generator=draws) for name, one in bundle.tensors.items()}
        leaked = back | {"network.fc2.weight": copy["network.fc2.weight"]}
        found = identify(bundle, leaked, SECRET, RECORDS)
        assert [one.record for one in found.named] == [RECORDS[3]], size
        assert found.suspects[0].strongest > 20


def test_numbers_of_any_size(bundle: Bundle) -> None:
    """Double-precision values beyond all reason, in the leak and in the original, are survived."""
    copy = {name: one.double() for name, one in mark(bundle.tensors, SECRET, RECORDS[0]).items()}
    for name in ("network.conv1.weight", "network.fc1.weight"):
        copy[name].view(-1)[::2] = torch.tensor([1e308, -1e200, 1e-310, 5e-324])[
            torch.arange(copy[name].numel() // 2) % 4
        ]
    assert [one.record for one in identify(bundle, copy, SECRET, RECORDS).named] == [RECORDS[0]]
    draws = torch.Generator().manual_seed(1)
    huge = {
        f"w{size}": torch.randn(64, 64, generator=draws).double() * 10.0**size for size in (-300, -40, 0, 37, 45, 200)
    }
    found = identify(vendor(huge), mark(huge, SECRET, RECORDS[0]), SECRET, RECORDS)
    assert [one.record for one in found.named] == [RECORDS[0]]


def test_who_takes_a_mark_out_with_another_copy_is_named_too(bundle: Bundle) -> None:
    """Twice one copy less the other is a working model in which the other's mark stands with the opposite sign."""
    one, other = (mark(bundle.tensors, SECRET, record) for record in RECORDS[:2])
    found = identify(bundle, {name: 2 * one[name] - other[name] for name in one}, SECRET, RECORDS)
    assert {suspect.record: suspect.z > 0 for suspect in found.named} == {RECORDS[0]: True, RECORDS[1]: False}


def test_a_second_mark_does_not_hide_the_first(bundle: Bundle) -> None:
    """A thief who marks a copy with a secret of their own leaves the buyer's mark where it was."""
    stolen = mark(bundle.tensors, SECRET, RECORDS[0])
    again = mark(stolen, InputKey(bytes(32)), RECORDS[1])
    assert [one.record for one in identify(bundle, again, SECRET, RECORDS).named] == [RECORDS[0]]


def test_what_is_missing_is_told(bundle: Bundle) -> None:
    """Tensors that a leak lacks, or has in another shape, are left out and named."""
    copy = mark(bundle.tensors, SECRET, RECORDS[0])
    del copy["network.fc1.weight"]
    copy["network.conv2.weight"] = copy["network.conv2.weight"][:40]
    found = identify(bundle, copy, SECRET, RECORDS)
    assert set(found.missing) == {"network.fc1.weight", "network.conv2.weight"}
    assert [one.record for one in found.named] == [RECORDS[0]]
    assert found.to_json()["missing"] == list(found.missing)
