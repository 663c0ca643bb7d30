"""Patches: the encoding is one to one, anything else is malformed, and values land where they belong (P-31 to P-34)."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.packages import flip, pattern
from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.keystore.package import ITEM_BYTES, Part, PatchEntry, check_patch, decode_patch, encode_patch
from tessera.keystore.package.patches import MAGIC


def entry(tensor: str = "w", dtype: str = "F32", run: int = 9, units: Any = (0, 2), **changes: Any) -> PatchEntry:
    """Return an entry whose bytes follow a pattern."""
    size = len(units) * run * ITEM_BYTES.get(dtype, 0)
    given = {"units": np.array(units), "values": np.frombuffer(pattern(size, 3), np.uint8)} | changes
    return PatchEntry(tensor, dtype, run, **given)


def facts(found: PatchEntry) -> tuple[object, ...]:
    """Return an entry as plain values, to compare."""
    return found.tensor, found.dtype, found.run, found.units.tolist(), found.values.tobytes()


@st.composite
def _entries(draw: st.DrawFn) -> list[PatchEntry]:
    names = draw(st.lists(st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.:/@+-]{0,20}\Z"), max_size=4, unique=True))
    made = []
    for name in names:
        dtype, run = draw(st.sampled_from(sorted(ITEM_BYTES))), draw(st.integers(1, 12))
        units = tuple(sorted(draw(st.sets(st.integers(0, 2**32 - 1) | st.integers(0, 9), min_size=1, max_size=5))))
        raw = draw(st.binary(min_size=(size := len(units) * run * ITEM_BYTES[dtype]), max_size=size))
        made.append(entry(name, dtype, run, units, values=np.frombuffer(raw, np.uint8)))
    return made


@settings(max_examples=150, deadline=None)
@given(entries=_entries())
def test_whatever_is_written_is_read_back(entries: list[PatchEntry]) -> None:
    """Any entries come back sorted by name, bit for bit, and give the same bytes again."""
    raw = encode_patch(entries)
    found = decode_patch(raw)
    assert [facts(one) for one in found] == sorted(facts(one) for one in entries)
    assert encode_patch(found) == raw


@settings(max_examples=300, deadline=None)
@given(entries=_entries(), data=st.data())
def test_every_other_byte_string_is_malformed_or_a_patch_of_its_own(
    entries: list[PatchEntry], data: st.DataObject
) -> None:
    """A flipped, cut or lengthened patch is `Malformed`, or is exactly what the writer writes for what was read."""
    raw = encode_patch(entries)
    place = data.draw(st.integers(0, len(raw) - 1))
    damaged = [flip(raw, place, 1 << place % 8), raw[:place], raw + b"\0", raw[place:] + raw]
    changed = data.draw(st.sampled_from(damaged))
    try:
        found = decode_patch(changed)
    except Malformed:
        return
    assert encode_patch(found) == changed


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=80), magic=st.booleans())
def test_random_bytes_are_malformed(raw: bytes, magic: bool) -> None:
    """Random bytes, with the right beginning or without, end in `Malformed` and nothing else."""
    changed = (MAGIC if magic else b"") + raw
    if changed == encode_patch(()):
        return
    with pytest.raises(Malformed):
        decode_patch(changed)


@pytest.mark.parametrize(
    "entries",
    [
        [entry(), entry()],
        [entry("a"), entry("b"), entry("a", units=(1,))],
    ],
)
def test_a_tensor_has_one_entry(entries: list[PatchEntry]) -> None:
    """Two entries for one tensor are refused by the writer."""
    with pytest.raises(Malformed):
        encode_patch(entries)


def test_entries_out_of_order_are_malformed() -> None:
    """The reader takes entries in the writer's order only, and none twice."""
    one, two = (encode_patch([entry(name)])[len(MAGIC) + 4 :] for name in "ab")
    for body in (two + one, one + one):
        with pytest.raises(Malformed):
            decode_patch(MAGIC + struct.pack("<I", 2) + body)
    assert len(decode_patch(MAGIC + struct.pack("<I", 2) + one + two)) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"tensor": ""},
        {"tensor": "a b"},
        {"tensor": "ü"},
        {"dtype": "F31"},
        {"run": 0},
        {"run": -1},
        {"run": True},
        {"run": 2**31},
        {"units": ()},
        {"units": (1, 1)},
        {"units": (2, 1)},
        {"units": (-1, 1)},
        {"units": (2**32,)},
    ],
)
def test_what_no_patch_can_hold(changes: dict[str, Any]) -> None:
    """Names, dtypes, runs and units outside the rules are `Malformed` when the entry is made."""
    if "units" in changes:
        changes = {"units": np.array(changes["units"], np.int64), "values": np.zeros(36 * len(changes["units"]), "u1")}
    given: dict[str, Any] = {"tensor": "w", "dtype": "F32", "run": 9, "units": np.array([1]), "values": bytes(36)}
    with pytest.raises(Malformed):
        PatchEntry(**(given | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"units": np.array([0.0, 1.0])},
        {"units": np.array([[0, 1]])},
        {"units": np.array([], np.int64), "values": bytes(0)},
        {"values": bytes(71)},
        {"values": bytes(73)},
    ],
)
def test_units_are_a_row_of_integers_and_values_are_as_many(changes: dict[str, Any]) -> None:
    """Other shapes and types of `units`, and other lengths of `values`, are `Malformed`."""
    with pytest.raises(Malformed):
        entry(**changes)


