"""How many samples go into one message: the model's largest batch, and what this client is willing to receive."""

import math
from collections.abc import Iterable
from typing import Final

from tessera.client._types import NUMPY_TYPES, ModelContract, TensorContract
from tessera.client.errors import MessageTooLarge

FRAME_BYTES: Final = 4096
"""Room for what a message holds beside its tensors: names, ids, parameters and the receipt."""
PORT_BYTES: Final = 512
"""The same for each tensor: name, datatype and shape."""
_BF16_BYTES: Final = 2


def largest_batch(contract: ModelContract, max_message_bytes: int) -> int:
    """Return the most samples for one request; the server has lowered `contract.max_batch` to its own limits already.

    Raises `MessageTooLarge` when the request or the answer of a single sample exceeds `max_message_bytes`.
    """
    fits = contract.max_batch
    for specs, what in ((contract.inputs, "request"), (contract.outputs, "answer")):
        around = FRAME_BYTES + len(specs) * PORT_BYTES
        each = _sample_bytes(specs)
        found = (max_message_bytes - around) // max(each, 1)
        if found < 1:
            raise MessageTooLarge(
                f"the {what} of one sample of model {contract.name!r} has {each} bytes, and this client's largest "
                f"message is {max_message_bytes}",
                remedy=f"Give the client max_message_bytes={each + around} or more.",
            )
        fits = min(fits, found)
    return fits


def _sample_bytes(specs: Iterable[TensorContract]) -> int:
    """Return the bytes of one sample; an axis of unknown length counts as 1."""
    return sum(_item_bytes(spec) * math.prod(max(axis, 1) for axis in spec.shape[1:]) for spec in specs)


def _item_bytes(spec: TensorContract) -> int:
    dtype = NUMPY_TYPES.get(spec.datatype)
    return _BF16_BYTES if dtype is None else dtype.itemsize
