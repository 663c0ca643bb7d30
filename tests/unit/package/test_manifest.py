"""The manifest accepts what it writes and nothing else (rules P-7 to P-16)."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.packages import a_draft, small_package
from tessera.keystore import canonical
from tessera.keystore.errors import ApiMisuse, Malformed
from tessera.keystore.package import DATATYPES, Draft, Manifest, Part, TensorSpec, Tier
from tessera.keystore.package.header import build_header
from tessera.keystore.package.parts import MAX_PART_BYTES

Claims = dict[str, Any]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The manifest of a small package."""
    return small_package(tmp_path_factory.mktemp("manifest") / "a.tessera").manifest


def test_reading_and_writing_are_inverse(manifest: Manifest) -> None:
    """`from_json` and `to_json` undo each other, both ways."""
    raw = manifest.to_json()
    assert Manifest.from_json(raw) == manifest
    assert Manifest.from_json(raw).to_json() == raw


def test_several_key_ids(manifest: Manifest) -> None:
    """Ids of bound keys go round, stand in the place of the single id, and are left out when there are none (P-7)."""
    several = replace(manifest, input_key_id=None, input_key_ids=("a" * 32, "b" * 32))
    raw = several.to_json()
    assert Manifest.from_json(raw) == several
    assert Manifest.from_json(raw).to_json() == raw
    assert b"input_key_ids" not in manifest.to_json()
    with pytest.raises(Malformed):
        replace(several, input_key_id="a" * 32)
    with pytest.raises(Malformed, match="no transform"):
        replace(several, transform=None)


def _set(*path: str | int) -> Callable[[Any], Callable[[Claims], None]]:
    def to(value: Any) -> Callable[[Claims], None]:
        def edit(claims: Claims) -> None:
            target: Any = claims
            for step in path[:-1]:
                target = target[step]
            target[path[-1]] = value

        return edit

    return to


_PROGRAM = ("parts", 0)
_BIAS = ("parts", 1)
_BAD: list[tuple[tuple[str | int, ...], list[Any]]] = [
    (("format",), ["tessera-package/2", "", None, 1]),
    (("package_id",), ["", "A" * 32, "a" * 31, "a" * 33, 5, None, "a" * 31 + "\n"]),
    (("issuer_id",), ["", "a" * 42, "a" * 44, "a" * 42 + "=", None]),
    (("model",), ["", "-x", "a/b", "a b", "é", "a" * 129, "..", None, "a\n"]),
    (("version",), [0, -1, 2**31, True, "1", 1.0, None]),
    (("created_at_s",), [-1, 253_402_300_800, 1.5, False, None]),
    (("inputs",), [[], None, {}, "x"]),
    (("outputs",), [[], None]),
    (("inputs", 0), [None, [], {}, "x"]),
    (("inputs", 0, "name"), ["", " ", "a b", "é", None, "a" * 129]),
    (("inputs", 0, "datatype"), ["", "uint8", "F32", "STRING", None, []]),
    (
        ("inputs", 0, "shape"),
        [[], [1, 3], [-1, 0], [-1, -1], [-1, 2**31], [-1, True], [-1, 3.0], None, [-1] + [1] * 16],
    ),
    (("inputs", 0, "layout"), [None, "N C", "a" * 17]),
    (("inputs", 0, "finite"), [0, 1, None, "true"]),
    (("inputs", 0, "more"), [1]),
    (("transform",), [{}, "shf", [1], [None], [{}] * 65]),
    (("input_key_id",), ["", "0" * 31, "G" * 32, 0]),
    (("input_key_ids",), [[], None, "x", ["0" * 31], ["b" * 32, "a" * 32], ["a" * 32] * 2, [5]]),
    (("commitment",), ["", "0" * 63, "0" * 65, "A" * 64, None]),
    (("salt",), ["", "0" * 63, None]),
    (("algorithm",), ["", "AES-128-GCM", "none", None]),
    (("chunk_bytes",), [0, -64, 63, 65, 32, 96, 2**25, True, "64", 128, 2**24]),
    (("tiers",), [[], None, {}]),
    (("tiers", 0, "tier"), [0, 2, -1, True, 17]),
    (("tiers", 0, "name"), ["", " ", " a", "é", "a" * 65, None]),
    (("tiers", 0, "quality"), [None, [], {"": 1.0}, {"a": 1}, {"a": True}, {"a": "1"}, {"a": None}, {"a\n": 1.0}]),
    (("max_batch",), [0, -1, 65_537, 1.0, None, True]),
    (("torch_version",), ["", None, "2.13\n", "a" * 65]),
    (("licence_text",), [None, "\x00", "\r", "\x7f", "\x9b", "a" * 65_537]),
    (("parts",), [[], None, {}]),
    ((*_PROGRAM, "name"), ["Program", "w/program", ""]),
    ((*_PROGRAM, "kind"), ["tensor", "patch", "", None]),
    ((*_PROGRAM, "dtype"), ["I8"]),
    ((*_BIAS, "name"), ["", ".a", "a b", 'a"', "a\\b", "é", "a" * 256, "conv.weight", "zzz", None]),
    ((*_BIAS, "kind"), ["program"]),
    ((*_BIAS, "dtype"), ["F64", "FP32", "F4", "", None]),
    ((*_BIAS, "shape"), [[4], [-4, -4], [2**46, 2**46], [4, 4.0], [True, 16], [1] * 17, None, 16]),
    ((*_BIAS, "size"), [0, 63, 65, -64, 2**46 + 1, True, 64.0, "64"]),
    ((*_BIAS, "chunks"), [0, 2, -1, True, 2**53 - 1]),
    ((*_BIAS, "digest"), ["", "0" * 63, "A" * 64, None]),
    ((*_BIAS, "more"), [1]),
    (("more",), [1]),
]
EDITS = [
    (f"{'.'.join(map(str, path))}={str(value)[:20]}", _set(*path)(value)) for path, values in _BAD for value in values
]


