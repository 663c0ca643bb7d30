"""Keyed input transforms: from 32 secret bytes to the bits of a tensor that only one buyer can make.

    spec = TransformSpec.parse_text("shf:4,np:4")
    lock = Transform(spec, input_key, channels=3, height=32, width=32)
    sent = lock(pixels)                     # uint8 (N, C, H, W)
    assert (lock.inverse(sent) == pixels).all()

NumPy, and a compiled extension where it was built (`IMPLEMENTATION` says); no I/O; `ffx` alone also loads the AES of
`cryptography`. The rules are T-1 to T-19 of docs/spec.md, with vectors in tests/vectors/transforms.json.
"""

from tessera.transforms.apply import Transform
from tessera.transforms.compiled import IMPLEMENTATION
from tessera.transforms.ff1 import FF1
from tessera.transforms.passes import Pass, block_positions
from tessera.transforms.perturbation import Perturbation
from tessera.transforms.schedule import mask, permutation, step_label
from tessera.transforms.spec import Kind, Step, TransformError, TransformSpec

__all__ = [
    "FF1",
    "IMPLEMENTATION",
    "Kind",
    "Pass",
    "Perturbation",
    "Step",
    "Transform",
    "TransformError",
    "TransformSpec",
    "block_positions",
    "mask",
    "permutation",
    "step_label",
]
