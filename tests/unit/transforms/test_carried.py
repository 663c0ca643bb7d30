"""A spec with FFX goes through a package's manifest and a model's contract to the client, and keys its inputs there."""

import numpy as np
import pytest

from support.packages import a_draft
from tessera.client import ModelContract, TensorContract
from tessera.client._session import Keying
from tessera.keystore import canonical
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey
from tessera.transforms import Transform, TransformSpec

KEY = InputKey(bytes(range(32)))


@pytest.mark.parametrize("text", ["ffx:4", "shf:4,np:2,ffx:8:positions"])
def test_from_manifest_to_keyed_input(text: str) -> None:
    """The client applies what the manifest holds, table for table."""
    spec = TransformSpec.parse_text(text)
    steps = a_draft(transform=spec.to_json()).transform
    port = TensorContract(name="image", datatype="UINT8", shape=(-1, 1, 8, 8), layout="NCHW")
    contract = ModelContract(
        name="digits", version=1, package_id="0" * 32, tier=1, inputs=(port,), outputs=(), max_batch=8,
        transform=canonical.dumps(steps).decode(), input_key_id=input_key_id(KEY),
    )  # fmt: skip
    images = np.random.default_rng(3).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    sent = Keying(contract, KEY)({"image": images})["image"]
    assert (sent == Transform(spec, KEY, 1, 8, 8)(images)).all()
    assert (sent != images).any()
