"""The vendor's part: keys, a model trained on keyed inputs, a sealed package, licences."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.cli import console, issuing
from tessera.cli.package import secrets_beside
from tessera.cli.training import run_training
from tessera.keystore.grant import save_package_secrets
from tessera.keystore.identity import Identity, PublicIdentity
from tessera.keystore.keyfile import save_identity, save_input_key
from tessera.keystore.licence import Quota
from tessera.keystore.package import Manifest
from tessera.keystore.secrets import InputKey
from tessera.protect import Trained, recipe, seal
from tessera.transforms import TransformSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL = "digits"
TRANSFORM = "shf:4,np:4"
TERM_S = 30 * 86_400
"""How long the demo's licences last, in seconds."""


@dataclass(frozen=True)
class Vendor:
    """The vendor's folder and what lies in it; `trained` stays in memory, its weights never reach the disk in plain."""

    folder: Path
    issuer: Identity
    input_key: InputKey
    trained: Trained = field(repr=False)
    manifest: Manifest

    @property
    def package(self) -> Path:
        """The sealed package."""
        return self.folder / f"{MODEL}.tessera"

    def weights_sample(self) -> bytes:
        """Return 64 bytes of the plaintext weights, to look for where they must not be."""
        state = self.trained.model.state_dict()
        largest = max(state.values(), key=lambda tensor: tensor.numel())
        return bytes(largest.detach().numpy().tobytes()[:64])


def prepare(folder: Path, *, seed: int, now_s: int) -> Vendor:
    """Make keys, train the digits recipe under a fresh input key, seal the result from memory."""
    folder.mkdir()
    issuer = Identity.generate("issuer", "Acme Vision")
    save_identity(folder / "acme.key", issuer)
    input_key = InputKey.generate()
    save_input_key(folder / "digits.key", input_key)
    trained = run_training(recipe(MODEL), TransformSpec.parse_text(TRANSFORM), input_key, seed=seed)
    package = folder / f"{MODEL}.tessera"
    with console.progress("exporting and sealing") as advance:
        manifest, secrets = seal(
            trained, package, issuer=issuer, version=1, now_s=now_s, input_key=input_key, progress=advance
        )
    save_package_secrets(secrets_beside(package), secrets)
    return Vendor(folder, issuer, input_key, trained, manifest)


def license_to(
    vendor: Vendor, buyer: PublicIdentity, node: PublicIdentity, out: Path, *, quota: int | None, start_s: int
) -> None:
    """Issue a licence of `TERM_S` from `start_s` (Unix seconds), for `quota` samples in total, into the file `out`."""
    offer = issuing.Offer(
        package=vendor.package,
        secrets=secrets_beside(vendor.package),
        buyer=buyer,
        node=node,
        not_before_s=start_s,
        expires_at_s=start_s + TERM_S,
        quota=Quota(quota) if quota is not None else None,
    )
    issuing.cut(offer, out, issuer=vendor.issuer, now_s=start_s)


def test_set() -> "tuple[NDArray[np.uint8], NDArray[np.int64]]":
    """Return the test images of the recipe, uint8 (N, 1, 8, 8), and their labels."""
    test = recipe(MODEL).task().data.test
    return test.images.numpy(), test.labels.numpy()
