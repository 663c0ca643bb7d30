"""The main job: a model trained on keyed inputs, sealed, served; right for the key's holder and useless for others."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tritonclient import grpc as triton

from support.appliance import Site, make_site
from support.keys import BUYER, INPUT_KEY, ISSUER, OTHER_INPUT_KEY
from support.process import ServerProcess
from tessera.client import Client
from tessera.keystore import grant as grants
from tessera.keystore.licence import LicenceFile, Quota, Terms
from tessera.keystore.package import Manifest
from tessera.keystore.proof import input_key_id
from tessera.keystore.store import Store
from tessera.protect import Trained, recipe, seal, train
from tessera.transforms import Transform, TransformSpec

pytestmark = pytest.mark.slow

SPEC = TransformSpec.parse_text("shf:4,np:4")
QUOTA = 10_000


@dataclass(frozen=True)
class Shop:
    """A trained model behind a running server, and one licence for it."""

    site: Site
    server: ServerProcess
    trained: Trained
    manifest: Manifest
    licence: LicenceFile
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def client(self) -> Client:
        """Return the buyer's client."""
        return Client(
            self.server.target,
            identity=BUYER,
            licence=self.licence,
            root_certificates=self.site.root_certificates,
            retries=0,
        )

    def accuracy(self, logits: NDArray[Any]) -> float:
        """Return the share of right answers over the images from the first on."""
        return float((logits.argmax(1) == self.labels[: len(logits)]).mean())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Train on real scans, seal from memory, publish, license, serve."""
    folder = tmp_path_factory.mktemp("shop")
    trained = train(recipe("digits"), transform=SPEC, key=INPUT_KEY, seed=3, wrong_keys=2)
    site = make_site(folder, ())
    now_s = site.clock.now_s()
    manifest, secrets = seal(
        trained, folder / "digits.tessera", issuer=ISSUER, version=1, now_s=now_s, input_key=INPUT_KEY
    )
    with Store.open(site.directory) as store:
        store.publish(folder / "digits.tessera", now_s=now_s)
    terms = Terms("digits", input_key_id=input_key_id(INPUT_KEY), quota=Quota(QUOTA))
    licence = site.licence(terms)
    grant = grants.issue(licence, issuer=ISSUER, secrets=secrets, buyer=BUYER.public, node=site.node, now_s=now_s)
    test = recipe("digits").task().data.test
    with ServerProcess(site, folder / "server.log") as server:
        yield Shop(
            site, server, trained, manifest, LicenceFile(licence.token, grant.token),
            test.images.numpy(), test.labels.numpy(),
        )  # fmt: skip


def over_the_wire(shop: Shop, client: Client, tensor: NDArray[np.uint8]) -> NDArray[Any]:
    """Send a tensor as it is, with an unmodified tritonclient in the buyer's session."""
    site_ca = shop.site.directory / "ca.pem"
    headers = dict(client.session_metadata("digits"))
    wire = triton.InferenceServerClient(shop.server.target, ssl=True, root_certificates=str(site_ca))
    try:
        image = triton.InferInput("image", list(tensor.shape), "UINT8")
        image.set_data_from_numpy(tensor)
        found: NDArray[Any] = wire.infer("digits", [image], headers=headers).as_numpy("logits")
        return found
    finally:
        wire.close()


def test_the_right_key_gives_the_vendors_answers(shop: Shop) -> None:
    """Through transform, wire, batcher and program the answers are bit for bit those of the network in this process."""
    with shop.client() as client:
        served = np.stack(list(client.stream("digits", shop.images)))
    transform = Transform(SPEC, INPUT_KEY, *shop.images.shape[1:])
    with torch.inference_mode():
        vendor = shop.trained.model.eval()(torch.from_numpy(transform(shop.images))).numpy()
    assert shop.accuracy(served) >= 0.95
    assert np.allclose(served, vendor, atol=1e-4)
    assert (served.argmax(1) == vendor.argmax(1)).all()


def test_plain_tensors_are_answered_charged_and_useless(shop: Shop) -> None:
    """In a valid session the server cannot tell plain tensors from keyed ones; they cost, and are worth nothing."""
    with shop.client() as client:
        before = client.usage("digits").samples
        logits = over_the_wire(shop, client, shop.images[:256])
        assert client.usage("digits").samples == before + 256
    assert shop.accuracy(logits) < 0.35


def test_tensors_under_a_wrong_key_are_useless(shop: Shop) -> None:
    """So are tensors transformed with another key by a client that confirmed with the right one."""
    wrong = Transform(SPEC, OTHER_INPUT_KEY, *shop.images.shape[1:])
    with shop.client() as client:
        logits = over_the_wire(shop, client, wrong(shop.images[:256]))
    assert shop.accuracy(logits) < 0.35


def test_the_client_sends_what_the_transform_makes(shop: Shop) -> None:
    """What leaves the client is the keyed tensor, which undoes to the picture with the key and only with it."""
    transform = Transform(SPEC, INPUT_KEY, *shop.images.shape[1:])
    with shop.client() as client:
        sent = client.transformed("digits", shop.images)["image"]
    assert (sent == transform(shop.images)).all()
    assert (transform.inverse(sent) == shop.images).all()
    assert (sent != shop.images).mean() > 0.5


def test_no_plaintext_weight_is_in_any_file(shop: Shop) -> None:
    """Sealed from memory, opened into memory: no file of vendor or node holds a run of the weights."""
    weights = max(shop.trained.model.state_dict().values(), key=lambda tensor: tensor.numel())
    raw = weights.detach().numpy().tobytes()
    folder = Path(shop.site.directory).parent
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert not any(raw[start : start + 64] in file for start in range(0, 4096, 64) for file in files)
