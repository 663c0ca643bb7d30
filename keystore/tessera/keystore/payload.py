"""The digest of what was sent: one function for both ends, so that a receipt can be held against a request.

What rule W-49 of docs/spec.md says, in steps:

1. The digest is SHA-256, written as 64 lower-case hexadecimal digits, over the byte string
   `"tessera/v1/payload\\n" ‖ text(model) ‖ u64(version) ‖ u64(number of tensors) ‖ tensor_1 ‖ … ‖ tensor_n`.
2. `u64(x)` is 8 bytes, big-endian. `text(s)` is `u64(length in bytes) ‖ s in UTF-8`. `blob(b)` is `u64(length) ‖ b`.
3. `tensor` is `text(name) ‖ text(datatype) ‖ u64(rank) ‖ u64(dimension)… ‖ blob(raw)`.
4. The version is the one that served the request, a positive integer, also when the request left it to the server.
5. Tensors come in the order of the model's contract, whatever their order in the request.
6. `raw` is the tensor as `raw_input_contents` would carry it: row-major, little-endian, no padding; a request with
   typed contents is hashed as if it had been raw. What is hashed is what is sent: after the transform.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tessera.keystore.errors import ApiMisuse

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc.Buffer begins with Python 3.12

LABEL = b"tessera/v1/payload\n"
_U64 = struct.Struct(">Q")


def payload_digest(model: str, version: int, tensors: Iterable["tuple[str, str, Sequence[int], Buffer]"]) -> str:
    """Return the 64 hexadecimal digits of steps 1-6 above for `(name, datatype, shape, raw)` in contract order.

    `raw` is any C-contiguous buffer and is not copied. Raises `ApiMisuse` for a negative version or dimension, which no
    checked request holds.
    """
    hasher = hashlib.sha256(LABEL)
    listed = list(tensors)
    hasher.update(_text(model) + _u64(version) + _u64(len(listed)))
    for name, datatype, shape, raw in listed:
        view = memoryview(raw)
        view = view.cast("B") if view.nbytes else memoryview(b"")  # an empty axis cannot be cast
        head = _text(name) + _text(datatype) + _u64(len(shape)) + b"".join(map(_u64, shape))
        hasher.update(head + _u64(view.nbytes))
        hasher.update(view)
    return hasher.hexdigest()


def _u64(value: int) -> bytes:
    if not 0 <= value < 2**64:
        raise ApiMisuse("a number in a payload digest is not an unsigned 64-bit integer")
    return _U64.pack(value)


def _text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return _U64.pack(len(raw)) + raw
