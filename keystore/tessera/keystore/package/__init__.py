"""Sealed packages: one file, a valid safetensors container of ciphertext, signed by its issuer (docs/spec.md, P rules).

    manifest = write_package("digits.tessera", draft, tensors=…, program=…, issuer=identity, content_key=key,
                             created_at_s=now)

    with open_package("digits.tessera", issuers) as sealed:
        sealed.verify_digests()
        unlocked = sealed.unlock(key)
        unlocked.read_tensor_into("conv1.weight", buffer)

Needs `cryptography`, which the buyer's light install does not have.
"""

from tessera.keystore.package.contract import DATATYPES, TensorSpec, Tier
from tessera.keystore.package.manifest import FORMAT, Algorithm, Draft, Manifest
from tessera.keystore.package.parts import CHUNK_BYTES, ITEM_BYTES, Part
from tessera.keystore.package.patches import PatchEntry, check_patch, decode_patch, encode_patch
from tessera.keystore.package.reader import SealedPackage, UnlockedPackage, inspect_package, open_package
from tessera.keystore.package.writer import write_package

__all__ = [
    "CHUNK_BYTES",
    "DATATYPES",
    "FORMAT",
    "ITEM_BYTES",
    "Algorithm",
    "Draft",
    "Manifest",
    "Part",
    "PatchEntry",
    "SealedPackage",
    "TensorSpec",
    "Tier",
    "UnlockedPackage",
    "check_patch",
    "decode_patch",
    "encode_patch",
    "inspect_package",
    "open_package",
    "write_package",
]
