"""From the caller's arrays to checked batches, and back: what a contract says is held here, before anything is sent."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tessera.client._types import NUMPY_TYPES, Array, Inputs, ModelContract, TensorContract
from tessera.client.errors import InvalidTensor, ProtocolError

_BF16_BITS: np.dtype[Any] = np.dtype("<u2")


@dataclass(frozen=True, slots=True)
class Batch:
    """Checked inputs of one call: every array has the batch axis, is C-contiguous and of the contract's dtype."""

    arrays: dict[str, Array]
    samples: int
    single: bool
    """Whether the caller gave one sample without a batch axis, and so gets one back."""


def check(contract: ModelContract, inputs: Inputs) -> Batch:
    """Return the checked batch in contract order. Raises `InvalidTensor`, naming the first tensor that does not fit."""
    named = _by_name(contract, inputs)
    arrays: dict[str, Array] = {}
    singles: set[bool] = set()
    for spec in contract.inputs:
        array = _array_of(spec, named[spec.name])
        _check_type(spec, array)
        single = _check_shape(spec, array)
        if spec.finite and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidTensor(f"tensor {spec.name!r} holds NaN or infinity", tensor=spec.name)
        singles.add(single)
        arrays[spec.name] = np.ascontiguousarray(array[np.newaxis] if single else array)
    samples = _samples(contract, arrays)
    if len(singles) > 1:
        name = contract.inputs[-1].name
        raise InvalidTensor("either every input has a batch axis or none has", tensor=name)
    return Batch(arrays, samples, singles == {True})


def split(batch: Batch, max_batch: int) -> Iterator[dict[str, Array]]:
    """Yield the batch's arrays in runs of at most `max_batch` samples, in order."""
    for start in range(0, batch.samples, max_batch):
        yield {name: array[start : start + max_batch] for name, array in batch.arrays.items()}


def own(batch: Batch) -> Batch:
    """Return the batch with arrays that nobody else can write to."""
    return replace(batch, arrays={name: array.copy() for name, array in batch.arrays.items()})


def pack(batches: Sequence[Batch]) -> dict[str, Array]:
    """Return the arrays of several batches, joined along the batch axis."""
    if len(batches) == 1:
        return batches[0].arrays
    return {name: np.concatenate([batch.arrays[name] for batch in batches]) for name in batches[0].arrays}


def join(outputs: Sequence[Mapping[str, Array]], *, single: bool) -> dict[str, Array]:
    """Return the outputs of the runs of one call, joined; without the batch axis when `single`."""
    joined = {
        name: outputs[0][name] if len(outputs) == 1 else np.concatenate([part[name] for part in outputs])
        for name in outputs[0]
    }
    return {name: array[0] for name, array in joined.items()} if single else joined


def decode(spec: TensorContract, datatype: str, shape: Sequence[int], raw: bytes, samples: int) -> Array:
    """Return an output tensor as a read-only array; BF16, which NumPy lacks, as float32 of the same values.

    Raises `ProtocolError` unless it is what the contract promises.
    """
    dtype = _BF16_BITS if datatype == "BF16" else NUMPY_TYPES.get(datatype)
    if dtype is None or datatype != spec.datatype:
        raise ProtocolError(f"output {spec.name!r} has datatype {datatype!r:.20}, the contract says {spec.datatype}")
    if not _fits(spec.shape, shape) or shape[0] != samples:
        raise ProtocolError(f"output {spec.name!r} does not have the shape that the contract promises")
    count = int(np.prod(shape, dtype=object))
    if len(raw) != count * dtype.itemsize:
        raise ProtocolError(f"output {spec.name!r} has {len(raw)} bytes, its shape needs {count * dtype.itemsize}")
    array: Array = np.frombuffer(raw, dtype=dtype).reshape(tuple(shape))
    return (array.astype("<u4") << 16).view("<f4") if datatype == "BF16" else array


def _by_name(contract: ModelContract, inputs: Inputs) -> Mapping[str, Any]:
    names = [spec.name for spec in contract.inputs]
    if not isinstance(inputs, Mapping):
        if len(names) != 1:
            raise InvalidTensor(
                f"model {contract.name!r} has {len(names)} inputs; one array does not say which it is",
                tensor=names[0] if names else "",
                remedy=f"Give a mapping with the keys {', '.join(names)}.",
            )
        return {names[0]: inputs}
    for name in names:
        if name not in inputs:
            raise InvalidTensor(f"tensor {name!r} is missing", tensor=name)
    for name in inputs:
        if name not in names:
            raise InvalidTensor(f"model {contract.name!r} has no input {name!r}", tensor=str(name))
    return inputs


def _array_of(spec: TensorContract, given: Any) -> Array:
    try:
        array: Array = np.asarray(given)
    except Exception as error:  # a ragged list, a tensor on a GPU: what fails here is up to the type that was given
        raise InvalidTensor(
            f"tensor {spec.name!r} is a {type(given).__name__} that cannot be read as an array",
            tensor=spec.name,
            remedy="Give a NumPy array.",
        ) from error
    return array


def _check_type(spec: TensorContract, array: Array) -> None:
    wanted = NUMPY_TYPES.get(spec.datatype)
    if wanted is None:
        raise InvalidTensor(f"tensor {spec.name!r} is {spec.datatype}, which this client cannot send", tensor=spec.name)
    if array.dtype != wanted:
        raise InvalidTensor(
            f"tensor {spec.name!r} is {array.dtype}, the model takes {wanted} ({spec.datatype})",
            tensor=spec.name,
            remedy="Convert it on purpose; the client never rounds or scales by itself.",
        )


def _check_shape(spec: TensorContract, array: Array) -> bool:
    """Return whether `array` is one sample without the batch axis."""
    if _fits(spec.shape[1:], array.shape):
        return True
    if _fits(spec.shape, array.shape) and array.shape[0] > 0:
        return False
    wanted = ", ".join("any" if axis < 0 else str(axis) for axis in spec.shape[1:])
    raise InvalidTensor(
        f"tensor {spec.name!r} has shape {array.shape}, the model takes ({wanted}) or (samples, {wanted})",
        tensor=spec.name,
        remedy="Give one sample, or at least one sample along a first batch axis.",
    )


def _samples(contract: ModelContract, arrays: Mapping[str, Array]) -> int:
    counts = {name: array.shape[0] for name, array in arrays.items()}
    first = counts[contract.inputs[0].name]
    for name, count in counts.items():
        if count != first:
            raise InvalidTensor(f"tensor {name!r} has {count} samples, others have {first}", tensor=name)
    return int(first)


def _fits(wanted: Sequence[int], found: Sequence[int]) -> bool:
    return len(wanted) == len(found) and all(w in (-1, f) and f >= 0 for w, f in zip(wanted, found, strict=True))
