"""Whatever is done to the file, the answer is `Tampered` with the reason `package-tampered`, and no plaintext is left.

Rule P-26 says which step notices what; these tests hold it to that.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load as safetensors_load

from support.packages import (
    OTHER_SEED,
    SmallPackage,
    Weights,
    a_draft,
    edit_header,
    flip,
    open_and_read,
    read_all,
    seeded_issuer,
    small_package,
    swap,
)
from tessera.keystore import canonical
from tessera.keystore.errors import Tampered, TesseraError, Unauthenticated, WrongKey
from tessera.keystore.package import inspect_package, open_package
from tessera.keystore.package.header import MAX_HEADER_BYTES
from tessera.keystore.secrets import ContentKey


@pytest.fixture
def package(tmp_path: Path) -> SmallPackage:
    """A package with two equal-shape tensors, an empty one and a scalar, in 64-byte chunks."""
    return small_package(tmp_path / "a.tessera")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SmallPackage:
    """A package for properties; each example writes its damaged copy over the same file."""
    return small_package(tmp_path_factory.mktemp("shared") / "a.tessera")


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
def test_every_byte_counts(package: SmallPackage) -> None:
    """Changing any byte of length, header, manifest, signature, ciphertext or tag is refused, also without digests."""
    raw = package.raw
    for position in range(len(raw)):
        refused(package, flip(raw, position, 1 << position % 8))
        if position >= package.body_begin:
            refused(package, flip(raw, position, 0xFF), digests=False)


def test_truncated_at_every_chunk(package: SmallPackage) -> None:
    """A file that ends at any chunk's boundary, before or after its tag, is refused."""
    raw = package.raw
    cuts = {0, 7, 8, 9, package.body_begin - 1, package.body_begin}
    for part in package.manifest.parts:
        begin = package.part_begin(part.key)
        for index in range(part.chunks + 1):
            end = min(begin + index * 80, begin + part.sealed_bytes)
            cuts |= {end, end - 16, end + 1}
    for cut in sorted(cut for cut in cuts if 0 <= cut < len(raw)):
        refused(package, raw[:cut])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_truncated_anywhere(shared: SmallPackage, data: st.DataObject) -> None:
    """A file that ends anywhere before its end is refused."""
    raw = shared.raw
    refused(shared, raw[: data.draw(st.integers(0, len(raw) - 1))])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_replaced_stretches(shared: SmallPackage, data: st.DataObject) -> None:
    """Overwriting, inserting or removing any stretch of bytes is refused, unless it changes nothing."""
    raw = shared.raw
    begin = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(begin, min(len(raw), begin + 200)))
    changed = raw[:begin] + data.draw(st.binary(max_size=200)) + raw[end:]
    if changed != raw:
        refused(shared, changed)


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=400))
def test_random_bytes(shared: SmallPackage, raw: bytes) -> None:
    """Random bytes are no package."""
    refused(shared, raw)


@settings(max_examples=150, deadline=None)
@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.just("__metadata__"), inner)
        ),
        max_leaves=12,
    ),
    body=st.binary(max_size=40),
)
def test_random_documents(shared: SmallPackage, header: Any, body: bytes) -> None:
    """A right length before any JSON document, and any body behind it, is no package."""
    try:
        text = canonical.dumps(header)
    except TesseraError:
        return
    text += b" " * (-len(text) % 8)
    refused(shared, len(text).to_bytes(8, "little") + text + body)


def test_trailing_bytes(package: SmallPackage) -> None:
    """One byte, or a whole second package, behind the end is refused."""
    for tail in (b"\0", b" ", package.raw):
        refused(package, package.raw + tail)


def test_two_tensors_swapped_in_the_body(package: SmallPackage) -> None:
    """Exchanging the bytes of two tensors of equal shape is refused by the digests and, without them, by the keys."""
    first, second = package.part_begin("w/conv.bias"), package.part_begin("w/conv.weight")
    swapped = swap(package.raw, first, second, 80)
    refused(package, swapped)
    refused(package, swapped, digests=False)


def test_two_tensors_swapped_in_the_header(package: SmallPackage) -> None:
    """Exchanging the offsets of two tensors, or their names in the manifest, is refused when the file is opened."""

    def offsets(document: dict[str, Any]) -> None:
        document["w/conv.bias"], document["w/conv.weight"] = document["w/conv.weight"], document["w/conv.bias"]

    def names(document: dict[str, Any]) -> None:
        manifest = document["__metadata__"]["tessera.manifest"]
        manifest = manifest.replace("conv.bias", "#").replace("conv.weight", "conv.bias").replace("#", "conv.weight")
        document["__metadata__"]["tessera.manifest"] = manifest

    def digests(document: dict[str, Any]) -> None:
        manifest = canonical.loads(document["__metadata__"]["tessera.manifest"].encode(), max_bytes=MAX_HEADER_BYTES)
        parts = manifest["parts"]
        parts[1]["digest"], parts[2]["digest"] = parts[2]["digest"], parts[1]["digest"]
        document["__metadata__"]["tessera.manifest"] = canonical.dumps(manifest).decode()

    for edit in (offsets, names, digests):
        refused(package, edit_header(package.raw, edit))


