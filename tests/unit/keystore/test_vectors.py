"""The vectors are what their generator writes, and the light half of the room is light."""

import subprocess
import sys

import pytest

from support.vectors import load
from vectors import licence_vectors

LIGHT = [
    "canonical",
    "errors",
    "grant",
    "identity",
    "jws",
    "kdf",
    "keyfile",
    "licence",
    "proof",
    "revocation",
    "secrets",
    "usage",
]


@pytest.mark.parametrize("name", ["jws", "licence", "usage"])
def test_the_files_are_what_the_generator_writes(name: str) -> None:
    """Everything but the grant, whose boxes are random, is reproduced byte for byte."""
    written, built = load(name), licence_vectors.build()[name]
    if name == "licence":
        written["grant"].pop("token")
        built["grant"].pop("token")
    assert built == written


@pytest.mark.slow
def test_the_light_half_loads_nothing_heavy() -> None:
    """Importing every light module brings in PyNaCl and the standard library alone."""
    heavy = "{'cryptography', 'numpy', 'torch', 'grpc', 'google', 'sqlalchemy', 'jwt', 'safetensors'}"
    imports = "; ".join(f"import tessera.keystore.{name}" for name in LIGHT)
    code = f"import sys; {imports}; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
