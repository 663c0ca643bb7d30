"""Write the vectors of the sealed package beside this file: `PYTHONPATH=tests:. python -m vectors.package.generate`.

One file a vector: lines `name: value`, an empty line, the package in hexadecimal. A reader in any language takes these
steps in order: `open` (form, signature), `digests`, `unlock` (commitment), `read` (every part).

    expect         ok | tampered | issuer-unknown | wrong-key
    step           where it is refused; absent when ok
    skip           `digests` when that step is left out, to show what the AEAD alone notices
    issuer         key id and Ed25519 public key that the reader trusts
    content-key    what it unlocks with
    tier-key       number and key of the highest tier that it has; the patches up to it are parts as well
    part           (ok only) key of a part, SHA-256 of its plaintext, its derived key
"""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.packages import (
    CONTENT_KEY,
    CREATED_AT_S,
    OTHER_SEED,
    PROGRAM,
    SMALL_PATCHES,
    SMALL_TIERS,
    SMALL_WEIGHTS,
    TIER_SECRET,
    SmallPackage,
    Weights,
    a_draft,
    edit_header,
    flip,
    pattern,
    seeded_issuer,
    swap,
)
from tessera.keystore import kdf
from tessera.keystore.package import Algorithm, aead
from tessera.keystore.package.writer import danger_write_package_with_salt
from tessera.keystore.secrets import ContentKey, TierSecret
from tessera.keystore.tiers import TierKey

HERE = Path(__file__).parent
SALT = bytes(range(128, 160)).hex()
PACKAGE_ID = bytes(range(16)).hex()


class Vector(NamedTuple):
    """One file: what it shows, what a reader must answer, and the package."""

    comment: str
    expect: str
    step: str
    raw: bytes
    package: SmallPackage
    skip: str = ""
    content_key: bytes = CONTENT_KEY
    tier_key: TierKey | None = None


def _package(
    folder: Path, *, algorithm: Algorithm = "AES-256-GCM", seed: bytes | None = None, tiered: bool = False
) -> SmallPackage:
    issuer = seeded_issuer(seed) if seed else seeded_issuer()
    weights = (*SMALL_WEIGHTS, Weights("long", "U8", (200,)))
    path = folder / "vector.tessera"
    tier_key = TierKey(PACKAGE_ID, len(SMALL_TIERS), TierSecret(TIER_SECRET)) if tiered else None
    patches = SMALL_PATCHES if tiered else ()
    manifest = danger_write_package_with_salt(
        path,
        a_draft(tiers=SMALL_TIERS) if tiered else a_draft(),
        SALT,
        tensors=[(entry.name, entry.dtype, entry.shape, entry.plain) for entry in weights],
        program=PROGRAM,
        issuer=issuer,
        content_key=ContentKey(CONTENT_KEY),
        created_at_s=CREATED_AT_S,
        package_id=PACKAGE_ID,
        algorithm=algorithm,
        chunk_bytes=64,
        patches=patches,
        tier_key=tier_key,
    )
    trusted = seeded_issuer()
    plain = {entry.name: entry.plain for entry in weights}
    keys = {trusted.key_id: trusted.public.verify_key}
    return SmallPackage(path, manifest, ContentKey(CONTENT_KEY), issuer, keys, plain, tier_key, patches)


def _vectors(folder: Path) -> Iterator[tuple[str, Vector]]:
    package = _package(folder)
    raw, end = package.raw, len(package.raw)
    bias, weight, long = (package.part_begin(f"w/{name}") for name in ("conv.bias", "conv.weight", "long"))

    def damaged(comment: str, step: str, changed: bytes, skip: str = "") -> Vector:
        return Vector(comment, "tampered", step, changed, package, skip)

    yield "ok-aes", Vector("a package as the writer makes it", "ok", "", raw, package)
    yield "trailing-byte", damaged("one byte behind the end", "open", raw + b"\0")
    yield "truncated-chunk", damaged("the last chunk is missing", "open", raw[: end - 24])
    yield "truncated-header", damaged("the file ends inside its header", "open", raw[:100])
    yield "flipped-length", damaged("the header's length is changed", "open", flip(raw, 0, 8))
    at = raw.index(b'\\"max_batch\\":64') + 15
    yield "flipped-manifest", damaged("the manifest says 65 instead of 64", "open", flip(raw, at))
    at = raw.index(b'"tessera.signature":"') + 30
    yield "flipped-signature", damaged("the signature is changed", "open", flip(raw, at, 3))
    yield "flipped-body", damaged("a byte of ciphertext is changed", "digests", flip(raw, weight))
    yield "flipped-body-no-digests", damaged("the AEAD notices it too", "read", flip(raw, weight), "digests")
    yield "flipped-tag-no-digests", damaged("a byte of a tag is changed", "read", flip(raw, weight + 79), "digests")
    swapped = swap(raw, bias, weight, 80)
    yield "swapped-tensors", damaged("two tensors of equal shape change places", "digests", swapped)
    yield "swapped-tensors-no-digests", damaged("the keys of parts notice it too", "read", swapped, "digests")
    swapped = swap(raw, long, long + 80, 80)
    yield "swapped-chunks-no-digests", damaged("two chunks of one part change places", "read", swapped, "digests")
    spaced = edit_header(raw, lambda document: None)
    spaced = (int.from_bytes(spaced[:8], "little") + 8).to_bytes(8, "little") + spaced[8 : package.body_begin]
    yield (
        "padded-header",
        damaged("8 spaces more behind the header", "open", spaced + b" " * 8 + raw[package.body_begin :]),
    )
    forged = _forged(package, weight)
    yield "forged-with-content-key", damaged("sealed anew by a holder of the content key", "digests", forged)
    wrong = bytes(reversed(CONTENT_KEY))
    yield "wrong-key", Vector("another content key", "wrong-key", "unlock", raw, package, content_key=wrong)
    stranger = _package(folder, seed=OTHER_SEED)
    yield "issuer-unknown", Vector("signed by another issuer", "issuer-unknown", "open", stranger.raw, stranger)
    chacha = _package(folder, algorithm="ChaCha20Poly1305")
    yield "ok-chacha", Vector("the other algorithm", "ok", "", chacha.raw, chacha)
    yield from _tier_vectors(_package(folder, tiered=True))


