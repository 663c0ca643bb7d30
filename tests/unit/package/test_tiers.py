"""Tiers of a package: a key opens its own tier and those below; table and patches agree (rules P-30, P-35 to P-38)."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.packages import (
    CONTENT_KEY,
    PACKAGE_ID,
    SMALL_PATCHES,
    SMALL_TIERS,
    SMALL_WEIGHTS,
    TIER_SECRET,
    SmallPackage,
    a_draft,
    edit_header,
    flip,
    open_and_read,
    small_package,
    small_tiers,
    swap,
)
from tessera.keystore import canonical
from tessera.keystore.errors import ApiMisuse, Malformed, NotFound, Tampered, TesseraError, WrongKey
from tessera.keystore.package import (
    Algorithm,
    Manifest,
    Part,
    PatchEntry,
    Tier,
    aead,
    decode_patch,
    encode_patch,
    inspect_package,
    open_package,
)
from tessera.keystore.secrets import TierSecret
from tessera.keystore.tiers import MAX_TIERS, TierKey

TOP = TierKey(PACKAGE_ID, 3, TierSecret(TIER_SECRET))


@pytest.fixture
def package(tmp_path: Path) -> SmallPackage:
    """A package of three tiers in 64-byte chunks."""
    return small_tiers(tmp_path / "a.tessera")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SmallPackage:
    """The same for properties, which put back what they change."""
    return small_tiers(tmp_path_factory.mktemp("shared") / "a.tessera")


def at_tier(package: SmallPackage, key: TierKey, tier: int | None = None) -> dict[str, bytes]:
    """Return the tensors at the tier of `key`, or at `tier`, as a reader would make them."""
    with open_package(package.path, package.issuers) as sealed:
        unlocked = sealed.unlock(package.content_key)
        buffers = {part.name: bytearray(part.size) for part in unlocked.tensors}
        unlocked.read_tensors_into(buffers)
        for step in range(1, 1 + (key.tier if tier is None else tier)):
            unlocked.apply_patch(key.at(step), buffers)
    return {name: bytes(raw) for name, raw in buffers.items()}


def by_hand(tier: int) -> dict[str, bytes]:
    """Return what tier `tier` of `small_tiers` ought to be."""
    plain = {entry.name: bytearray(entry.plain) for entry in SMALL_WEIGHTS}
    for raw in SMALL_PATCHES[:tier]:
        for entry in decode_patch(raw):
            for unit, values in zip(entry.units.tolist(), entry.values, strict=True):
                begin = unit * entry.unit_bytes
                plain[entry.tensor][begin : begin + entry.unit_bytes] = values.tobytes()
    return {name: bytes(raw) for name, raw in plain.items()}


# -- the chain -------------------------------------------------------------------------------------------------------


def test_the_chain_is_hkdf_bound_to_package_and_tier() -> None:
    """Rule P-35 by hand: extract with the package id, expand with the label of the tier below."""
    below = TIER_SECRET
    for tier in (2, 1):
        extracted = hmac.digest(bytes.fromhex(PACKAGE_ID), below, hashlib.sha256)
        below = hmac.digest(extracted, b"tessera/v1/package/tier/%d\x01" % tier, hashlib.sha256)
        assert TOP.at(tier).secret.reveal() == below
    assert TOP.at(3) == TOP
    assert TOP.at(2).at(1) == TOP.at(1)


def test_keys_of_a_chain_differ_and_give_nothing_above() -> None:
    """Each tier has a key of its own, another package has other ones, and no key gives one above it."""
    keys = {TOP.at(tier).secret.reveal() for tier in (1, 2, 3)}
    other = TierKey("ff" * 16, 3, TOP.secret)
    assert len(keys | {other.at(tier).secret.reveal() for tier in (1, 2)}) == 5
    for tier in (1, 2):
        with pytest.raises(WrongKey):
            TOP.at(tier).at(tier + 1)
    strange: tuple[Any, ...] = (0, -1, 17, True, "1")
    for value in strange:
        with pytest.raises(Malformed):
            TOP.at(value)
    assert TIER_SECRET.hex()[:8] not in repr(TOP)


@pytest.mark.parametrize(("package_id", "tier"), [("x", 1), (PACKAGE_ID, 0), (PACKAGE_ID, MAX_TIERS + 1)])
def test_a_tier_key_names_a_package_and_a_tier(package_id: str, tier: int) -> None:
    """Other ids and numbers are `Malformed`; a fresh key is of the tier that was asked for."""
    with pytest.raises(Malformed):
        TierKey.generate(package_id, tier)
    assert TierKey.generate(PACKAGE_ID, 5).tier == 5


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["AES-256-GCM", "ChaCha20Poly1305"])
def test_every_tier_is_what_its_patches_make_it(tmp_path: Path, algorithm: Algorithm) -> None:
    """Base and patches give each tier bit for bit with either algorithm; base weights need no tier key."""
    package = small_tiers(tmp_path / "a.tessera", algorithm=algorithm)
    assert [at_tier(package, TOP.at(tier)) for tier in (1, 2, 3)] == [by_hand(tier) for tier in (1, 2, 3)]
    assert at_tier(package, TOP, 0) == package.plain
    assert len({str(by_hand(tier)) for tier in (1, 2, 3)}) == 3
    patches = [part for part in inspect_package(package.path).parts if part.kind == "patch"]
    assert [(part.name, part.key, part.size) for part in patches] == [
        (f"{tier:02}", f"p/{tier:02}", len(raw)) for tier, raw in enumerate(SMALL_PATCHES, 1)
    ]
    assert patches[2].chunks > 1


def test_a_patch_is_read_as_it_was_written(package: SmallPackage) -> None:
    """The entries come back, and applying tells which tensors changed."""
    with open_package(package.path, package.issuers) as sealed:
        sealed.verify_digests()
        unlocked = sealed.unlock(package.content_key, check_digests=True)
        assert [encode_patch(unlocked.read_patch(TOP.at(tier))) for tier in (1, 2, 3)] == list(SMALL_PATCHES)
        buffers = {part.name: bytearray(part.size) for part in unlocked.tensors}
        assert [unlocked.apply_patch(TOP.at(tier), buffers) for tier in (1, 2, 3)] == [
            frozenset(),
            {"conv.weight"},
            {"conv.weight", "conv.bias"},
        ]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("tier", [1, 2, 3])
def test_one_pass_gives_what_patching_gives(package: SmallPackage, tier: int, workers: int) -> None:
    """Tensors and patches in one pass, in any number of threads, are the tier; the last change of each is told."""
    changes = {1: {}, 2: {"conv.weight": 2}, 3: {"conv.weight": 3, "conv.bias": 3}}
    with open_package(package.path, package.issuers) as sealed:
        unlocked = sealed.unlock(package.content_key, check_digests=True)
        buffers = {part.name: bytearray(part.size) for part in unlocked.tensors}
        assert unlocked.read_tier_into(TOP.at(tier), buffers, workers=workers) == changes[tier]
        assert {name: bytes(raw) for name, raw in buffers.items()} == by_hand(tier)
        some = {"conv.bias": bytearray(64)}
        told = unlocked.read_tier_into(TOP.at(tier), some, workers=workers)
    assert told == {name: last for name, last in changes[tier].items() if name in some}
    assert bytes(some["conv.bias"]) == by_hand(tier)["conv.bias"]


@pytest.mark.parametrize("workers", [1, 3])
def test_one_pass_writes_nothing_before_every_key_is_right(package: SmallPackage, workers: int) -> None:
    """Wrong keys leave the buffers alone; what is damaged is refused, and a damaged tensor is zeroed."""
    wrong = [
        TierKey(PACKAGE_ID, 3, TOP.at(2).secret),
        TierKey(PACKAGE_ID, 4, TOP.secret),
        TierKey.generate("ff" * 16, 2),
    ]

    def attempt(key: TierKey, error: type[TesseraError]) -> dict[str, bytearray]:
        with open_package(package.path, package.issuers) as sealed:
            unlocked = sealed.unlock(package.content_key)
            buffers = {part.name: bytearray(b"?" * part.size) for part in unlocked.tensors}
            with pytest.raises(error):
                unlocked.read_tier_into(key, buffers, workers=workers)
        return buffers

    def untouched(buffers: dict[str, bytearray]) -> bool:
        return all(raw == b"?" * len(raw) for raw in buffers.values())

    assert all(untouched(attempt(key, WrongKey)) for key in wrong)
    intact = package.raw
    package.path.write_bytes(flip(intact, package.part_begin("p/03") + 5))
    attempt(TOP, Tampered)
    package.path.write_bytes(flip(intact, package.part_begin("w/conv.bias") + 5))
    assert not any(attempt(TOP, Tampered)["conv.bias"])


def test_a_key_opens_no_tier_but_its_own(package: SmallPackage) -> None:
    """Tier 2's key at tier 3, another package's, a random one: wrong key, and buffers are as they were."""
    wrong = [
        TierKey(PACKAGE_ID, 3, TOP.at(2).secret),
        TierKey(PACKAGE_ID, 2, TOP.secret),
        TierKey("ff" * 16, 3, TOP.secret),
        TierKey.generate(PACKAGE_ID, 3),
        TierKey(PACKAGE_ID, 3, TierSecret(CONTENT_KEY)),
    ]
    with open_package(package.path, package.issuers) as sealed:
        unlocked = sealed.unlock(package.content_key)
        buffers = {part.name: bytearray(part.size) for part in unlocked.tensors}
        for key in wrong:
            with pytest.raises(WrongKey):
                unlocked.apply_patch(key, buffers)
        with pytest.raises(NotFound) as missing:
            unlocked.read_patch(TierKey(PACKAGE_ID, 4, TOP.secret))
        assert missing.value.reason == "tier-unavailable"
    assert not any(any(raw) for raw in buffers.values())


def test_past_the_commitment_the_aead_still_refuses(package: SmallPackage) -> None:
    """A holder of tier 2's key who skips our check and tries tier 3's chunks meets an authentication failure."""
    manifest = package.manifest
    part = manifest.patches[2]
    for key in (TOP.at(2).secret, TOP.at(1).secret, package.content_key):
        opened = aead.package_key(key, manifest.package_id, manifest.salt)
        cipher = aead.PartCipher(manifest.algorithm, opened, manifest.package_id, part, manifest.chunk_bytes)
        begin = package.part_begin(part.key)
        with pytest.raises(Tampered):
            cipher.open_into(0, package.raw[begin : begin + 80], memoryview(bytearray(64)))


def test_no_position_or_value_shows(package: SmallPackage) -> None:
    """Neither names in patches nor their values appear in the file, whose header names them as rows of bytes."""
    raw = package.raw
    assert b"tessera-patch" not in raw
    assert TIER_SECRET not in raw
    for patch in SMALL_PATCHES:
        for entry in decode_patch(patch):
            assert entry.values.tobytes() not in raw
    assert all(part.dtype == "U8" for part in package.manifest.patches)


# -- damage ----------------------------------------------------------------------------------------------------------


def refused(package: SmallPackage, raw: bytes, *, digests: bool = True) -> None:
    """Expect `Tampered` with the one reason when `raw` stands in the package's place."""
    original = package.raw
    package.rewrite(raw)
    try:
        with pytest.raises(Tampered) as caught:
            open_and_read(package, digests=digests)
        assert caught.value.reason == "package-tampered"
    finally:
        package.rewrite(original)