@pytest.mark.parametrize("edit", [edit for _, edit in EDITS], ids=[name for name, _ in EDITS])
def test_every_field_is_checked(manifest: Manifest, edit: Callable[[Claims], None]) -> None:
    """One bad field in an otherwise right manifest is malformed."""
    claims = canonical.loads(manifest.to_json(), max_bytes=1 << 20)
    edit(claims)
    with pytest.raises(Malformed):
        Manifest.from_json(canonical.dumps(claims))


@pytest.mark.parametrize("name", [field.name for field in fields(Manifest) if field.name != "input_key_ids"])
def test_every_field_is_needed(manifest: Manifest, name: str) -> None:
    """A manifest that lacks a field is malformed, also where a draft would have a default."""
    claims = canonical.loads(manifest.to_json(), max_bytes=1 << 20)
    del claims[name]
    with pytest.raises(Malformed):
        Manifest.from_json(canonical.dumps(claims))


def test_parts_are_sorted_unique_and_hold_one_program(manifest: Manifest) -> None:
    """Parts out of order, given twice, or without a program are malformed."""
    program, bias, *rest = manifest.parts
    for parts in ((bias, program, *rest), (program, bias, bias, *rest), (bias, *rest), (program, program, bias)):
        with pytest.raises(Malformed):
            replace(manifest, parts=parts)


def test_ports_have_names_of_their_own() -> None:
    """Two inputs, or two outputs, of one name are malformed; an input and an output may share one."""
    port = TensorSpec("x", "FP32", (-1, 3))
    for side in ("inputs", "outputs"):
        with pytest.raises(Malformed):
            a_draft(**{side: (port, port)})
    a_draft(inputs=(port,), outputs=(port,))


def test_tiers_count_from_one() -> None:
    """Tiers are numbered 1 … n without a gap, in order."""
    one, two, three = (Tier(n, f"tier {n}", {}) for n in (1, 2, 3))
    assert a_draft(tiers=(one, two, three)).tiers[-1].tier == 3
    for tiers in ((two,), (one, three), (two, one), (one, one), ()):
        with pytest.raises(Malformed):
            a_draft(tiers=tiers)


def test_measures_are_finite() -> None:
    """NaN and infinities are no quality."""
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(Malformed):
            Tier(1, "full", {"accuracy": value})


