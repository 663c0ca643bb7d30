"""The fast arithmetic computes the exact one's function, shares what can be shared, and is left out where it cannot."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from support import keys
from support.models import Digits, Sealed, seal, seeded
from tessera.keystore.package import TensorSpec, open_package
from tessera.server.engine.fusing import agrees, can_fuse, fuse
from tessera.server.engine.program import Arithmetic, LoadedProgram, build, load_sealed, read_state
from tessera.server.engine.sharing import SharedTensors


class Residual(nn.Module):
    """What fusing must get right: a shortcut read twice, a norm without affine, a convolution without norm, a view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.deep_norm = nn.BatchNorm2d(6, affine=False)
        self.last = nn.Conv2d(6, 3, 1)
        for norm in (self.stem_norm, self.deep_norm):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.3, 3.0)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (N, 192): uint8 (N, 1, 8, 8) through a residual block, a broadcast sum and a view."""
        x = torch.relu(self.stem_norm(self.stem(image.float() / 255)))
        y = self.deep_norm(self.deep(x)) + x
        y = torch.relu(y) + x.mean((2, 3), keepdim=True)
        flat: torch.Tensor = self.last(y).contiguous().view(image.shape[0], 192)
        return flat


WIDE = (TensorSpec("flat", "FP32", (-1, 192)),)


def load(sealed: Sealed, arithmetic: Arithmetic) -> LoadedProgram:
    """Return a program that has chosen its arithmetic."""
    with open_package(sealed.path, keys.ISSUERS) as package:
        program = load_sealed(package.unlock(keys.CONTENT_KEY), arithmetic=arithmetic)
    with torch.inference_mode():
        program.warm_up()
    return program


def images(samples: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Return random images."""
    return np.random.default_rng(samples).integers(0, 256, (samples, 1, 8, 8), np.uint8)


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    """A sealed residual block, exported once."""
    return seal(tmp_path_factory.mktemp("residual"), seeded(Residual), outputs=WIDE)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 2, 16])
def test_fast_is_within_a_millionth_and_exact_is_exact(residual: Sealed, samples: int) -> None:
    """Both arithmetics answer at every batch size; only the exact one has the vendor's bits by promise."""
    exact, fast = load(residual, "exact"), load(residual, "fast")
    assert (exact.arithmetic, fast.arithmetic) == ("exact", "fast")
    with torch.inference_mode():
        expected = residual.module(torch.from_numpy(images(samples))).numpy()
        assert np.array_equal(exact.run([{"image": images(samples)}])["flat"], expected)
        np.testing.assert_allclose(
            fast.run([{"image": images(samples)}])["flat"], expected, rtol=0, atol=1e-6 * abs(expected).max()
        )


@pytest.mark.slow
def test_answers_do_not_depend_on_what_ran_before(residual: Sealed) -> None:
    """Writing in place touches nothing that outlives a run: the second run of an input gives the first one's bits."""
    fast = load(residual, "fast")
    with torch.inference_mode():
        first = fast.run([{"image": images(5)}])["flat"]
        fast.run([{"image": images(7)}])
        assert np.array_equal(fast.run([{"image": images(5)}])["flat"], first)


def _graph(module: nn.Module) -> torch.fx.GraphModule:
    batch = torch.export.Dim("batch", min=1, max=8)
    example = torch.zeros((2, 1, 8, 8), dtype=torch.uint8)
    graph = torch.export.export(module, (example,), dynamic_shapes=({0: batch},)).module(check_guards=False)
    assert isinstance(graph, torch.fx.GraphModule)
    return graph


