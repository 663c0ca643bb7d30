"""Small sealed packages for tests, made without torch, and the ways to damage them."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tessera.keystore import canonical
from tessera.keystore.identity import Identity, Signer
from tessera.keystore.package import (
    ITEM_BYTES,
    Draft,
    Manifest,
    PatchEntry,
    TensorSpec,
    Tier,
    UnlockedPackage,
    encode_patch,
    open_package,
    write_package,
)
from tessera.keystore.secrets import AgreementKey, ContentKey, SigningSeed, TierSecret
from tessera.keystore.tiers import TierKey

CREATED_AT_S = 1_700_000_000
ISSUER_SEED = bytes(range(32))
OTHER_SEED = bytes(range(1, 33))
CONTENT_KEY = bytes(range(64, 96))
TIER_SECRET = bytes(range(96, 128))
PACKAGE_ID = bytes(range(16)).hex()
PROGRAM = b"not really a torch.export archive: " + bytes(range(150))


def seeded_issuer(seed: bytes = ISSUER_SEED, name: str = "Test Vendor") -> Identity:
    """Return an issuer whose keys follow from 32 bytes."""
    return Identity("issuer", name, SigningSeed(seed), AgreementKey(seed))


def pattern(size: int, start: int = 0) -> bytes:
    """Return `size` bytes without a period that a chunk could share: enough to see a misplaced byte."""
    return bytes((start + i * 7 + i // 251) % 256 for i in range(size))


def a_draft(**changes: Any) -> Draft:
    """Return a draft of a digit classifier, with `changes`."""
    draft = Draft(
        model="digits",
        version=1,
        inputs=(TensorSpec("image", "UINT8", (-1, 1, 8, 8), "NCHW"),),
        outputs=(TensorSpec("logits", "FP32", (-1, 10), "", finite=True),),
        transform=[{"block": 4, "kind": "shf"}, {"block": 4, "kind": "np"}],
        input_key_id="0123456789abcdef0123456789abcdef",
        tiers=(Tier(1, "full", {"accuracy": 0.975}),),
        max_batch=64,
        torch_version="2.13.0",
        licence_text="All rights reserved.",
    )
    return replace(draft, **changes)


@dataclass(frozen=True)
class Weights:
    """One tensor of a test package, its bytes made by `pattern` unless given."""

    name: str
    dtype: str = "F32"
    shape: tuple[int, ...] = (4, 4)
    raw: bytes | None = None
    start: int = 0

    @property
    def plain(self) -> bytes:
        """The plaintext bytes."""
        if self.raw is not None:
            return self.raw
        size = ITEM_BYTES[self.dtype]
        for dimension in self.shape:
            size *= dimension
        return pattern(size, self.start)


SMALL_WEIGHTS = (
    Weights("conv.weight", "F32", (4, 4), start=1),
    Weights("conv.bias", "F32", (4, 4), start=2),
    Weights("norm.steps", "I64", (), start=3),
    Weights("empty", "F16", (0, 3)),
)


@dataclass(frozen=True)
class SmallPackage:
    """A package on disk with everything a test needs to open it, or to damage it."""

    path: Path
    manifest: Manifest
    content_key: ContentKey
    issuer: Signer
    issuers: Mapping[str, bytes]
    plain: Mapping[str, bytes] = field(repr=False)
    tier_key: TierKey | None = None
    """Key of the top tier."""
    patches: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def raw(self) -> bytes:
        """The file's bytes as they are now."""
        return self.path.read_bytes()

    @property
    def body_begin(self) -> int:
        """Where the sealed parts begin in the file."""
        (length,) = struct.unpack("<Q", self.raw[:8])
        return 8 + int(length)

    def part_begin(self, key: str) -> int:
        """Where the part `key` (`program`, `w/NAME`) begins in the file."""
        begin = self.body_begin
        for part in self.manifest.parts:
            if part.key == key:
                return begin
            begin += part.sealed_bytes
        raise AssertionError(f"no part {key}")

    def rewrite(self, raw: bytes) -> None:
        """Put other bytes in the file's place."""
        self.path.write_bytes(raw)


