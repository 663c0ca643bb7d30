"""Patches: what one tier adds to the tier below it, in plain (docs/spec.md, rules P-31 to P-34).

    raw = encode_patch([PatchEntry("conv.weight", "F32", run=9, units=units, values=values)])
    entries = decode_patch(raw)                       zero copies: the arrays are views of `raw`
    check_patch(entries, parts)                       names, dtypes and sizes are those of this package
    for entry in entries:
        entry.write_into(buffers[entry.tensor])

A unit is a run of `run` consecutive elements of a tensor in row-major order, such as one kernel slice of a convolution:
unit n covers the elements n * run … n * run + run - 1. Values are bytes, so that every dtype comes back to the bit.
Which units a patch names is the vendor's secret: patches lie in a package sealed, each under the key of its tier.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.keystore.package import fields
from tessera.keystore.package.buffers import plain_bytes
from tessera.keystore.package.parts import ITEM_BYTES, Part

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc.Buffer begins with Python 3.12

MAGIC: Final = b"tessera-patch/1\n"
MAX_ENTRIES: Final = 65_536
MAX_RUN: Final = 2**31 - 1
MAX_UNITS: Final = 2**32
"""Units of one tensor: a position is 4 bytes."""

_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<BBII")
"""Bytes of the name, bytes of the dtype, elements of a run, number of units."""
_POSITION: Final = np.dtype("<u4")
_DTYPES: Final = frozenset(ITEM_BYTES)


@dataclass(frozen=True, eq=False)
class PatchEntry:
    """The true values of some units of one tensor. Construction raises `Malformed` for what no patch can hold."""

    tensor: str
    """The tensor's name in the package."""
    dtype: str
    """Its safetensors dtype, such as `F32`."""
    run: int
    """Elements in one unit, 1 … 2^31 - 1."""
    units: npt.NDArray[np.uint32] = field(repr=False)
    """(k,), k > 0, strictly rising; any integer array is taken."""
    values: npt.NDArray[np.uint8] = field(repr=False)
    """(k, run * bytes of an element): the units' bytes, little-endian; any C-contiguous numbers of that many bytes."""

    def __post_init__(self) -> None:
        fields.text(self.tensor, fields.TENSOR_NAME, "a patched tensor's name")
        fields.choice(self.dtype, _DTYPES, "a patched tensor's dtype")
        fields.integer(self.run, 1, MAX_RUN, "a patch's run")
        units = _positions(self.units)
        raw: Any = self.values  # numpy does not tell a type checker that its arrays are buffers before Python 3.12
        values = np.frombuffer(plain_bytes(raw), np.uint8)
        if values.size != units.size * self.unit_bytes:
            raise Malformed(f"the patch of {self.tensor} does not have the bytes of {units.size} units")
        object.__setattr__(self, "units", units)
        object.__setattr__(self, "values", values.reshape(units.size, self.unit_bytes))

    @property
    def unit_bytes(self) -> int:
        """Bytes of one unit."""
        return self.run * ITEM_BYTES[self.dtype]

    def write_into(self, target: "Buffer") -> None:
        """Put the values in their places in `target`, the writable C-contiguous memory of the tensor.

        Raises `Malformed` when the tensor has no such units.
        """
        view = plain_bytes(target)
        if view.readonly:
            raise ApiMisuse("a patch is written into writable memory")
        if len(view) % self.unit_bytes or int(self.units[-1]) >= len(view) // self.unit_bytes:
            raise Malformed(f"the patch of {self.tensor} names units that the tensor does not have")
        unit = np.dtype((np.void, self.unit_bytes))  # whole units are moved, whatever they are made of
        np.put(np.frombuffer(view, unit), self.units.astype(np.intp), self.values.view(unit)[:, 0])


