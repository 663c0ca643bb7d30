"""What holds for any weights: a copy names its buyer, nobody else is ever named, and alignment only ever helps."""

import dataclasses
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tessera.keystore.copyright import CopyrightRecord
from tessera.keystore.secrets import InputKey
from tessera.protect import Bundle
from tessera.protect.fingerprint import fingerprint, identify, mark
from tessera.protect.fingerprint.align import align, channel_order
from tessera.protect.fingerprint.chips import as_rows, row_scales
from tessera.protect.fingerprint.matching import assign
from unit.protect.fingerprint.conftest import RECORDS, SECRET, vendor

shapes = st.lists(st.integers(1, 12), min_size=2, max_size=4).filter(lambda sides: 256 <= math.prod(sides) <= 4000)
dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])


def weights(shape: list[int], seed: int, dtype: torch.dtype) -> Tensor:
    """Return random weights of rows of very different sizes, some of them zero."""
    draws = torch.Generator().manual_seed(seed)
    sizes = torch.exp(torch.randn(shape[0], *[1] * (len(shape) - 1), generator=draws))
    found = torch.randn(shape, generator=draws) * sizes
    return (found * (torch.rand(shape, generator=draws) > 0.05)).to(dtype)


@given(shape=shapes, seed=st.integers(0, 2**31), dtype=dtypes, scale=st.sampled_from([1e-3, 1.0, 1e3]))
@settings(max_examples=40, deadline=None)
def test_a_copy_names_its_buyer_and_no_other(shape: list[int], seed: int, dtype: torch.dtype, scale: float) -> None:
    """Whatever shape, type, size and zeros the weights have; what is zero stays zero, and nothing changes by much."""
    tensors = {f"part.{at}": weights(shape, seed + at, dtype) * scale for at in range(4)}
    tensors |= {"bias": weights([300], seed, dtype)[:300], "steps": torch.arange(300).reshape(20, 15)}
    if sum(int((tensors[f"part.{at}"] != 0).sum()) for at in range(4)) < 1024:
        tensors["part.more"] = weights([32, 40], seed, dtype)
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    copy = mark(tensors, SECRET, RECORDS[0])
    assert all(torch.equal(tensors[name], kept[name]) for name in tensors)
    assert all(torch.equal(copy[name], tensors[name]) for name in ("bias", "steps"))
    for name, tensor in tensors.items():
        assert not bool(copy[name][tensor == 0].any())
        assert float((copy[name].double() - tensor.double()).norm()) <= 0.02 * float(tensor.double().norm())
    found = identify(vendor(tensors), copy, SECRET, RECORDS)
    assert [one.record for one in found.named] == [RECORDS[0]]
    assert found.suspects[0].z > 0.7 * math.sqrt(found.values)


@pytest.mark.slow
def test_strangers_are_never_named_whatever_leaks(bundle: Bundle) -> None:
    """Two thousand records against files that no copy went into, and one that another secret's copy is: z is that of
    coin tosses, and the smallest p-value is what the number of records explains.
    """
    draws = torch.Generator().manual_seed(1)
    strangers = [CopyrightRecord("Acme", f"Stranger {number}", "L") for number in range(500)]
    noisy = {name: one + 0.1 * torch.randn(one.shape, generator=draws) for name, one in bundle.tensors.items()}
    leaks = {
        "noise": noisy,
        "other network": {name: torch.randn(one.shape, generator=draws) for name, one in bundle.tensors.items()},
        "another secret": mark(bundle.tensors, InputKey(bytes(32)), strangers[0]),
        "signs": {name: one + 0.01 * one.abs() for name, one in bundle.tensors.items()},
    }
    for name, leaked in leaks.items():
        found = identify(bundle, leaked, SECRET, strangers)
        assert not found.named, name
        z = np.array([one.z for one in found.suspects])
        assert z.std() == pytest.approx(1, abs=0.15), name
        assert abs(z.mean()) < 0.25, name
        assert found.suspects[0].p_value > 0.01, name


def test_the_original_itself_names_nobody(bundle: Bundle) -> None:
    """A leak of the vendor's own file: nothing differs, and that is said."""
    found = identify(bundle, bundle, SECRET, RECORDS)
    assert found.values == 0
    assert not found.named
    assert {one.z for one in found.suspects} == {0.0}
    assert {one.p_value for one in found.suspects} == {1.0}


