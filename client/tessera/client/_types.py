"""What the client hands out: contracts, answers, usage, and who it is. Plain frozen values; none holds a secret."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.keystore.copyright import CopyrightRecord
from tessera.keystore.usage import UsageRecord

Array = NDArray[Any]
"""A NumPy array of any dtype and shape."""

Inputs = Array | Mapping[str, Array]
"""One array for a model with one input, or arrays by input name."""


@dataclass(frozen=True, slots=True)
class TensorContract:
    """One tensor of a model: `shape[0]` is -1, the batch axis; -1 elsewhere stands for any length."""

    name: str
    datatype: str
    """Open Inference Protocol datatype, for instance UINT8."""
    shape: tuple[int, ...]
    layout: str = ""
    """Axis letters such as NCHW; empty when the tensor is no image."""
    finite: bool = False
    """Whether NaN and infinities are refused."""


@dataclass(frozen=True, slots=True)
class ModelContract:
    """What the model takes and gives under this licence."""

    name: str
    version: int
    package_id: str
    tier: int
    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    transform: str
    """Transform spec as canonical JSON; empty when inputs are plain."""
    input_key_id: str
    """Id of the input key; empty when inputs are plain."""
    max_batch: int
    """Most samples in one request."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one call or one frame.

    `outputs` have the batch axis exactly when the input had it. A call that was split into several requests carries one
    receipt for each; frames that were packed into one request carry that request's receipt each.
    """

    outputs: Mapping[str, Array]
    request_id: str
    receipts: tuple[UsageRecord, ...] = ()
    receipt_tokens: tuple[str, ...] = ()
    """The signed receipts as compact JWS, in the order of `receipts`: what to keep for a dispute."""
    seconds: float = 0.0
    """From the first sending to the answer, retries included."""
    attempts: int = 1

    @property
    def receipt(self) -> UsageRecord | None:
        """The verified receipt when there is exactly one, else None."""
        return self.receipts[0] if len(self.receipts) == 1 else None

    @property
    def output(self) -> Array:
        """The sole output. Raises `ValueError` when the model has several: take them from `outputs` by name."""
        (sole,) = self.outputs.values()
        return sole


@dataclass(frozen=True, slots=True)
class Usage:
    """What the licence has used, from the node's durable ledger; None where the licence sets no quota."""

    licence_id: str
    model: str
    requests: int
    samples: int
    bytes_in: int
    compute_seconds: float
    quota_samples: int | None
    samples_left: int | None


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One open session. The bearer token is not part of it."""

    session_id: str
    licence_id: str
    node_id: str
    model: str
    version: int
    tier: int
    expires_at_s: float
    """Unix time by the server's clock; the client renews before."""
    samples_left: int | None
    """At the time the session was opened; None without a quota."""
    notice: str
    """What the server said about a licence in its grace period; mostly empty."""


@dataclass(frozen=True, slots=True)
class LicenceInfo:
    """One licence this client holds, as it states itself; the server judges it."""

    licence_id: str
    model: str
    expires_at_s: int
    has_input_key: bool
    """Whether the licence names an input key, so that inputs are transformed."""
    copyright: CopyrightRecord | None = None
    """Owner, buyer and licence that the input key is bound to; None for models that are not made for records."""


@dataclass(frozen=True, slots=True)
class WhoAmI:
    """The buyer that this client speaks for; nothing was asked of the server."""

    buyer_id: str
    name: str
    licences: tuple[LicenceInfo, ...] = field(default=())


DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Longest message that a client sends or receives, unless told otherwise."""

NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Open Inference Protocol datatypes that have a NumPy dtype; raw tensors are little-endian."""