def test_two_chunks_swapped(tmp_path: Path) -> None:
    """Exchanging two chunks of one part, or of two parts, is refused, with digests or without."""
    weights = (Weights("a", "U8", (192,)), Weights("b", "U8", (192,)))
    package = small_package(tmp_path / "a.tessera", weights=weights)
    begin, other = package.part_begin("w/a"), package.part_begin("w/b")
    for first, second in [(begin, begin + 80), (begin + 80, begin + 160), (begin, other), (begin + 160, other + 160)]:
        swapped = swap(package.raw, first, second, 80)
        refused(package, swapped)
        refused(package, swapped, digests=False)


def test_parts_of_another_package(tmp_path: Path) -> None:
    """The body, or the manifest, of another package with the same key, names and shapes is refused."""
    ours = small_package(tmp_path / "a.tessera")
    theirs = small_package(tmp_path / "b.tessera")
    assert ours.body_begin == theirs.body_begin
    body_of_theirs = ours.raw[: ours.body_begin] + theirs.raw[theirs.body_begin :]
    refused(ours, body_of_theirs)
    refused(ours, body_of_theirs, digests=False)

    def manifest_of_theirs(document: dict[str, Any]) -> None:
        document["__metadata__"]["tessera.manifest"] = theirs.manifest.to_json().decode()

    refused(ours, edit_header(ours.raw, manifest_of_theirs))


def test_signed_by_a_stranger(tmp_path: Path) -> None:
    """A package that an unknown issuer signed is well-formed and not trusted: another error than damage."""
    stranger = small_package(tmp_path / "a.tessera", issuer=seeded_issuer(OTHER_SEED))
    ours = small_package(tmp_path / "b.tessera")
    with pytest.raises(Unauthenticated) as caught:
        open_package(stranger.path, ours.issuers)
    assert caught.value.reason == "licence-issuer-unknown"
    assert inspect_package(stranger.path) == stranger.manifest


def test_resigned_by_a_stranger_in_our_name(package: SmallPackage) -> None:
    """A stranger's signature under the issuer's key id is refused, whether or not the manifest was changed."""
    stranger = seeded_issuer(OTHER_SEED)

    def resign(document: dict[str, Any], *, manifest: bytes) -> None:
        signature = stranger.sign(b"tessera/v1/package-manifest\n" + manifest)
        document["__metadata__"]["tessera.manifest"] = manifest.decode()
        document["__metadata__"]["tessera.signature"] = _b64u(signature)

    unchanged = package.manifest.to_json()
    dearer = unchanged.replace(b'"version":1', b'"version":2')
    for manifest in (unchanged, dearer):
        refused(package, edit_header(package.raw, partial(resign, manifest=manifest)))


def test_signature_without_its_label(package: SmallPackage) -> None:
    """The issuer's signature over the bare manifest, as another protocol might make it, does not count."""
    signature = seeded_issuer().sign(package.manifest.to_json())

    def edit(document: dict[str, Any]) -> None:
        document["__metadata__"]["tessera.signature"] = _b64u(signature)

    refused(package, edit_header(package.raw, edit))


def test_holder_of_the_content_key_cannot_exchange_weights(tmp_path: Path) -> None:
    """Weights sealed anew by someone with the content key and the salt pass the AEAD and are refused by the digests."""
    from tessera.keystore.package import aead

    package = small_package(tmp_path / "a.tessera")
    manifest = package.manifest
    part = next(part for part in manifest.parts if part.name == "conv.weight")
    key = aead.package_key(package.content_key, manifest.package_id, manifest.salt)
    cipher = aead.PartCipher(manifest.algorithm, key, manifest.package_id, part, manifest.chunk_bytes)
    forged = bytearray(80)
    cipher.seal_into(0, b"\x42" * 64, memoryview(forged))
    begin = package.part_begin(part.key)
    changed = package.raw[:begin] + forged + package.raw[begin + 80 :]
    refused(package, changed)
    package.rewrite(changed)
    with open_package(package.path, package.issuers) as sealed:
        assert read_all(sealed.unlock(package.content_key))["conv.weight"] == b"\x42" * 64
        out = bytearray(b"\x55" * 64)
        with pytest.raises(Tampered):
            sealed.unlock(package.content_key, check_digests=True).read_tensor_into("conv.weight", out)
    assert out == bytes(64)


def test_wrong_content_key(package: SmallPackage) -> None:
    """Another content key is a wrong key and not damage, before anything is read."""
    with open_package(package.path, package.issuers) as sealed:
        for raw in (bytes(32), bytes(range(65, 97))):
            with pytest.raises(WrongKey):
                sealed.unlock(ContentKey(raw))
        read_all(sealed.unlock(package.content_key))


def test_nothing_unauthenticated_is_left_behind(tmp_path: Path) -> None:
    """When the last of several chunks fails, the whole buffer is zero, the good chunks before it too."""
    package = small_package(tmp_path / "a.tessera", weights=(Weights("t", "U8", (300,)),))
    end = package.part_begin("w/t") + package.manifest.tensors[0].sealed_bytes
    package.rewrite(flip(package.raw, end - 1))
    out = bytearray(b"\x55" * 300)
    with open_package(package.path, package.issuers) as sealed, pytest.raises(Tampered):
        sealed.unlock(package.content_key).read_tensor_into("t", out)
    assert out == bytes(300)