def test_sizes_do_not_overflow() -> None:
    """A shape whose product passes 64 bits is malformed, and so is one beyond the largest part."""
    for shape in ((2**32, 2**32), (2**46, 2), (MAX_PART_BYTES + 1,)):
        with pytest.raises(Malformed):
            Part("t", "tensor", "U8", shape, 0, 1, "0" * 64)


@pytest.mark.slow
def test_headers_have_a_limit(manifest: Manifest) -> None:
    """A package with so many parts that no reader would take its header is malformed when it is written."""
    many = tuple(replace(manifest.parts[1], name=f"t{number:05}") for number in range(35_000))
    with pytest.raises(Malformed):
        build_header(replace(manifest, parts=(manifest.program, *many)), bytes(64))


def test_transform_without_json_form_is_misuse(tmp_path: Path) -> None:
    """Nothing is written when the transform has no JSON form."""
    with pytest.raises(ApiMisuse):
        small_package(tmp_path / "a.tessera", draft=a_draft(transform=[{"kind": b"shf"}]))
    assert list(tmp_path.iterdir()) == []


_names = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,20}\Z")
_labels = st.from_regex(r"\A[!-~]([ -~]{0,20}[!-~])?\Z")
_ports = st.lists(
    st.builds(
        TensorSpec,
        name=_names,
        datatype=st.sampled_from(sorted(DATATYPES)),
        shape=st.lists(st.integers(1, 2**31 - 1), max_size=4).map(lambda rest: (-1, *rest)),
        layout=st.sampled_from(["", "NCHW"]),
        finite=st.booleans(),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda spec: spec.name,
).map(tuple)
_qualities = st.dictionaries(_labels, st.floats(allow_nan=False, allow_infinity=False), max_size=3)
_drafts = st.builds(
    Draft,
    model=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"),
    version=st.integers(1, 2**31 - 1),
    inputs=_ports,
    outputs=_ports,
    transform=st.none() | st.lists(st.dictionaries(_labels, st.integers(-9, 9) | st.text(max_size=5)), max_size=3),
    input_key_id=st.none() | st.from_regex(r"\A[0-9a-f]{32}\Z"),
    tiers=st.lists(_qualities, min_size=1, max_size=4).map(
        lambda measured: tuple(Tier(n, f"tier {n}", quality) for n, quality in enumerate(measured, 1))
    ),
    max_batch=st.integers(1, 65_536),
    torch_version=_labels,
    licence_text=st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=50),
)


@settings(max_examples=80, deadline=None)
@given(draft=_drafts)
def test_any_draft_survives(manifest: Manifest, draft: Draft) -> None:
    """Whatever a draft may hold is written and read back as it was."""
    patches = [
        Part(f"{tier.tier:02}", "patch", "U8", (12,), 12, 1, "0" * 64, "1" * 64)
        for tier in (draft.tiers if len(draft.tiers) > 1 else ())
    ]
    described = replace(
        manifest,
        parts=(*patches, *manifest.parts),
        **{field.name: getattr(draft, field.name) for field in fields(Draft)},
    )
    assert Manifest.from_json(described.to_json()) == described


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=200))
def test_random_bytes_are_malformed(raw: bytes) -> None:
    """Random bytes end in `Malformed` and nothing else."""
    with pytest.raises(Malformed):
        Manifest.from_json(raw)


_values = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.lists(st.integers(0, 3), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.none())
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_is_read_exactly_or_malformed(manifest: Manifest, data: st.DataObject) -> None:
    """Whatever JSON value takes a field's place, the answer is `Malformed` or a manifest that writes the same bytes."""
    claims = canonical.loads(manifest.to_json(), max_bytes=1 << 20)
    target, key = claims, data.draw(st.sampled_from(sorted(claims)))
    while isinstance(target[key], dict | list) and target[key] and data.draw(st.booleans()):
        target = target[key]
        key = data.draw(st.sampled_from(sorted(target) if isinstance(target, dict) else range(len(target))))
    target[key] = data.draw(_values)
    raw = canonical.dumps(claims)
    try:
        read = Manifest.from_json(raw)
    except Malformed:
        return
    assert read.to_json() == raw
