"""Writing a sealed package: ciphertext goes to a hidden file beside the target, which then takes its name in one step.

Plaintext is read from the caller's memory and never written anywhere. A failure leaves neither a half package nor the
hidden file; a crash may leave the hidden file, which holds ciphertext only.
"""

import hashlib
import math
import operator
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tessera.keystore.errors import ApiMisuse
from tessera.keystore.identity import Signer
from tessera.keystore.package import aead
from tessera.keystore.package.buffers import plain_bytes
from tessera.keystore.package.files import refuse_path
from tessera.keystore.package.header import SIGNATURE_BYTES, build_header, signed_message
from tessera.keystore.package.manifest import Algorithm, Draft, Manifest
from tessera.keystore.package.parts import CHUNK_BYTES, ITEM_BYTES, PROGRAM, Kind, Part, chunk_count, patch_name
from tessera.keystore.package.patches import check_patch, decode_patch
from tessera.keystore.secrets import ContentKey
from tessera.keystore.tiers import TierKey

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc.Buffer begins with Python 3.12

    Tensor = tuple[str, str, Sequence[int], Buffer]
    """Name, safetensors dtype, shape, and the plain bytes: C-contiguous, little-endian, row-major."""

Progress = Callable[[int, int], None]
_NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class _Source:
    part: Part
    plain: memoryview
    key: aead.PackageKey


def write_package(
    path: str | os.PathLike[str],
    draft: Draft,
    *,
    tensors: "Iterable[Tensor]",
    program: bytes,
    issuer: Signer,
    content_key: ContentKey,
    created_at_s: int,
    package_id: str | None = None,
    algorithm: Algorithm = "AES-256-GCM",
    chunk_bytes: int = CHUNK_BYTES,
    patches: "Sequence[Buffer]" = (),
    tier_key: TierKey | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Seal `tensors` and `program` into one file at `path`, atomically, and return its manifest.

    `tensors` yields name, safetensors dtype, shape and a C-contiguous buffer of the plain bytes; all are held until the
    file is written. `patches` are what `encode_patch` gave for each tier of the draft, lowest first, and come with the
    top tier's `tier_key`, which is this package's; `tensors` is then what holds without any patch. An existing file is
    replaced. Every writing takes a fresh salt, so the same key and package id may
    be used again without reusing a nonce. `ChaCha20Poly1305` is for nodes whose CPU has no AES instructions. The file
    is readable by everyone: it holds nothing secret. `progress(done, total)` counts plaintext bytes.

    Raises `Malformed` for names, dtypes and shapes the format does not have, for patches that are none or are for
    other tensors, and for tiers without patches; `ApiMisuse` for buffers that do not fit, for names given twice and for
    a tier key of another package or tier; `NotFound`, `Denied` or `Unavailable` when the target cannot be written.
    """
    return danger_write_package_with_salt(
        path,
        draft,
        secrets.token_hex(32),
        tensors=tensors,
        program=program,
        issuer=issuer,
        content_key=content_key,
        created_at_s=created_at_s,
        package_id=secrets.token_hex(16) if package_id is None else package_id,
        algorithm=algorithm,
        chunk_bytes=chunk_bytes,
        patches=patches,
        tier_key=tier_key,
        progress=progress,
    )


def danger_write_package_with_salt(
    path: str | os.PathLike[str],
    draft: Draft,
    salt: str,
    *,
    tensors: "Iterable[Tensor]",
    program: bytes,
    issuer: Signer,
    content_key: ContentKey,
    created_at_s: int,
    package_id: str,
    algorithm: Algorithm,
    chunk_bytes: int,
    patches: "Sequence[Buffer]" = (),
    tier_key: TierKey | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Do what `write_package` does with a chosen salt, for test vectors only: a salt used twice is a leak."""
    key = aead.package_key(content_key, package_id, salt)
    sources = _sources(tensors, program, key, chunk_bytes)
    sources += _patches(patches, tier_key, sources, package_id, salt, chunk_bytes)
    sources.sort(key=lambda source: source.part.key)
    blank = Manifest(
        **{field.name: getattr(draft, field.name) for field in dataclass_fields(Draft)},
        package_id=package_id,
        issuer_id=issuer.key_id,
        created_at_s=created_at_s,
        salt=salt,
        commitment=aead.commitment(key),
        algorithm=algorithm,
        chunk_bytes=chunk_bytes,
        parts=tuple(source.part for source in sources),
    )
    target = Path(path)
    try:
        return _write_beside(target, blank, sources, issuer, progress)
    except OSError as error:
        refuse_path(target, error)


def _sources(tensors: "Iterable[Tensor]", program: bytes, key: aead.PackageKey, chunk_bytes: int) -> list[_Source]:
    if chunk_bytes < 1:
        raise ApiMisuse("a chunk has at least one byte")
    sources = [_source(PROGRAM, "program", "U8", (len(program),), program, key, chunk_bytes)]
    sources += [_source(name, "tensor", dtype, shape, raw, key, chunk_bytes) for name, dtype, shape, raw in tensors]
    if len({source.part.key for source in sources}) != len(sources):
        raise ApiMisuse("two tensors have one name")
    return sources


def _patches(
    patches: "Sequence[Buffer]",
    tier_key: TierKey | None,
    sources: list[_Source],
    package_id: str,
    salt: str,
    chunk_bytes: int,
) -> list[_Source]:
    """Return a source for each tier's patch, under the key of its tier, after holding it against the tensors."""
    if not patches and tier_key is None:
        return []
    if tier_key is None or tier_key.package_id != package_id or tier_key.tier != len(patches):
        raise ApiMisuse("patches come with the key of this package's top tier, one patch for each tier")
    tensors = {source.part.name: source.part for source in sources if source.part.kind == "tensor"}
    made = []
    for tier, raw in enumerate(patches, 1):
        check_patch(decode_patch(raw), tensors)
        key, plain = aead.package_key(tier_key.at(tier).secret, package_id, salt), plain_bytes(raw)
        source = _source(patch_name(tier), "patch", "U8", (len(plain),), plain, key, chunk_bytes)
        made.append(source)
    return made


def _source(
    name: str,
    kind: Kind,
    dtype: str,
    shape: Sequence[int],
    raw: "Buffer",
    key: aead.PackageKey,
    chunk_bytes: int,
) -> _Source:
    plain = plain_bytes(raw)
    try:
        dimensions = tuple(operator.index(dimension) for dimension in shape)  # NumPy's integers too
    except TypeError as error:
        raise ApiMisuse("a tensor's shape is a sequence of integers") from error
    size = math.prod(dimensions) * ITEM_BYTES.get(dtype, 0)
    commitment = aead.commitment(key, aead.TIER_COMMITMENT_LABEL) if kind == "patch" else ""
    part = Part(name, kind, dtype, dimensions, size, chunk_count(size, chunk_bytes), _NO_DIGEST, commitment)
    if size != len(plain):
        raise ApiMisuse("a tensor's bytes are not as many as its shape and dtype say")
    return _Source(part, plain, key)


def _write_beside(
    target: Path,
    blank: Manifest,
    sources: list[_Source],
    issuer: Signer,
    progress: Progress | None,
) -> Manifest:
    descriptor, hidden = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:64]}.", suffix=".part")
    try:
        with open(descriptor, "wb") as file:
            manifest = _write(file, blank, sources, issuer, progress)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, target)
    except BaseException:
        Path(hidden).unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)
    return manifest