@pytest.mark.slow
def test_every_byte_of_a_patch_counts(package: SmallPackage) -> None:
    """Changing any byte of any patch, ciphertext or tag, is refused with and without digests."""
    raw = package.raw
    for part in package.manifest.patches:
        begin = package.part_begin(part.key)
        for position in range(begin, begin + part.sealed_bytes):
            refused(package, flip(raw, position, 1 << position % 8), digests=bool(position % 2))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_tiered_file_that_ends_early_is_refused(shared: SmallPackage, data: st.DataObject) -> None:
    """A file that ends anywhere before its end is refused."""
    raw = shared.raw
    refused(shared, raw[: data.draw(st.integers(0, len(raw) - 1))])


def test_patches_do_not_move(package: SmallPackage, tmp_path: Path) -> None:
    """Chunks of a patch in another order, and a patch of another package or writing, fail by the AEAD alone."""
    begin, part = package.part_begin("p/03"), package.manifest.patches[2]
    refused(package, swap(package.raw, begin, begin + 80, 80), digests=False)
    others = [small_tiers(tmp_path / "b.tessera"), small_tiers(tmp_path / "c.tessera", package_id="ee" * 16)]
    for other in others:
        at = other.part_begin("p/03")
        stretch = other.raw[at : at + part.sealed_bytes]
        refused(package, package.raw[:begin] + stretch + package.raw[begin + part.sealed_bytes :], digests=False)


