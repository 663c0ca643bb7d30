"""What the appliance benchmark sells: a ResNet-18 with random weights, a node, a buyer, all in one folder."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.identity import Identity
from tessera.keystore.keyfile import save_identity
from tessera.keystore.licence import LicenceFile, Quota, Terms
from tessera.keystore.package import Manifest
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey, Passphrase
from tessera.keystore.store import Store
from tessera.protect import CifarResNet18, PixelModel, bundle_of_module, seal_bundle
from tessera.transforms import TransformSpec

MODEL = "resnet18"
SHAPE = (3, 32, 32)
MAX_BATCH = 64
TRANSFORM = "shf:4,np:4"
PASSPHRASE = Passphrase(b"benchmark")
DAY_S = 86_400


@dataclass(frozen=True)
class Market:
    """Paths and secrets of one benchmark run; nothing here protects anything."""

    folder: Path
    package: Path
    secrets: PackageSecrets
    manifest: Manifest
    issuer: Identity
    buyer: Identity

    @property
    def keystore(self) -> Path:
        """The node's key store."""
        return self.folder / "node"

    @property
    def licence(self) -> Path:
        """The buyer's licence file."""
        return self.folder / "buyer.licence"


def open_market(folder: Path, *, seed: int) -> Market:
    """Seal the model, make the node, publish, issue and install one licence with a quota that is never reached."""
    torch.manual_seed(seed)
    issuer, buyer = Identity.generate("issuer", "bench"), Identity.generate("buyer", "bench")
    input_key = InputKey.generate()
    model = PixelModel(CifarResNet18(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).eval()
    bundle = bundle_of_module(
        model,
        SHAPE,
        transform=TransformSpec.parse_text(TRANSFORM),
        input_key_id=input_key_id(input_key),
        max_batch=MAX_BATCH,
    )
    now_s = int(time.time())
    package = folder / "resnet18.tessera"
    manifest, secrets = seal_bundle(
        bundle, package, issuer=issuer, model=MODEL, version=1, now_s=now_s, input_key=input_key
    )
    market = Market(folder, package, secrets, manifest, issuer, buyer)
    save_identity(folder / "buyer.key", buyer)
    with Store.create(market.keystore, master=PASSPHRASE, node_name="bench", now_s=now_s) as store:
        store.trust_issuer(issuer.public)
        store.publish(package, now_s=now_s)
        terms = Terms(MODEL, input_key_id=input_key_id(input_key), quota=Quota(10**12, "total"), sessions=256)
        licence = licences.issue(
            terms, issuer=issuer, buyer=buyer.public, node=store.node,
            not_before_s=now_s - 1, expires_at_s=now_s + DAY_S, now_s=now_s,
        )  # fmt: skip
        grant = grants.issue(licence, issuer=issuer, secrets=secrets, buyer=buyer.public, node=store.node, now_s=now_s)
        store.install_licence(licence, grant, now_s=now_s)
        licences.write_licence_file(market.licence, LicenceFile(licence.token, grant.token))
    return market