def small_package(
    path: Path,
    *,
    issuer: Identity | None = None,
    content_key: ContentKey | None = None,
    weights: tuple[Weights, ...] = SMALL_WEIGHTS,
    program: bytes = PROGRAM,
    draft: Draft | None = None,
    chunk_bytes: int = 64,
    patches: tuple[bytes, ...] = (),
    tier_key: TierKey | None = None,
    **options: Any,
) -> SmallPackage:
    """Write a package at `path` and return it; 64-byte chunks by default, so that parts have several."""
    issuer = issuer or seeded_issuer()
    content_key = content_key or ContentKey(CONTENT_KEY)
    manifest = write_package(
        path,
        draft or a_draft(),
        tensors=[(entry.name, entry.dtype, entry.shape, entry.plain) for entry in weights],
        program=program,
        issuer=issuer,
        content_key=content_key,
        created_at_s=CREATED_AT_S,
        chunk_bytes=chunk_bytes,
        patches=patches,
        tier_key=tier_key,
        **options,
    )
    plain = {entry.name: entry.plain for entry in weights}
    issuers = {issuer.key_id: issuer.public.verify_key}
    return SmallPackage(path, manifest, content_key, issuer, issuers, plain, tier_key, patches)


SMALL_PATCHES = (
    encode_patch(()),
    encode_patch([PatchEntry("conv.weight", "F32", 4, np.array([1, 3]), np.frombuffer(pattern(32, 50), np.uint8))]),
    encode_patch(
        [
            PatchEntry("conv.bias", "F32", 1, np.array([0, 5, 15]), np.frombuffer(pattern(12, 60), np.uint8)),
            PatchEntry("conv.weight", "F32", 4, np.array([0, 2]), np.frombuffer(pattern(32, 70), np.uint8)),
        ]
    ),
)
"""Patches of `SMALL_WEIGHTS` for three tiers; the first adds nothing, the last one spans several chunks."""

SMALL_TIERS = tuple(Tier(number, name, {}) for number, name in enumerate(("basic", "better", "full"), 1))


def small_tiers(path: Path, *, package_id: str = PACKAGE_ID, **changes: Any) -> SmallPackage:
    """Write a package of three tiers at `path`, its tier keys those of `TIER_SECRET`, and return it."""
    given: dict[str, Any] = {
        "draft": a_draft(tiers=SMALL_TIERS),
        "patches": SMALL_PATCHES,
        "tier_key": TierKey(package_id, len(SMALL_TIERS), TierSecret(TIER_SECRET)),
    }
    return small_package(path, package_id=package_id, **(given | changes))


def read_all(unlocked: UnlockedPackage, tier_key: TierKey | None = None) -> dict[str, bytes]:
    """Return every tensor's plaintext, as `""` the program, and under the part's key the patches up to the tier."""
    found = {"": unlocked.read_program()}
    for tier in range(1, 1 + (0 if tier_key is None else tier_key.tier)):
        assert tier_key is not None
        found[f"p/{tier:02}"] = encode_patch(unlocked.read_patch(tier_key.at(tier)))
    for part in unlocked.tensors:
        out = bytearray(part.size)
        unlocked.read_tensor_into(part.name, out)
        found[part.name] = bytes(out)
    return found


def open_and_read(package: SmallPackage, *, digests: bool = True) -> dict[str, bytes]:
    """Go the whole way: open, verify the digests (if asked), unlock, read everything."""
    with open_package(package.path, package.issuers) as sealed:
        if digests:
            sealed.verify_digests()
        return read_all(sealed.unlock(package.content_key), package.tier_key)


def edit_header(raw: bytes, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """Return the file with its header's JSON changed by `edit`, canonical and padded again; the body stays."""
    (length,) = struct.unpack("<Q", raw[:8])
    document = canonical.loads(raw[8 : 8 + length].rstrip(b" "), max_bytes=length)
    edit(document)
    header = canonical.dumps(document)
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


def flip(raw: bytes, position: int, mask: int = 1) -> bytes:
    """Return `raw` with the bits of `mask` changed in one byte."""
    changed = bytearray(raw)
    changed[position] ^= mask
    return bytes(changed)


def swap(raw: bytes, first: int, second: int, size: int) -> bytes:
    """Return `raw` with two stretches of `size` bytes exchanged."""
    changed = bytearray(raw)
    changed[first : first + size], changed[second : second + size] = (
        raw[second : second + size],
        raw[first : first + size],
    )
    return bytes(changed)