def _drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.pop(key)


def _metadata(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["__metadata__"].update(changes)


def _entry(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["w/conv.bias"].update(changes)


EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "no metadata": _drop("__metadata__"),
    "no program": _drop("program"),
    "a part more": lambda document: document.update({"w/more": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}),
    "metadata more": _metadata(more="x"),
    "metadata is a list": lambda document: document.update({"__metadata__": []}),
    "format": _metadata(format="tessera-package/2"),
    "manifest is a number": _metadata(**{"tessera.manifest": 1}),
    "manifest is empty": _metadata(**{"tessera.manifest": ""}),
    "signature is short": _metadata(**{"tessera.signature": "A" * 85}),
    "signature is zero": _metadata(**{"tessera.signature": "A" * 86}),
    "signature is a list": _metadata(**{"tessera.signature": ["A" * 86]}),
    "signature has spare bits": _metadata(**{"tessera.signature": "A" * 85 + "B"}),
    "issuer": _metadata(**{"tessera.issuer": "A" * 43}),
    "dtype": _entry(dtype="I8"),
    "shape": _entry(shape=[80, 1]),
    "hole": _entry(data_offsets=[300, 380]),
    "huge": _entry(data_offsets=[0, 2**53 - 1], shape=[2**53 - 1]),
    "negative": _entry(data_offsets=[-1, 79]),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_headers(package: SmallPackage, name: str) -> None:
    """A header that does not follow from the manifest is refused, even when it is canonical JSON."""
    refused(package, edit_header(package.raw, EDITS[name]))


def _refit(raw: bytes, change: Callable[[bytes], bytes]) -> bytes:
    length = int.from_bytes(raw[:8], "little")
    header = change(raw[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header + b" " * 8,
        lambda header: b" " * 8 + header,
        lambda header: header.rstrip(b" "),
        lambda header: header.rstrip(b" ") + b"\n" * (len(header) - len(header.rstrip(b" "))) + b"\n" * 8,
        lambda header: header.replace(b":", b": ", 8),
        lambda header: header.replace(b'{"__metadata__"', b'{"__metadata__":{},"__metadata__"', 1),
        lambda header: header.replace(b"program", b"pr\\u006fgram", 1),
        lambda header: header.replace(b'"dtype":"U8"', b'"dtype":"U8","dtype":"U8"', 1),
        lambda header: header.replace(b'"tessera.manifest":"', b'"tessera.manifest":"\\ud800', 1),
        lambda header: header.replace(b'"U8"', b'"\\ud800"', 1),
        lambda header: header.replace(b'"data_offsets":[0', b'"data_offsets":[1e999', 1),
        lambda header: header + bytes(8),
        lambda header: b"",
        lambda header: b"[" * 100_000 + b"]" * 100_000,
        lambda header: b'{"a":' + b"9" * 5_000 + b"   }",
    ],
)
def test_headers_in_another_spelling(package: SmallPackage, change: Callable[[bytes], bytes]) -> None:
    """Padding, white space, escapes, duplicate keys and deep nesting that the writer does not write are refused."""
    raw = _refit(package.raw, change)
    aligned = _refit(raw, lambda header: header + b" " * (-len(header) % 8))
    for spelling in {raw, aligned} - {package.raw}:  # what is only stripped and padded again is the original
        refused(package, spelling)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 8, 2**64 - 1, MAX_HEADER_BYTES, MAX_HEADER_BYTES + 8])
def test_lengths_beyond_the_file(package: SmallPackage, length: int) -> None:
    """A header length of zero, beyond the file, the limit or 63 bits is refused without reading that much."""
    refused(package, length.to_bytes(8, "little") + package.raw[8:])


def test_our_reader_accepts_no_more_than_safetensors(shared: SmallPackage) -> None:
    """What PyPI safetensors refuses, we refuse: no single-byte change is accepted by us and refused by it."""
    raw = shared.raw
    for position in range(0, shared.body_begin, 3):
        changed = flip(raw, position, 2)
        try:
            safetensors_load(changed)
        except (SafetensorError, UnicodeDecodeError):
            refused(shared, changed)


def test_the_smallest_change_of_terms_is_refused(package: SmallPackage) -> None:
    """Raising a tier's advertised quality, or the batch limit, breaks the issuer's signature."""
    for old, new in (('"accuracy":0.975', '"accuracy":0.985'), ('"max_batch":64', '"max_batch":65')):

        def edit(document: dict[str, Any], old: str = old, new: str = new) -> None:
            manifest = document["__metadata__"]["tessera.manifest"]
            assert old in manifest
            document["__metadata__"]["tessera.manifest"] = manifest.replace(old, new)

        refused(package, edit_header(package.raw, edit))
    assert package.manifest.tiers == a_draft().tiers


def _b64u(raw: bytes) -> str:
    import base64

    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