def test_equal_patches_are_no_equal_parts(tmp_path: Path) -> None:
    """Two tiers with the same patch are sealed under keys of their own, and do not change places."""
    patches = (SMALL_PATCHES[1], SMALL_PATCHES[1], SMALL_PATCHES[2])
    package = small_tiers(tmp_path / "a.tessera", patches=patches)
    size = package.manifest.patches[0].sealed_bytes
    one, two = package.part_begin("p/01"), package.part_begin("p/02")
    assert package.raw[one : one + size] != package.raw[two : two + size]
    refused(package, swap(package.raw, one, two, size), digests=False)


def test_an_authentic_patch_for_other_tensors_is_malformed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a careless vendor's tool might sign is refused by the reader too, before anything is written."""
    stray = encode_patch([PatchEntry("conv.weight", "F32", 4, np.array([9], np.uint32), np.zeros(16, np.uint8))])
    monkeypatch.setattr("tessera.keystore.package.writer.check_patch", lambda entries, tensors: None)
    package = small_tiers(tmp_path / "a.tessera", patches=(SMALL_PATCHES[0], SMALL_PATCHES[1], stray))
    with open_package(package.path, package.issuers) as sealed:
        unlocked = sealed.unlock(package.content_key)
        with pytest.raises(Malformed):
            unlocked.apply_patch(TOP, {part.name: bytearray(part.size) for part in unlocked.tensors})