def _tier_vectors(package: SmallPackage) -> Iterator[tuple[str, Vector]]:
    raw, top = package.raw, package.tier_key
    assert top is not None
    yield "ok-tiers", Vector("three tiers, all of them read", "ok", "", raw, package, tier_key=top)
    yield "ok-tier-2", Vector("the same with the key of tier 2", "ok", "", raw, package, tier_key=top.at(2))
    forged = TierKey(top.package_id, 3, top.at(2).secret)
    comment = "the key of tier 2 held out for tier 3"
    yield "wrong-tier-key", Vector(comment, "wrong-key", "read", raw, package, tier_key=forged)
    changed = flip(raw, package.part_begin("p/03"))
    comment = "a byte of a patch is changed, the digests unread"
    yield "flipped-patch-no-digests", Vector(comment, "tampered", "read", changed, package, "digests", tier_key=top)


def _forged(package: SmallPackage, begin: int) -> bytes:
    manifest = package.manifest
    part = next(part for part in manifest.parts if part.name == "conv.weight")
    key = aead.package_key(package.content_key, manifest.package_id, manifest.salt)
    sealed = bytearray(80)
    cipher = aead.PartCipher(manifest.algorithm, key, manifest.package_id, part, manifest.chunk_bytes)
    cipher.seal_into(0, pattern(64, 99), memoryview(sealed))
    return package.raw[:begin] + sealed + package.raw[begin + 80 :]


def _lines(vector: Vector) -> Iterator[str]:
    yield f"comment: {vector.comment}"
    yield f"expect: {vector.expect}"
    if vector.step:
        yield f"step: {vector.step}"
    if vector.skip:
        yield f"skip: {vector.skip}"
    for key_id, public_key in vector.package.issuers.items():
        yield f"issuer: {key_id} {public_key.hex()}"
    yield f"content-key: {vector.content_key.hex()}"
    if vector.tier_key is not None:
        yield f"tier-key: {vector.tier_key.tier} {vector.tier_key.secret.reveal().hex()}"
    if vector.expect == "ok":
        manifest = vector.package.manifest
        key = aead.package_key(ContentKey(vector.content_key), manifest.package_id, manifest.salt)
        yield f"package-key: {key.reveal().hex()}"
        for part in manifest.parts:
            if part.kind == "patch":
                if vector.tier_key is None or int(part.name) > vector.tier_key.tier:
                    continue
                plain, secret = SMALL_PATCHES[int(part.name) - 1], vector.tier_key.at(int(part.name)).secret
                opened = aead.package_key(secret, manifest.package_id, manifest.salt)
            else:
                plain, opened = PROGRAM if part.kind == "program" else vector.package.plain[part.name], key
            derived = kdf.expand(opened.reveal(), f"tessera/v1/package/part/{part.key}".encode(), 32)
            yield f"part: {part.key} {hashlib.sha256(plain).hexdigest()} {derived.hex()}"
    yield ""
    text = vector.raw.hex()
    yield from (text[begin : begin + 128] for begin in range(0, len(text), 128))


def vectors() -> dict[str, str]:
    """Return every vector file's name and text; the same on every run."""
    with tempfile.TemporaryDirectory() as folder:
        return {f"{name}.txt": "\n".join(_lines(vector)) + "\n" for name, vector in _vectors(Path(folder))}


if __name__ == "__main__":
    for name, text in vectors().items():
        (HERE / name).write_text(text)
