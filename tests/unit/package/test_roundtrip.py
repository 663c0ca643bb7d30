"""What goes in comes out: every dtype, every awkward size, through every door."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from support.packages import (
    CONTENT_KEY,
    CREATED_AT_S,
    PROGRAM,
    Weights,
    a_draft,
    flip,
    open_and_read,
    pattern,
    read_all,
    seeded_issuer,
    small_package,
)
from tessera.keystore.errors import ApiMisuse, NotFound, Tampered
from tessera.keystore.package import CHUNK_BYTES, ITEM_BYTES, Algorithm, inspect_package, open_package, write_package
from tessera.keystore.secrets import ContentKey

MIB = 1 << 20


@pytest.mark.parametrize("algorithm", ["AES-256-GCM", "ChaCha20Poly1305"])
def test_everything_comes_back(tmp_path: Path, algorithm: Algorithm) -> None:
    """Tensors and program are read back bit for bit with either algorithm, and the manifest says which."""
    package = small_package(tmp_path / "a.tessera", algorithm=algorithm)
    assert open_and_read(package) == {"": PROGRAM, **package.plain}
    assert inspect_package(package.path) == package.manifest
    assert package.manifest.algorithm == algorithm


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5, 13), (1, 1, 1)])
def test_every_dtype_and_rank(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    """Every dtype, with rank 0 and empty axes too, keeps its dtype, shape and bytes."""
    package = small_package(tmp_path / "a.tessera", weights=(Weights("t", dtype, shape),))
    assert open_and_read(package)["t"] == package.plain["t"]
    (part,) = package.manifest.tensors
    assert (part.dtype, part.shape, part.size) == (dtype, shape, len(package.plain["t"]))


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1])
def test_sizes_around_a_chunk(tmp_path: Path, size: int) -> None:
    """With real 1 MiB chunks, sizes around the boundary have the expected chunk count and come back."""
    raw = np.random.default_rng(size).bytes(size)
    package = small_package(
        tmp_path / "a.tessera", weights=(Weights("t", "U8", (size,), raw),), chunk_bytes=CHUNK_BYTES
    )
    assert open_and_read(package)["t"] == raw
    (part,) = package.manifest.tensors
    assert part.chunks == max(1, (size + MIB - 1) // MIB)
    assert part.sealed_bytes == size + 16 * part.chunks


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 400), max_size=6),
    chunk_bytes=st.sampled_from([64, 128, 256]),
    program=st.binary(min_size=1, max_size=300),
)
def test_any_sizes(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], chunk_bytes: int, program: bytes
) -> None:
    """Any number of tensors of any size comes back, in the order of their names."""
    path = tmp_path_factory.mktemp("any") / "a.tessera"
    weights = tuple(Weights(f"t{n}", "U8", (size,), start=n) for n, size in enumerate(sizes))
    package = small_package(path, weights=weights[::-1], program=program, chunk_bytes=chunk_bytes)
    assert open_and_read(package) == {"": program, **package.plain}
    assert [part.name for part in package.manifest.tensors] == [entry.name for entry in weights]


def test_it_is_a_safetensors_file(tmp_path: Path) -> None:
    """PyPI safetensors opens the package, lists the parts as rows of bytes and sees the ciphertext that lies there."""
    package = small_package(tmp_path / "a.tessera")
    with safe_open(str(package.path), "np") as file:
        assert sorted(file.keys()) == [part.key for part in package.manifest.parts]
        assert file.metadata()["tessera.manifest"].encode() == package.manifest.to_json()
        for part in package.manifest.parts:
            tensor = file.get_tensor(part.key)
            begin = package.part_begin(part.key)
            assert tensor.tobytes() == package.raw[begin : begin + part.sealed_bytes]


def test_header_is_aligned_and_the_body_has_no_hole(tmp_path: Path) -> None:
    """The header ends on a multiple of 8 bytes and the parts fill the rest of the file in the order of their keys."""
    package = small_package(tmp_path / "a.tessera")
    assert package.body_begin % 8 == 0
    assert [part.key for part in package.manifest.parts] == sorted(part.key for part in package.manifest.parts)
    assert len(package.raw) == package.body_begin + package.manifest.body_bytes


def test_a_tensor_may_be_called_program(tmp_path: Path) -> None:
    """The program and a tensor of the same name do not collide, in the file nor in their keys."""
    package = small_package(tmp_path / "a.tessera", weights=(Weights("program", "U8", (len(PROGRAM),), PROGRAM),))
    assert open_and_read(package) == {"": PROGRAM, "program": PROGRAM}
    ours, theirs = package.part_begin("program"), package.part_begin("w/program")
    assert package.raw[ours : ours + 64] != package.raw[theirs : theirs + 64]


def test_weightless_package(tmp_path: Path) -> None:
    """A model without weights is a package with a program alone."""
    package = small_package(tmp_path / "a.tessera", weights=())
    assert open_and_read(package) == {"": PROGRAM}


def test_no_plaintext_in_the_file(tmp_path: Path) -> None:
    """No stretch of 16 plaintext bytes, and not the content key, appears in the file."""
    package = small_package(tmp_path / "a.tessera", weights=(Weights("t", "U8", (5000,)),))
    raw = package.raw
    assert CONTENT_KEY not in raw
    assert CONTENT_KEY.hex().encode() not in raw
    plain = package.plain["t"]
    assert not any(plain[begin : begin + 16] in raw for begin in range(0, len(plain) - 16, 16))
    assert PROGRAM[:16] not in raw


def test_two_writings_share_no_ciphertext(tmp_path: Path) -> None:
    """The same weights, key and package id, written twice, share no keystream: each writing has its own salt."""
    first = small_package(tmp_path / "a.tessera", package_id="ab" * 16)
    second = small_package(tmp_path / "b.tessera", package_id="ab" * 16)
    assert first.manifest.salt != second.manifest.salt
    assert first.manifest.commitment != second.manifest.commitment
    begin = first.part_begin("w/conv.weight")
    assert first.raw[begin : begin + 64] != second.raw[begin : begin + 64]


def test_digests_can_be_checked_while_reading(tmp_path: Path) -> None:
    """`check_digests` reads the same bytes."""
    package = small_package(tmp_path / "a.tessera")
    with open_package(package.path, package.issuers) as sealed:
        assert read_all(sealed.unlock(package.content_key, check_digests=True)) == {"": PROGRAM, **package.plain}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_many_tensors_in_many_threads(tmp_path: Path, workers: int) -> None:
    """All tensors are read at once, in one thread or several; one that is damaged is refused and left zero."""
    weights = tuple(Weights(f"t{n}", "U8", (n * 50,), start=n) for n in range(20))
    package = small_package(tmp_path / "a.tessera", weights=weights)
    with open_package(package.path, package.issuers) as sealed:
        unlocked = sealed.unlock(package.content_key)
        buffers = {part.name: bytearray(part.size) for part in unlocked.tensors}
        unlocked.read_tensors_into(buffers, workers=workers)
        assert buffers == package.plain
        package.rewrite(flip(package.raw, package.part_begin("w/t9")))
        with pytest.raises(Tampered):
            unlocked.read_tensors_into(buffers, workers=workers)
        assert buffers["t9"] == bytes(450)


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    """Writing and verifying report growing byte counts that end at the total."""
    written: list[tuple[int, int]] = []
    package = small_package(tmp_path / "a.tessera", progress=lambda done, total: written.append((done, total)))
    total = len(PROGRAM) + sum(map(len, package.plain.values()))
    assert written == sorted(written)
    assert written[-1] == (total, total)
    seen: list[tuple[int, int]] = []
    with open_package(package.path, package.issuers) as sealed:
        sealed.verify_digests(lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (package.manifest.body_bytes,) * 2


def test_reads_into_numpy(tmp_path: Path) -> None:
    """An array of the tensor's own dtype and shape is a fit destination, and so is one with an empty axis."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    weights = (Weights("t", "F32", (3, 4), values.tobytes()), Weights("none", "F32", (0, 4)))
    package = small_package(tmp_path / "a.tessera", weights=weights)
    out, none = np.empty((3, 4), np.float32), np.empty((0, 4), np.float32)
    with open_package(package.path, package.issuers) as sealed:
        unlocked = sealed.unlock(package.content_key)
        unlocked.read_tensor_into("t", out.data)
        unlocked.read_tensor_into("none", none.data)
    np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize(
    "out",
    [
        bytes(64),
        bytearray(63),
        bytearray(65),
        memoryview(bytearray(64)).toreadonly(),
        memoryview(bytearray(128))[::2],
        np.empty((4, 8), np.float32)[:, ::2],
        np.empty((8, 4), np.float32).T[:4],
        np.empty(8, "O"),
        "text",
        None,
    ],
)
def test_unfit_buffers_are_misuse(tmp_path: Path, out: object) -> None:
    """A buffer that is read-only, strided, of another size or none at all is the caller's bug, said as such."""
    package = small_package(tmp_path / "a.tessera")
    with open_package(package.path, package.issuers) as sealed, pytest.raises(ApiMisuse):
        sealed.unlock(package.content_key).read_tensor_into("conv.weight", out)  # type: ignore[arg-type]


