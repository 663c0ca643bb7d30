"""Opening a sealed package: form, signature, digests, key, parts; each step is a method, in that order.

    with open_package(path, issuers) as sealed:          form and signature
        sealed.verify_digests()                          every sealed byte is what the issuer signed
        weights = sealed.unlock(content_key)             the key is the right one
        for part in weights.tensors:
            weights.read_tensor_into(part.name, buffer)  each chunk is authentic and in its place

Whatever was changed in the file, the error is `Tampered` with the reason `package-tampered`; docs/spec.md, rule P-26,
says which step notices what. The file is read by position into one private chunk, never mapped: a file that another
process truncates meanwhile is `Tampered` and not SIGBUS, and the bytes authenticated are the bytes decrypted.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Self

from tessera.keystore import _ed25519
from tessera.keystore.errors import ApiMisuse, Malformed, NotFound, Tampered, Unauthenticated, WrongKey
from tessera.keystore.package import aead
from tessera.keystore.package.buffers import fresh_bytes, plain_bytes, wipe
from tessera.keystore.package.files import PackageFile
from tessera.keystore.package.header import LENGTH_BYTES, Header, header_length, parse_header, signed_message
from tessera.keystore.package.manifest import Manifest
from tessera.keystore.package.parts import Part, extents, patch_name
from tessera.keystore.package.patches import PatchEntry, check_patch, decode_patch
from tessera.keystore.package.workers import in_threads
from tessera.keystore.secrets import ContentKey
from tessera.keystore.tiers import TierKey

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc.Buffer begins with Python 3.12

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_READ_BYTES = 1 << 20
_SMALL_BYTES = 1 << 17
"""A tensor below this costs more of the interpreter than of the cipher: about 50 us a tensor, at 2.5 GB/s."""


def open_package(path: str | os.PathLike[str], issuers: Mapping[str, bytes]) -> "SealedPackage":
    """Open the package at `path` and verify its form and the issuer's signature; no key is needed.

    `issuers` maps key ids to 32-byte Ed25519 public keys. Raises `Tampered` (anything wrong with the bytes, and paths
    that are no regular file), `Unauthenticated` (well-formed, and signed by nobody in `issuers`), `NotFound`, `Denied`
    (not readable by this user), `Unavailable` (the disk fails).
    """
    file = PackageFile(path)
    try:
        header, body_begin = _header(file)
        key = issuers.get(header.manifest.issuer_id)
        if key is None:
            raise Unauthenticated(
                "the package is signed by an issuer that is not trusted here",
                reason="licence-issuer-unknown",
                remedy="trust the issuer's public identity first, if it is the right one",
            )
        _verify_signature(header, key)
        return SealedPackage(file, header.manifest, body_begin)
    except BaseException:
        file.close()
        raise


def inspect_package(path: str | os.PathLike[str]) -> Manifest:
    """Return what the package at `path` says about itself. The form is checked, the signature is NOT.

    Raises as `open_package`, without `Unauthenticated`.
    """
    file = PackageFile(path)
    try:
        return _header(file)[0].manifest
    finally:
        file.close()


class SealedPackage:
    """A package whose form and signature hold; only `open_package` makes one. A context manager that closes the file.

    Threads may share it; whoever closes it first makes sure that nobody reads any more.
    """

    def __init__(self, file: PackageFile, manifest: Manifest, body_begin: int) -> None:
        self.manifest = manifest
        """The signed description."""
        self._file = file
        self._begins = {part.key: body_begin + begin for part, begin, _ in extents(manifest.parts)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; later reads raise `ApiMisuse`. May be called again."""
        self._file.close()

    def verify_digests(self, progress: Progress | None = None) -> None:
        """Hold every sealed byte against the digests that the issuer signed. Raises `Tampered`.

        The only check that also stops someone who holds the content key from exchanging weights (rule P-25).
        """
        done, total = 0, self.manifest.body_bytes
        scratch = fresh_bytes(_READ_BYTES)
        for part in self.manifest.parts:
            hasher, begin = hashlib.sha256(), self._begins[part.key]
            for offset in range(0, part.sealed_bytes, _READ_BYTES):
                piece = scratch[: min(_READ_BYTES, part.sealed_bytes - offset)]
                self._file.read_into(piece, begin + offset)
                hasher.update(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
            _check_digest(hasher.hexdigest(), part)

    def unlock(self, content_key: ContentKey, *, check_digests: bool = False) -> "UnlockedPackage":
        """Return the readable package. Raises `WrongKey` when `content_key` is not the one the manifest commits to.

        With `check_digests` every later read also holds what it reads against the signed digest, in the same pass over
        the same bytes: for files that someone with the content key could have rewritten, at SHA-256's speed.
        """
        key = aead.package_key(content_key, self.manifest.package_id, self.manifest.salt)
        if not aead.commits_to(self.manifest.commitment, key):
            raise WrongKey("the content key is not the one this package is sealed with")
        return UnlockedPackage(self, key, check_digests=check_digests)

    def _read_into(self, part: Part, offset: int, out: memoryview) -> None:
        self._file.read_into(out, self._begins[part.key] + offset)


class UnlockedPackage:
    """A package together with its key; only `SealedPackage.unlock` makes one. Reads may run in several threads."""

    def __init__(self, sealed: SealedPackage, key: aead.PackageKey, *, check_digests: bool) -> None:
        self._sealed = sealed
        self._key = key
        self._check_digests = check_digests
        self._tensors = {part.name: part for part in sealed.manifest.tensors}
        self._local = threading.local()

    @property
    def manifest(self) -> Manifest:
        """The signed description."""
        return self._sealed.manifest

    @property
    def tensors(self) -> tuple[Part, ...]:
        """The weights' names, dtypes, shapes and sizes, in the order of the file."""
        return self._sealed.manifest.tensors

    def read_tensor_into(self, name: str, out: "Buffer") -> None:
        """Decrypt the tensor `name` into `out`, a writable C-contiguous buffer of exactly `Part.size` bytes.

        Little-endian and row-major, as safetensors has it. Raises `NotFound` for a name the package does not have,
        `ApiMisuse` for a buffer that does not fit, `Tampered` when the file fails authentication; `out` is all zero
        bytes then.
        """
        part = self._tensors.get(name)
        if part is None:
            raise NotFound("the package has no tensor of this name")
        self._decrypt(part, _writable_bytes(out, part.size))

    def read_tensors_into(self, buffers: "Mapping[str, Buffer]", *, workers: int = 1) -> None:
        """Decrypt every tensor named in `buffers` into its buffer, as `read_tensor_into` does, in `workers` threads.

        The AEAD and SHA-256 run without the interpreter's lock. After the first error each thread finishes the tensors
        it has begun with (small ones are taken together), the others are left alone; raises as `read_tensor_into`.
        """

        def read(lot: list[str]) -> None:
            for name in lot:
                self.read_tensor_into(name, buffers[name])

        in_threads(read, self._lots(buffers), workers)

    def read_tier_into(self, key: TierKey, buffers: "Mapping[str, Buffer]", *, workers: int = 1) -> dict[str, int]:
        """Decrypt every tensor named in `buffers` into its buffer, at the tier of `key`, in `workers` threads; return,
        by name, the last tier that changed a tensor of `buffers`; those that are not named are the base's.

        Keys are held against the manifest before anything is written; patches are opened before tensors are read.
        Raises as `read_patch` and `read_tensor_into`; after `Tampered` and `Malformed`, tensors hold plaintext of this
        tier or of the base, which the caller must wipe.
        """
        doors = [self._door(key.at(tier)) for tier in range(1, key.tier + 1)]
        opened: list[_OpenPatch] = []  # filled as they are opened, so that an error leaves none of them unwiped
        changes: dict[str, list[tuple[int, PatchEntry]]] = {}
        counting, known, early = threading.Lock(), threading.Event(), list[str]()

        def open_one(door: _Door) -> None:
            found = self._open(door)
            with counting:
                opened.append(found)
                if len(opened) < len(doors):
                    return
                for one in sorted(opened, key=lambda opened_patch: opened_patch.tier):
                    for entry in one.entries:
                        changes.setdefault(entry.tensor, []).append((one.tier, entry))
                known.set()

        def patch(name: str) -> None:
            for _, entry in changes.get(name, ()):  # in the order of the tiers: the highest one's values stay
                entry.write_into(buffers[name])

        def read(lot: list[str]) -> None:
            for name in lot:
                self.read_tensor_into(name, buffers[name])
                if known.is_set():
                    patch(name)
                else:
                    early.append(name)

        jobs: list[Callable[[], None]] = [partial(open_one, door) for door in doors]
        jobs += [partial(read, lot) for lot in self._lots(buffers)]
        try:
            in_threads(_call, jobs, workers)
            for name in early:
                patch(name)
            return {name: found[-1][0] for name, found in changes.items() if name in buffers}
        finally:
            for one in opened:
                wipe(one.plain)

    def _lots(self, names: Iterable[str]) -> list[list[str]]:
        """What threads take one after the other: all small tensors together, then the others, the largest first.

        A small tensor costs more of the interpreter than of the cipher. Spread over threads, they wait for its lock
        longer than one thread takes for all of them; names that are unknown are small.
        """
        sizes = {name: self._tensors[name].size if name in self._tensors else 0 for name in names}
        small = [name for name, size in sizes.items() if size < _SMALL_BYTES]
        large = sorted((name for name in sizes if sizes[name] >= _SMALL_BYTES), key=lambda name: -sizes[name])
        return [small, *([name] for name in large)]

    def read_program(self) -> bytes:
        """Return the program's bytes. Raises `Tampered`."""
        part = self.manifest.program
        out = bytearray(part.size)
        self._decrypt(part, memoryview(out))
        return bytes(out)

    def read_patch(self, key: TierKey) -> tuple[PatchEntry, ...]:
        """Return what the tier of `key` adds to the tier below it; tier t is the tensors with the patches 1 … t.

        Raises `NotFound` ("tier-unavailable") when the package has no such patch, `WrongKey` when the key is another
        package's or not the one the manifest commits to, `Tampered`, and `Malformed` for an authentic patch that does
        not belong to the package's tensors.
        """
        return self._read_patch(key).entries

    def apply_patch(self, key: TierKey, buffers: "Mapping[str, Buffer]") -> frozenset[str]:
        """Write what the tier of `key` adds into `buffers`, which hold the tensors of the tier below; return which ones
        were changed. The plaintext of the patch is overwritten afterwards.

        `buffers` are writable C-contiguous memory, by name, of at least every tensor that the patch changes. Raises as
        `read_patch`, before anything is written.
        """
        patch = self._read_patch(key)
        try:
            for entry in patch.entries:
                entry.write_into(_writable_bytes(buffers[entry.tensor], self._tensors[entry.tensor].size))
        finally:
            wipe(patch.plain)
        return frozenset(entry.tensor for entry in patch.entries)

    def _read_patch(self, key: TierKey) -> "_OpenPatch":
        return self._open(self._door(key))

    def _door(self, key: TierKey) -> "_Door":
        """Return the patch of the tier of `key` with what opens it, once the key is known to be the right one."""
        part = next((part for part in self.manifest.patches if part.name == patch_name(key.tier)), None)
        if part is None:
            raise NotFound(f"the package has no patch for tier {key.tier}", reason="tier-unavailable")
        opens = aead.package_key(key.secret, self.manifest.package_id, self.manifest.salt)
        right = aead.commits_to(part.commitment, opens, aead.TIER_COMMITMENT_LABEL)
        if key.package_id != self.manifest.package_id or not right:
            raise WrongKey(f"the tier key is not the one that tier {key.tier} of this package is sealed with")
        return _Door(key.tier, part, opens)

    def _open(self, door: "_Door") -> "_OpenPatch":
        plain = fresh_bytes(door.part.size, lasting=False)
        self._decrypt(door.part, plain, door.key)
        try:
            entries = decode_patch(plain)
            check_patch(entries, self._tensors)
        except BaseException:
            wipe(plain)
            raise
        return _OpenPatch(door.tier, entries, plain)

    def _decrypt(self, part: Part, out: memoryview, key: aead.PackageKey | None = None) -> None:
        try:
            self._decrypt_chunks(part, out, self._key if key is None else key)
        except BaseException:
            wipe(out)
            raise

    def _decrypt_chunks(self, part: Part, out: memoryview, key: aead.PackageKey) -> None:
        step = self.manifest.chunk_bytes
        cipher = aead.PartCipher(self.manifest.algorithm, key, self.manifest.package_id, part, step)
        hasher = hashlib.sha256() if self._check_digests else None
        scratch = self._scratch(aead.sealed_bytes(min(step, part.size)))
        for index in range(part.chunks):
            plain = out[index * step : (index + 1) * step]
            sealed = scratch[: aead.sealed_bytes(len(plain))]
            self._sealed._read_into(part, index * aead.sealed_bytes(step), sealed)
            if hasher is not None:
                hasher.update(sealed)
            cipher.open_into(index, sealed, plain)
        if hasher is not None:
            _check_digest(hasher.hexdigest(), part)

    def _scratch(self, size: int) -> memoryview:
        """Memory of this thread alone for one sealed chunk; kept, for fresh memory costs more than the cipher."""
        found: memoryview | None = getattr(self._local, "scratch", None)
        if found is None or len(found) < size:
            found = self._local.scratch = fresh_bytes(size, lasting=False)
        return found


class _Door(NamedTuple):
    """A patch that is sealed, and its key."""

    tier: int
    part: Part
    key: aead.PackageKey


class _OpenPatch(NamedTuple):
    """A patch in plain."""

    tier: int
    entries: tuple[PatchEntry, ...]
    plain: memoryview
    """The memory that the entries are views of."""


def _call(job: Callable[[], None]) -> None:
    job()


def _header(file: PackageFile) -> tuple[Header, int]:
    try:
        length = header_length(file.read(0, min(LENGTH_BYTES, file.size)))
        if LENGTH_BYTES + length > file.size:
            raise Malformed("the file ends inside its header")
        header = parse_header(file.read(LENGTH_BYTES, length))
        if file.size != LENGTH_BYTES + length + header.manifest.body_bytes:
            raise Malformed("the file's length does not follow from its header")
    except Malformed as error:
        raise Tampered(
            f"not an intact package: {error.public}",
            reason="package-tampered",
            remedy="get the file again from the vendor and compare its checksum",
        ) from error
    return header, LENGTH_BYTES + length


def _verify_signature(header: Header, key: bytes) -> None:
    if not _ed25519.verifies(key, signed_message(header.manifest_json), header.signature):
        _refuse("the issuer's signature over the manifest does not verify")


def _check_digest(found: str, part: Part) -> None:
    if found != part.digest:
        _refuse("a sealed part is not the one that the issuer signed")


def _refuse(public: str) -> NoReturn:
    raise Tampered(
        public,
        reason="package-tampered",
        remedy="get the file again from the vendor and compare its checksum",
    ) from None


def _writable_bytes(out: "Buffer", size: int) -> memoryview:
    view = plain_bytes(out)
    if view.readonly or len(view) != size:
        raise ApiMisuse(f"a tensor is read into a writable buffer of exactly {size} bytes")
    return view