def _write(
    file: IO[bytes],
    blank: Manifest,
    sources: list[_Source],
    issuer: Signer,
    progress: Progress | None,
) -> Manifest:
    room = len(build_header(blank, bytes(SIGNATURE_BYTES)))  # digests and signature have a fixed length
    file.seek(room)
    done, total = 0, sum(source.part.size for source in sources)
    parts = []
    for source in sources:
        digest = hashlib.sha256()
        for sealed in _chunks(source, blank):
            file.write(sealed)
            digest.update(sealed)
            done += len(sealed) - aead.sealed_bytes(0)
            if progress is not None:
                progress(done, total)
        parts.append(replace(source.part, digest=digest.hexdigest()))
    manifest = replace(blank, parts=tuple(parts))
    header = build_header(manifest, issuer.sign(signed_message(manifest.to_json())))
    if len(header) != room:
        raise ApiMisuse("the issuer's signature does not have 64 bytes")
    file.seek(0)
    file.write(header)
    return manifest


def _chunks(source: _Source, blank: Manifest) -> Iterable[memoryview]:
    """Yield ciphertext ‖ tag of each chunk, in one buffer that the next chunk overwrites."""
    step, part = blank.chunk_bytes, source.part
    cipher = aead.PartCipher(blank.algorithm, source.key, blank.package_id, part, step)
    buffer = memoryview(bytearray(aead.sealed_bytes(min(step, part.size))))
    for index in range(part.chunks):
        plain = source.plain[index * step : (index + 1) * step]
        sealed = buffer[: aead.sealed_bytes(len(plain))]
        cipher.seal_into(index, plain, sealed)
        yield sealed


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
