"""The torch twin gives the bits of the NumPy transform."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.keystore.secrets import InputKey
from tessera.protect import TorchTransform, transforms_torch
from tessera.transforms import Step, Transform, TransformError, TransformSpec

blocks = st.sampled_from([2, 4, 8])
steps = st.builds(Step, kind=st.sampled_from(["shf", "np", "ffx"]), block=blocks)
steps |= st.builds(Step, kind=st.just("ffx"), block=blocks, positions=st.just(True))
devices = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("device", devices)
@settings(max_examples=60, deadline=None)
@given(
    stack=st.lists(steps, min_size=1, max_size=8),
    key=st.binary(min_size=32, max_size=32).map(InputKey),
    shape=st.tuples(st.integers(0, 5), st.integers(1, 3), st.sampled_from([8, 16]), st.sampled_from([8, 24])),
    seed=st.integers(0, 2**32 - 1),
)
def test_equal_to_numpy(
    device: str, stack: list[Step], key: InputKey, shape: tuple[int, int, int, int], seed: int
) -> None:
    """Both forms agree on every bit on every device, forwards and back, and leave their input alone (rule T-12)."""
    lock = Transform(TransformSpec(tuple(stack)), key, *shape[1:])
    twin = TorchTransform(lock, device)
    batch = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    given_batch = torch.tensor(batch, device=device)
    locked = twin(given_batch)
    assert locked.cpu().numpy().tobytes() == lock(batch).tobytes()
    assert torch.equal(twin.inverse(locked), given_batch)
    assert given_batch.cpu().numpy().tobytes() == batch.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("text", ["ffx:32:positions,np:2,ffx:16:positions,shf:32", "shf:16,np:8,ffx:4"])
def test_large_images(text: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several passes, several strips and lookups in several parts give the same bits."""
    monkeypatch.setattr(transforms_torch, "LOOKUPS", 250_000)
    lock = Transform(TransformSpec.parse_text(text), InputKey(bytes(range(32))), 3, 224, 256)
    twin = TorchTransform(lock, device)
    batch = torch.randint(0, 256, (3, 3, 224, 256), dtype=torch.uint8)
    locked = twin(batch.to(device))
    assert locked.cpu().numpy().tobytes() == lock(batch.numpy()).tobytes()
    assert torch.equal(twin.inverse(locked).cpu(), batch)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1, 1, 8, 8),
        torch.zeros(1, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 1, 8, 4, dtype=torch.uint8),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_refusals(tensor: torch.Tensor) -> None:
    """Other dtypes, ranks and shapes are refused as in NumPy (rule T-11)."""
    twin = TorchTransform(Transform(TransformSpec.parse_text("shf:4"), InputKey(bytes(32)), 1, 8, 8))
    for direction in (twin, twin.inverse):
        with pytest.raises(TransformError):
            direction(tensor)


def test_repr_shows_no_key() -> None:
    """Its repr names spec, shape and device."""
    twin = TorchTransform(Transform(TransformSpec.parse_text("shf:4"), InputKey(bytes(32)), 1, 8, 8))
    assert repr(twin) == "TorchTransform(Transform('shf:4', 1x8x8), device='cpu')"