# -- the table and the parts -----------------------------------------------------------------------------------------


def drop(*names: str) -> Callable[[Manifest], Manifest]:
    """Return an edit that takes the patches called `names` out."""
    return lambda manifest: replace(manifest, parts=tuple(part for part in manifest.parts if part.name not in names))


@pytest.mark.parametrize(
    "edit",
    [
        drop("01"),
        drop("02"),
        drop("03"),
        drop("01", "02", "03"),
        lambda manifest: replace(manifest, tiers=manifest.tiers[:2]),
        lambda manifest: replace(manifest, tiers=manifest.tiers[:1]),
        lambda manifest: replace(manifest, tiers=(*manifest.tiers, Tier(4, "more", {}))),
    ],
)
def test_a_table_that_disagrees_with_the_patches_is_malformed(
    shared: SmallPackage, edit: Callable[[Manifest], Manifest]
) -> None:
    """A tier without a patch, a patch without a tier: refused when the manifest is made, so also when it is read."""
    with pytest.raises(Malformed):
        edit(shared.manifest)


def test_a_file_whose_table_disagrees_is_refused(package: SmallPackage) -> None:
    """The same in a file that says so, whoever signed it: nothing is loaded."""

    def fewer(document: dict[str, dict[str, str]]) -> None:
        metadata = document["__metadata__"]
        claims = canonical.loads(metadata["tessera.manifest"].encode(), max_bytes=1 << 20)
        claims["tiers"].pop()
        metadata["tessera.manifest"] = canonical.dumps(claims).decode()

    package.rewrite(edit_header(package.raw, fewer))
    with pytest.raises(Tampered):
        inspect_package(package.path)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "1"},
        {"name": "00"},
        {"name": "17"},
        {"dtype": "I8"},
        {"shape": (0,), "size": 0},
        {"shape": (2, 2)},
        {"commitment": ""},
        {"commitment": "0" * 63},
        {"kind": "tensor"},
        {"kind": "program"},
    ],
)
def test_the_form_of_a_patch(changes: dict[str, object]) -> None:
    """Its name is its tier, it is a row of bytes, and it alone commits to a key."""
    right = {"name": "01", "kind": "patch", "dtype": "U8", "shape": (4,), "size": 4, "chunks": 1}
    right |= {"digest": "0" * 64, "commitment": "1" * 64}
    assert Part.from_claims(Part(**right).to_claims()) == Part(**right)  # type: ignore[arg-type]
    with pytest.raises(Malformed):
        Part(**(right | changes))  # type: ignore[arg-type]