def test_unknown_tensor(tmp_path: Path) -> None:
    """A name that the package does not have is not found; the program is not a tensor."""
    package = small_package(tmp_path / "a.tessera")
    with open_package(package.path, package.issuers) as sealed:
        unlocked = sealed.unlock(package.content_key)
        for name in ("nothing", "program", "w/conv.weight", ""):
            with pytest.raises(NotFound):
                unlocked.read_tensor_into(name, bytearray(64))


def test_tensors_may_come_from_a_generator(tmp_path: Path) -> None:
    """The tensors are consumed once, in any order, from any buffer type."""
    array = np.frombuffer(pattern(48), np.int32).copy()
    tensors: list[tuple[str, str, Sequence[int], memoryview | bytearray]] = [
        ("z", "I32", (3, 4), array.data),
        ("a", "U8", [5], bytearray(b"abcde")),
    ]
    issuer = seeded_issuer()
    manifest = write_package(
        tmp_path / "a.tessera",
        a_draft(),
        tensors=(entry for entry in tensors),
        program=b"p",
        issuer=issuer,
        content_key=ContentKey(CONTENT_KEY),
        created_at_s=CREATED_AT_S,
    )
    assert [part.name for part in manifest.tensors] == ["a", "z"]
    with open_package(tmp_path / "a.tessera", {issuer.key_id: issuer.public.verify_key}) as sealed:
        assert read_all(sealed.unlock(ContentKey(CONTENT_KEY))) == {"": b"p", "a": b"abcde", "z": pattern(48)}