def test_a_copy_is_the_same_every_time_and_leaves_the_bundle_alone(bundle: Bundle) -> None:
    """A vendor can make a buyer's copy anew; everything but the weights is the original's."""
    one, other = (fingerprint(bundle, SECRET, RECORDS[1]) for _ in range(2))
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert dataclasses.replace(one, tensors={}) == dataclasses.replace(bundle, tensors={})
    assert not torch.equal(one.tensors["network.conv1.weight"], bundle.tensors["network.conv1.weight"])


def test_tied_weights_stay_tied() -> None:
    """One mark for weights that are stored under two names, read once, also when a thief kept one name alone."""
    weight = weights([40, 60], 3, torch.float32)
    tensors = {"decoder": weight, "encoder": weight.clone(), "other": weights([40, 60], 4, torch.float32)}
    copy = mark(tensors, SECRET, RECORDS[0])
    assert torch.equal(copy["decoder"], copy["encoder"])
    assert len(safetensors.torch.save(copy)) > 4 * 3 * 2400  # which refuses tensors that share memory
    whole = identify(vendor(tensors), copy, SECRET, RECORDS)
    assert [one.name for one in whole.tensors] == ["decoder", "other"]
    one_name = identify(vendor(tensors), {"encoder": copy["encoder"], "other": copy["other"]}, SECRET, RECORDS)
    assert one_name.suspects[0].z == whole.suspects[0].z


@given(st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_an_assignment_gives_each_row_a_column_of_its_own(count: int, seed: int) -> None:
    """Also with ties; and what was only moved is found again."""
    random = np.random.default_rng(seed)
    assert sorted(assign(np.round(random.random((count, count)), 1))) == list(range(count))
    assert sorted(assign(np.zeros((count, count)))) == list(range(count))
    order = random.permutation(count)
    assert (assign(1.0 - np.eye(count)[:, order]) == np.argsort(order)).all()


@given(rows=st.integers(6, 24), columns=st.integers(6, 24), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_channels_that_were_moved_and_rescaled_are_found_again(rows: int, columns: int, seed: int) -> None:
    """Rows and columns in another order, each scaled up or down, some of them turned round."""
    random = np.random.default_rng(seed)
    original = random.standard_normal((rows, columns, 9))
    order, other = random.permutation(rows), random.permutation(columns)
    factors = np.exp(random.uniform(-1, 1, (rows, 1, 1))) * random.choice([-1, 1], (rows, 1, 1))
    leaked = (original * factors * np.exp(random.uniform(-1, 1, (1, columns, 1))))[order][:, other]
    leaked *= 1 + 1e-4 * random.standard_normal(leaked.shape)
    found_rows, found_columns = channel_order(original, leaked)
    assert (order[found_rows] == np.arange(rows)).all()
    assert (other[found_columns] == np.arange(columns)).all()
    scales = row_scales(original.reshape(rows, -1))
    assert align(original, leaked, scales).distance < 0.01


@given(seed=st.integers(0, 2**31), noise=st.sampled_from([0.001, 0.01, 0.1, 1.0, 10.0]))
@settings(max_examples=40, deadline=None)
def test_alignment_never_leads_further_off(seed: int, noise: float) -> None:
    """Whatever leaked, the aligned values are at least as near as they were."""
    random = np.random.default_rng(seed)
    original = random.standard_normal((12, 10, 4))
    leaked = original + noise * random.standard_normal(original.shape)
    scales = row_scales(original.reshape(12, -1))
    before = np.median(np.abs(leaked - original).reshape(12, -1) / scales)
    after = align(original, leaked, scales)
    assert after.distance <= before * (1 + 1e-12)
    assert after.rows.shape == (12, 40)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3.4e38, 1e-45])
def test_broken_values_say_nothing(bundle: Bundle, bad: float) -> None:
    """A thief who puts NaN or infinities into a third of the weights does not hide the others."""
    copy = {name: one.clone() for name, one in mark(bundle.tensors, SECRET, RECORDS[2]).items()}
    for tensor in copy.values():
        if tensor.is_floating_point() and tensor.ndim > 1:
            tensor.view(-1)[::3] = bad
    found = identify(bundle, copy, SECRET, RECORDS)
    assert [one.record for one in found.named] == [RECORDS[2]]
    assert math.isfinite(found.suspects[0].z)
    assert as_rows(copy["network.fc1.weight"]).shape == (64, 48)
