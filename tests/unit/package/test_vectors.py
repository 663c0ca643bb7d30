"""The vectors in tests/vectors/package, which a reader in another language can run too."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from support.packages import read_all
from tessera.keystore.errors import Tampered, TesseraError, Unauthenticated, WrongKey
from tessera.keystore.package import open_package
from tessera.keystore.secrets import ContentKey, TierSecret
from tessera.keystore.tiers import TierKey
from vectors.package.generate import HERE, vectors

FILES = sorted(HERE.glob("*.txt"))
ERRORS: dict[str, type[TesseraError]] = {
    "tampered": Tampered,
    "issuer-unknown": Unauthenticated,
    "wrong-key": WrongKey,
}


def parse(path: Path) -> tuple[dict[str, list[str]], bytes]:
    """Return a vector's lines by name and its package."""
    head, _, body = path.read_text().partition("\n\n")
    found: dict[str, list[str]] = {}
    for line in head.splitlines():
        name, _, value = line.partition(": ")
        found.setdefault(name, []).append(value)
    return found, bytes.fromhex(body)


def tier_key(lines: dict[str, list[str]], package_id: str) -> TierKey | None:
    """Return the tier key that a vector gives, if it gives one."""
    if "tier-key" not in lines:
        return None
    tier, secret = lines["tier-key"][0].split()
    return TierKey(package_id, int(tier), TierSecret(bytes.fromhex(secret)))


def walk(path: Path, lines: dict[str, list[str]]) -> tuple[str, Any]:
    """Return the step that was reached and the error there, or the plaintexts when all steps passed."""
    step = "open"
    issuers = {entry.split()[0]: bytes.fromhex(entry.split()[1]) for entry in lines["issuer"]}
    try:
        with open_package(path, issuers) as sealed:
            step = "digests"
            if lines.get("skip") != ["digests"]:
                sealed.verify_digests()
            step = "unlock"
            unlocked = sealed.unlock(ContentKey(bytes.fromhex(lines["content-key"][0])))
            step = "read"
            return "", read_all(unlocked, tier_key(lines, sealed.manifest.package_id))
    except TesseraError as error:
        return step, error


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_vector(tmp_path: Path, file: Path) -> None:
    """Each vector is read, or refused at the step and with the error it names."""
    lines, raw = parse(file)
    (tmp_path / "vector.tessera").write_bytes(raw)
    step, found = walk(tmp_path / "vector.tessera", lines)
    (expected,) = lines["expect"]
    if expected != "ok":
        assert type(found) is ERRORS[expected]
        assert [step] == lines["step"]
        return
    assert not isinstance(found, TesseraError)
    plain = {
        (name if name.startswith("p/") else f"w/{name}" if name else "program"): raw for name, raw in found.items()
    }
    listed = [entry.split() for entry in lines["part"]]
    assert {key: hashlib.sha256(raw).hexdigest() for key, raw in plain.items()} == {
        key: digest for key, digest, _ in listed
    }


def test_vectors_are_what_the_generator_writes() -> None:
    """The files are exactly the generator's output: the format has not moved, and no vector is missing."""
    assert {file.name: file.read_text() for file in FILES} == vectors()