def encode_patch(entries: Iterable[PatchEntry]) -> bytes:
    """Return the bytes of a patch; `decode_patch` gives the same entries, by name. Raises `Malformed` for a name given
    twice and for more entries than rule P-31 allows. No entries make the patch of a tier that adds nothing.
    """
    ordered = sorted(entries, key=lambda entry: entry.tensor)
    if len(ordered) > MAX_ENTRIES or len({entry.tensor for entry in ordered}) != len(ordered):
        raise Malformed(f"a patch has at most {MAX_ENTRIES} entries, for a tensor each")
    return b"".join([MAGIC, _COUNT.pack(len(ordered)), *(piece for entry in ordered for piece in _pieces(entry))])


def decode_patch(raw: "Buffer") -> tuple[PatchEntry, ...]:
    """Return the entries of a patch; the arrays are views of `raw`. Raises `Malformed` for any bytes that
    `encode_patch` would not write.
    """
    reader = _Reader(plain_bytes(raw))
    if bytes(reader.take(len(MAGIC))) != MAGIC:
        raise Malformed("not a patch of a version that this software knows")
    (count,) = _COUNT.unpack(reader.take(_COUNT.size))
    if count > MAX_ENTRIES:
        raise Malformed(f"a patch has at most {MAX_ENTRIES} entries")
    entries: list[PatchEntry] = []
    for _ in range(count):
        entry = _entry(reader)
        if entries and entry.tensor <= entries[-1].tensor:
            raise Malformed("the entries of a patch are not sorted by name, each once")
        entries.append(entry)
    if reader.left:
        raise Malformed("bytes follow the end of a patch")
    return tuple(entries)


def check_patch(entries: Sequence[PatchEntry], tensors: Mapping[str, Part]) -> None:
    """Hold a patch against the tensors of a package. Raises `Malformed` when it belongs to other tensors."""
    for entry in entries:
        part = tensors.get(entry.tensor)
        if part is None or part.dtype != entry.dtype:
            raise Malformed(f"the patch is for a tensor {entry.tensor} of dtype {entry.dtype}, which is not here")
        if part.size % entry.unit_bytes or int(entry.units[-1]) >= part.size // entry.unit_bytes:
            raise Malformed(f"the patch of {entry.tensor} names units that the tensor does not have")


class _Reader:
    """Takes pieces off a buffer, in order."""

    def __init__(self, raw: memoryview) -> None:
        self._raw = raw
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._raw) - self._at

    def take(self, size: int) -> memoryview:
        if size > self.left:
            raise Malformed("a patch ends early")
        self._at += size
        return self._raw[self._at - size : self._at]


def _pieces(entry: PatchEntry) -> tuple[bytes, ...]:
    name, dtype = entry.tensor.encode("ascii"), entry.dtype.encode("ascii")
    head = _ENTRY.pack(len(name), len(dtype), entry.run, entry.units.size)
    return head, name, dtype, entry.units.astype(_POSITION, copy=False).tobytes(), entry.values.tobytes()


def _entry(reader: _Reader) -> PatchEntry:
    name_bytes, dtype_bytes, run, count = _ENTRY.unpack(reader.take(_ENTRY.size))
    name, dtype = _ascii(reader.take(name_bytes)), _ascii(reader.take(dtype_bytes))
    units = np.frombuffer(reader.take(count * _POSITION.itemsize), _POSITION)
    return PatchEntry(
        name, dtype, run, units, np.frombuffer(reader.take(count * run * ITEM_BYTES.get(dtype, 0)), np.uint8)
    )


def _ascii(raw: memoryview) -> str:
    try:
        return str(raw, "ascii")
    except UnicodeDecodeError as error:
        raise Malformed("a patch holds a name that is no ASCII text") from error


def _positions(units: npt.NDArray[np.integer]) -> npt.NDArray[np.uint32]:
    found = np.require(units, requirements="A")  # views of a patch lie at odd addresses, where numpy compares slowly
    if found.ndim != 1 or found.dtype.kind not in "iu" or not found.size:
        raise Malformed("the units of a patch are a row of at least one integer")
    if int(found[0]) < 0 or int(found[-1]) >= MAX_UNITS or not bool((found[1:] > found[:-1]).all()):
        raise Malformed("the units of a patch do not rise strictly from 0 to 2^32 - 1")
    return found.astype(np.uint32, copy=False)
