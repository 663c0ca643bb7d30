"""A vendor's folder for tests of the commands: keys, one small sealed package, a store. Quick: nothing is trained."""

from dataclasses import dataclass
from pathlib import Path

from support import keys
from tessera.keystore.grant import save_package_secrets
from tessera.keystore.keyfile import KdfCost, save_identity
from tessera.keystore.package import Draft, Manifest, TensorSpec, write_package
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import Passphrase
from tessera.keystore.store import Store

PASSPHRASE = b"correct horse battery staple"


@dataclass(frozen=True)
class Bench:
    """What lies in the folder."""

    folder: Path
    manifest: Manifest

    @property
    def issuer(self) -> Path:
        """The issuer's key file."""
        return self.folder / "acme.key"

    @property
    def buyer(self) -> Path:
        """The buyer's key file."""
        return self.folder / "ada.key"

    @property
    def package(self) -> Path:
        """The sealed package; its keys are beside it."""
        return self.folder / "digits.tessera"

    @property
    def node(self) -> Path:
        """The node's key store, with the issuer trusted."""
        return self.folder / "node"

    @property
    def licence(self) -> Path:
        """Where tests let licences be written."""
        return self.folder / "ada.licence"


def make_bench(folder: Path) -> Bench:
    """Fill `folder`. The package is real in form; its program is not one that torch could run."""
    bench = Bench(folder, _seal(folder / "digits.tessera"))
    save_identity(bench.issuer, keys.ISSUER)
    save_identity(bench.buyer, keys.BUYER)
    with Store.create(
        bench.node,
        master=Passphrase(PASSPHRASE),
        node_name="test-node",
        now_s=keys.NOW_S,
        cost=KdfCost.danger_for_tests,
    ) as store:
        store.trust_issuer(keys.ISSUER.public)
    return bench


def _seal(path: Path) -> Manifest:
    draft = Draft(
        model="digits",
        version=1,
        inputs=(TensorSpec("image", "UINT8", (-1, 1, 8, 8), "NCHW"),),
        outputs=(TensorSpec("logits", "FP32", (-1, 10)),),
        transform=[{"kind": "shf", "block": 4}],
        input_key_id=input_key_id(keys.INPUT_KEY),
        torch_version="2.13.0",
    )
    manifest = write_package(
        path,
        draft,
        tensors=[("weight", "F32", (4, 4), bytes(64)), ("bias", "F32", (4,), bytes(16))],
        program=b"program",
        issuer=keys.ISSUER,
        content_key=keys.CONTENT_KEY,
        created_at_s=keys.NOW_S,
        package_id=keys.PACKAGE_ID,
    )
    save_package_secrets(path.with_name(path.name + ".secrets"), keys.SECRETS)
    return manifest
