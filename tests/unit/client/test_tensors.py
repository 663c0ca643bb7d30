"""What does not fit the contract is refused before anything is sent, with the tensor's name."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.client import InvalidTensor, ModelContract, ProtocolError, TensorContract
from tessera.client._tensors import check, decode, join, pack, split

IMAGE = TensorContract("image", "UINT8", (-1, 1, 8, 8), "NCHW")
POINTS = TensorContract("points", "FP32", (-1, 2), finite=True)
LOGITS = TensorContract("logits", "FP32", (-1, 10))


def contract(*inputs: TensorContract, max_batch: int = 4) -> ModelContract:
    """Return a contract with these inputs."""
    return ModelContract("digits", 1, "00" * 16, 1, inputs, (LOGITS,), "", "", max_batch)


def zeros(*shape: int, dtype: str = "u1") -> Any:
    """Return zeros."""
    return np.zeros(shape, dtype)


def test_one_sample_comes_back_without_a_batch_axis() -> None:
    """A sample is batched to one, and its answer is unbatched."""
    batch = check(contract(IMAGE), zeros(1, 8, 8))
    assert (batch.arrays["image"].shape, batch.samples, batch.single) == ((1, 1, 8, 8), 1, True)
    assert join([{"logits": zeros(1, 10, dtype="f4")}], single=True)["logits"].shape == (10,)


def test_a_batch_of_one_keeps_its_axis() -> None:
    """Giving the axis means getting it back."""
    batch = check(contract(IMAGE), zeros(1, 1, 8, 8))
    assert not batch.single
    assert join([{"logits": zeros(1, 10, dtype="f4")}], single=False)["logits"].shape == (1, 10)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (zeros(1, 8, 8, dtype="f4"), "float32"),
        (zeros(1, 8, 8, dtype="i8"), "int64"),
        (zeros(8, 8), "(8, 8)"),
        (zeros(2, 1, 8, 9), "(2, 1, 8, 9)"),
        (zeros(0, 1, 8, 8), "(0, 1, 8, 8)"),
        (None, "object"),
    ],
)
def test_a_misfit_is_named(given: Any, word: str) -> None:
    """Datatype, shape and emptiness are held against the contract; nothing is converted silently."""
    with pytest.raises(InvalidTensor) as caught:
        check(contract(IMAGE), given)
    assert caught.value.tensor == "image"
    assert word in str(caught.value)


def test_what_is_no_array_is_named() -> None:
    """A ragged list, or another library's tensor that does not let itself be read: its own words are the cause."""

    class OnDevice:
        def __array__(self, *_: object, **__: object) -> Any:
            raise TypeError("copy it to the host first")

    for odd in ([[1], [2, 3]], OnDevice()):
        with pytest.raises(InvalidTensor, match=f"{type(odd).__name__} that cannot be read") as caught:
            check(contract(IMAGE), odd)  # type: ignore[arg-type]
        assert caught.value.tensor == "image"
        assert caught.value.__cause__ is not None


def test_missing_and_unknown_inputs_are_named() -> None:
    """A mapping names exactly the model's inputs."""
    both = contract(IMAGE, POINTS)
    with pytest.raises(InvalidTensor, match="'points' is missing"):
        check(both, {"image": zeros(1, 8, 8)})
    with pytest.raises(InvalidTensor, match="no input 'extra'"):
        check(contract(IMAGE), {"image": zeros(1, 8, 8), "extra": zeros(1)})
    with pytest.raises(InvalidTensor, match="has 2 inputs"):
        check(both, zeros(1, 8, 8))


def test_inputs_agree_on_the_number_of_samples() -> None:
    """Two inputs of different length, or one sample beside a batch, are refused."""
    both = contract(IMAGE, POINTS)
    with pytest.raises(InvalidTensor, match="'points' has 3 samples"):
        check(both, {"image": zeros(2, 1, 8, 8), "points": zeros(3, 2, dtype="f4")})
    with pytest.raises(InvalidTensor, match="every input has a batch axis or none"):
        check(both, {"image": zeros(1, 8, 8), "points": zeros(1, 2, dtype="f4")})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_where_forbidden(bad: float) -> None:
    """`finite` in the contract is held on the buyer's side already."""
    with pytest.raises(InvalidTensor, match="NaN or infinity"):
        check(contract(POINTS), np.array([[0, bad]], np.float32))


def test_a_datatype_without_a_numpy_form_is_refused() -> None:
    """BYTES and BF16 inputs cannot be sent by this client, and it says so."""
    with pytest.raises(InvalidTensor, match="BYTES"):
        check(contract(TensorContract("text", "BYTES", (-1,))), zeros(3))


def test_views_are_sent_row_major() -> None:
    """A transposed or strided array is copied into the order of the wire."""
    batch = check(contract(IMAGE), np.arange(64, dtype=np.uint8).reshape(1, 8, 8).transpose(0, 2, 1))
    assert batch.arrays["image"].flags.c_contiguous
    assert batch.arrays["image"][0, 0, 0, 1] == 8


@given(samples=st.integers(1, 40), most=st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_splitting_and_joining_is_the_identity(samples: int, most: int) -> None:
    """Runs are never larger than allowed, and together they are the batch."""
    batch = check(contract(IMAGE), np.arange(samples * 64, dtype=np.uint64).astype(np.uint8).reshape(-1, 1, 8, 8))
    runs = list(split(batch, most))
    assert all(len(run["image"]) <= most for run in runs)
    assert (join(runs, single=False)["image"] == batch.arrays["image"]).all()


def test_packing_joins_single_samples() -> None:
    """Three samples become a batch of three in their order."""
    batches = [check(contract(IMAGE), np.full((1, 8, 8), n, np.uint8)) for n in range(3)]
    assert pack(batches)["image"][:, 0, 0, 0].tolist() == [0, 1, 2]


@given(
    datatype=st.sampled_from(["FP32", "FP64", "BF16", "UINT8", "", "\x00"]),
    shape=st.lists(st.integers(-2, 2**62), max_size=4),
    raw=st.binary(max_size=90),
    samples=st.integers(1, 3),
)
@settings(max_examples=200, deadline=None)
def test_any_output_is_decoded_or_refused(datatype: str, shape: list[int], raw: bytes, samples: int) -> None:
    """Random outputs give the promised array or `ProtocolError`, nothing else."""
    try:
        array = decode(LOGITS, datatype, shape, raw, samples)
    except ProtocolError:
        return
    assert array.shape == (samples, 10)
    assert array.dtype == np.float32


def test_bf16_outputs_become_float32() -> None:
    """NumPy has no bfloat16; the values are kept exactly."""
    spec = TensorContract("sum", "BF16", (-1,))
    raw = (np.array([1.5, -2.0, 0.0], np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    assert decode(spec, "BF16", [3], raw, 3).tolist() == [1.5, -2.0, 0.0]