def test_absurd_sizes_are_malformed_at_once() -> None:
    """A header that promises terabytes is refused before anything is allocated."""
    head = struct.pack("<BBII", 1, 3, 2**31 - 1, 2**32 - 1) + b"wF32"
    with pytest.raises(Malformed):
        decode_patch(MAGIC + struct.pack("<I", 1) + head)
    with pytest.raises(Malformed):
        decode_patch(MAGIC + struct.pack("<I", 2**32 - 1))


@settings(max_examples=100, deadline=None)
@given(dtype=st.sampled_from(sorted(ITEM_BYTES)), run=st.integers(1, 7), count=st.integers(1, 9), data=st.data())
def test_values_land_where_they_belong(dtype: str, run: int, count: int, data: st.DataObject) -> None:
    """Every dtype and run: the named units get their bytes, every other byte stays."""
    units = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    size = run * ITEM_BYTES[dtype]
    values = data.draw(st.binary(min_size=len(units) * size, max_size=len(units) * size))
    before = pattern(count * size)
    wanted = bytearray(before)
    for place, unit in enumerate(units):
        wanted[unit * size : (unit + 1) * size] = values[place * size : (place + 1) * size]
    target = bytearray(before)
    (found,) = decode_patch(encode_patch([entry("w", dtype, run, tuple(units), values=values)]))
    found.write_into(target)
    assert target == wanted


def test_a_tensor_without_the_units() -> None:
    """A tensor that is too short, or that the run does not divide, is `Malformed` and unchanged."""
    for size in (72, 108 - 36, 110, 0):
        target = bytearray(size)
        with pytest.raises(Malformed):
            entry().write_into(target)
        assert not any(target)
    with pytest.raises(ApiMisuse):
        entry().write_into(bytes(108))


def test_a_patch_for_another_model() -> None:
    """Unknown tensors, other dtypes and units beyond the end are refused before anything is written."""
    part = Part("w", "tensor", "F32", (3, 9), 108, 1, "0" * 64)
    check_patch([entry()], {"w": part})
    check_patch([], {})
    for one in (entry("v"), entry(dtype="I32"), entry(units=(0, 3)), entry(run=2), entry(run=54, units=(0,))):
        with pytest.raises(Malformed):
            check_patch([one], {"w": part})


def test_views_and_any_integers_are_taken() -> None:
    """Units of any integer type and values of any number type make the same patch; reading copies nothing."""
    values = np.arange(18, dtype=np.float32).reshape(2, 9)
    raw = encode_patch([entry(values=values)])
    for dtype in (np.int32, np.uint8, np.uint64):
        assert encode_patch([entry(units=np.array([0, 2], dtype), values=values.view(np.uint8))]) == raw
    memory = bytearray(raw)
    (found,) = decode_patch(memory)
    memory[-1] ^= 1
    assert found.values.tobytes() != values.tobytes()
    assert "values" not in repr(found)