def test_claims_of_parts_are_exact() -> None:
    """A tensor with a commitment, and a patch without, are malformed; a tensor's claims are as they always were."""
    tensor = Part("w", "tensor", "U8", (4,), 4, 1, "0" * 64).to_claims()
    assert set(tensor) == {"name", "kind", "dtype", "shape", "size", "chunks", "digest"}
    patch = Part("01", "patch", "U8", (4,), 4, 1, "0" * 64, "1" * 64).to_claims()
    for claims in (tensor | {"commitment": ""}, {k: v for k, v in patch.items() if k != "commitment"}):
        with pytest.raises(Malformed):
            Part.from_claims(claims)


# -- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"patches": SMALL_PATCHES[:2]}, ApiMisuse),
        ({"patches": ()}, ApiMisuse),
        ({"tier_key": None}, ApiMisuse),
        ({"tier_key": TierKey("ff" * 16, 3, TOP.secret)}, ApiMisuse),
        ({"tier_key": TierKey(PACKAGE_ID, 4, TOP.secret)}, ApiMisuse),
        ({"draft": a_draft()}, Malformed),
        ({"draft": a_draft(tiers=SMALL_TIERS), "patches": (), "tier_key": None}, Malformed),
        ({"patches": (*SMALL_PATCHES[:2], b"")}, Malformed),
        ({"weights": SMALL_WEIGHTS[1:]}, Malformed),
    ],
)
def test_what_the_writer_refuses(tmp_path: Path, changes: dict[str, Any], error: type[TesseraError]) -> None:
    """Keys, tiers and patches that do not belong together leave no file."""
    with pytest.raises(error):
        small_tiers(tmp_path / "a.tessera", **changes)
    assert list(tmp_path.iterdir()) == []


def test_one_tier_may_have_a_key_too(tmp_path: Path) -> None:
    """A single tier with a patch: base weights alone are decoys, whoever holds the content key."""
    key = TierKey(PACKAGE_ID, 1, TierSecret(TIER_SECRET))
    draft, patches = a_draft(tiers=SMALL_TIERS[:1]), (SMALL_PATCHES[2],)
    package = small_tiers(tmp_path / "a.tessera", draft=draft, patches=patches, tier_key=key)
    assert at_tier(package, key) != package.plain == at_tier(package, key, 0)


def test_without_tiers_nothing_has_changed(tmp_path: Path) -> None:
    """A package without patches says nothing of them (the vectors hold its bytes)."""
    package = small_package(tmp_path / "a.tessera")
    assert package.manifest.patches == ()
    assert package.manifest.to_json().count(b'"commitment"') == 1


def test_a_writing_is_bound_to_its_salt(tmp_path: Path) -> None:
    """The same patches under the same keys are other ciphertext in every writing."""
    one, two = (small_tiers(tmp_path / f"{name}.tessera") for name in "ab")
    begin = one.part_begin("p/03")
    assert one.raw[begin : begin + 64] != two.raw[two.part_begin("p/03") :][:64]
    assert one.manifest.patches[2].commitment != two.manifest.patches[2].commitment
