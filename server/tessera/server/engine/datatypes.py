"""Datatypes in three vocabularies: the Open Inference Protocol's, numpy's and torch's.

BYTES is missing on purpose: no program takes it, and a contract that names it is refused at load (rule W-43).
"""

from typing import Any, Final, NamedTuple

import numpy as np
import torch


class Datatype(NamedTuple):
    """One datatype of the protocol: little-endian numpy type on the wire, torch type on the device."""

    numpy_dtype: "np.dtype[Any]"
    torch_dtype: torch.dtype


DATATYPES: Final[dict[str, Datatype]] = {
    "BOOL": Datatype(np.dtype("?"), torch.bool),
    "UINT8": Datatype(np.dtype("u1"), torch.uint8),
    "UINT16": Datatype(np.dtype("<u2"), torch.uint16),
    "UINT32": Datatype(np.dtype("<u4"), torch.uint32),
    "UINT64": Datatype(np.dtype("<u8"), torch.uint64),
    "INT8": Datatype(np.dtype("i1"), torch.int8),
    "INT16": Datatype(np.dtype("<i2"), torch.int16),
    "INT32": Datatype(np.dtype("<i4"), torch.int32),
    "INT64": Datatype(np.dtype("<i8"), torch.int64),
    "FP16": Datatype(np.dtype("<f2"), torch.float16),
    "FP32": Datatype(np.dtype("<f4"), torch.float32),
    "FP64": Datatype(np.dtype("<f8"), torch.float64),
    "BF16": Datatype(np.dtype("<u2"), torch.bfloat16),
}
"""Protocol name to the types that carry it; BF16, which numpy lacks, travels as its 16 bits."""

STORED: Final[dict[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""safetensors' names of the types of stored tensors."""