@pytest.mark.slow
def test_no_norm_is_left_and_the_source_graph_is_untouched() -> None:
    """Every norm behind a convolution is folded; the exact graph still runs and gives its own bits."""
    module = seeded(Residual)
    graph = _graph(module)
    identity = {name: name for name in dict(graph.state_dict())}
    fused, taken = fuse(graph, shared=SharedTensors(), identity=identity)
    targets = [str(node.target) for node in fused.graph.nodes]
    assert "aten.batch_norm.default" not in targets
    assert {"aten.relu_.default", "aten.add_.Tensor"} <= set(targets)
    assert not any(name.startswith(("stem", "deep", "last")) for name in taken)
    pixels = torch.from_numpy(images(3))
    with torch.inference_mode():
        assert torch.equal(graph(pixels), module(pixels))


class Strided(nn.Module):
    """A convolution whose result is read by memory position."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return every second value of the first sample's memory."""
        strided: torch.Tensor = self.conv(image.float()).as_strided((2, 4), (4, 2))
        return strided


@pytest.mark.slow
def test_graphs_that_read_memory_by_position_or_have_no_convolution_are_left_alone() -> None:
    """Fusing changes the layout of activations, so such graphs keep the exact arithmetic."""
    cpu = torch.device("cpu")
    assert can_fuse(_graph(seeded(Residual)), cpu)
    assert not can_fuse(_graph(seeded(Residual)), torch.device("cuda"))
    strided = torch.export.export(seeded(Strided), (torch.zeros((2, 1, 8, 8), dtype=torch.uint8),)).module()
    assert not can_fuse(strided, cpu)
    assert not can_fuse(_graph(seeded(nn.Flatten)), cpu)
    assert not can_fuse(nn.Flatten(), cpu)


@given(
    st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8),
    st.integers(0, 7),
    st.floats(0.001, 1) | st.just(float("nan")) | st.just(float("inf")),
)
@settings(max_examples=50)
def test_any_real_difference_is_seen(values: list[float], at: int, change: float) -> None:
    """`agrees` accepts equal tensors and refuses one wrong value, NaN and infinity included."""
    exact = torch.tensor(values)
    assert agrees([exact], [exact.clone()])
    wrong = exact.clone()
    wrong[at % len(values)] += change * max(1.0, float(exact.abs().max()))
    assert not agrees([exact], [wrong])


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
def test_programs_share_tensors_of_one_identity_until_the_last_is_erased(
    tmp_path: Path, arithmetic: Arithmetic
) -> None:
    """Two programs that differ in one layer hold the others once; erasing one leaves the other's answers alone."""
    sealed = seal(tmp_path, seeded(Digits))
    shared = SharedTensors()

    def variant(level: int) -> LoadedProgram:
        with open_package(sealed.path, keys.ISSUERS) as package:
            unlocked = package.unlock(keys.CONTENT_KEY)
            state = read_state(unlocked)
            state["head.weight"] += level
            identity = {name: (name, level if name == "head.weight" else 0) for name in state}
            program = build(unlocked, state, arithmetic=arithmetic, shared=shared, identity=identity)
        with torch.inference_mode():
            program.warm_up()
        return program

    one, other = variant(0), variant(1)
    assert one.arithmetic == arithmetic
    head = 10 * 256 * 4
    assert shared.nbytes == one.device_bytes + head
    with torch.inference_mode():
        before = other.run([{"image": images(2)}])["logits"]
        assert not np.array_equal(one.run([{"image": images(2)}])["logits"], before)
        one.erase()
        assert shared.nbytes == other.device_bytes
        assert np.array_equal(other.run([{"image": images(2)}])["logits"], before)
    other.erase()
    assert shared.nbytes == 0


def test_the_last_user_overwrites() -> None:
    """A tensor keeps its values while anybody uses it and is all zeros afterwards; strangers are ignored."""
    shared = SharedTensors()
    tensor = shared.take("a", lambda: torch.ones(3))
    assert shared.take("a", lambda: torch.zeros(3)) is tensor
    shared.release("b")
    shared.release("a")
    assert tensor.tolist() == [1, 1, 1]
    shared.release("a")
    assert tensor.tolist() == [0, 0, 0]
    assert shared.nbytes == 0
