"""How many samples fit into one message: what a model's tensors weigh, held against the server's limits (rule W-46).

A contract's `max_batch` as the server announces it is never more than what fits, so a client that splits its batches
by it never sends a request, nor asks for an answer, that could not travel.
"""

import math
from collections.abc import Iterable
from typing import Final

from tessera.keystore.errors import Malformed
from tessera.keystore.package import Manifest, TensorSpec
from tessera.server.config import Limits
from tessera.server.engine.datatypes import DATATYPES

FRAME_BYTES: Final = 4096
"""Room for what a message holds beside its tensors: names, ids, parameters and the receipt."""
PORT_BYTES: Final = 512
"""The same for each tensor: name, datatype and shape."""


def sample_bytes(specs: Iterable[TensorSpec]) -> int:
    """Return the raw bytes of one sample of these tensors."""
    return sum(_item_bytes(spec) * math.prod(spec.shape[1:]) for spec in specs)


def room(limit_bytes: int, ports: int) -> int:
    """Return how many bytes of tensors fit into a message of `limit_bytes` with `ports` of them; may be negative."""
    return limit_bytes - FRAME_BYTES - ports * PORT_BYTES


def largest_batch(manifest: Manifest, limits: Limits) -> int:
    """Return the most samples that one request may hold, at least 1 and at most the package's own maximum.

    Raises `Malformed` (reason `message-too-large`), naming the setting to raise, when not even one sample fits.
    """
    fits = manifest.max_batch
    for specs, setting, limit in (
        (manifest.inputs, "max_message_bytes", limits.max_message_bytes),
        (manifest.outputs, "max_answer_bytes", limits.max_answer_bytes),
    ):
        each = sample_bytes(specs)
        found = room(limit, len(specs)) // max(each, 1)
        if found < 1:
            raise _too_large(manifest, setting, each + limit - room(limit, len(specs)), limit)
        fits = min(fits, found)
    fits = min(fits, limits.max_queue_samples)  # more than the queue holds would be `queue-full` for ever
    widest = max(sample_bytes([spec]) for spec in manifest.inputs)
    return min(fits, max(1, limits.tensor_bytes // max(widest, 1)))


def _too_large(manifest: Manifest, setting: str, needed: int, limit: int) -> Malformed:
    what = "a request" if setting == "max_message_bytes" else "an answer"
    return Malformed(
        f"{what} of one sample of model {manifest.model} needs {needed} bytes, and this server's limit is {limit}",
        reason="message-too-large",
        remedy=f"the operator starts the server with TESSERA_LIMITS__{setting.upper()}={_rounded(needed)} or more",
    )


def _item_bytes(spec: TensorSpec) -> int:
    datatype = DATATYPES.get(spec.datatype)
    return 0 if datatype is None else datatype.numpy_dtype.itemsize  # BYTES has no fixed size, and is not served


def _rounded(size: int) -> int:
    """Return `size` rounded up to whole MiB, which people can read."""
    return -(-size // 2**20) * 2**20
