"""What the demo shows refused, each through the real server process and the real client.

Plain tensors sent in a valid session are in `test_keyed_model.py`, because they need a trained model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from support.appliance import KEYED, Site, make_site, sealed_bytes
from support.background import expected, file, images
from support.keys import BUYER, ISSUER, OTHER_BUYER, OTHER_INPUT_KEY
from support.process import ServerProcess
from tessera.client import (
    Client,
    LicenceExpired,
    LicenceRevoked,
    NotYourLicence,
    QuotaExhausted,
    WrongInputKey,
)
from tessera.keystore import revocation
from tessera.keystore.errors import Tampered
from tessera.keystore.licence import LicenceFile, Quota, parse_without_verification
from tessera.keystore.store import Store

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Street:
    """A site and the process that serves it."""

    site: Site
    server: ServerProcess

    def client(self, licence: LicenceFile, **settings: Any) -> Client:
        """Return a client that repeats nothing by itself."""
        given: dict[str, Any] = {"identity": BUYER, "root_certificates": self.site.root_certificates, "retries": 0}
        return Client(self.server.target, licence=licence, **(given | settings))

    def charged(self, licence: LicenceFile) -> int:
        """Return the samples in the ledger for a licence, read from the store's own file."""
        licence_id = parse_without_verification(licence.licence).licence_id
        with Store.open(self.site.directory) as store:
            return store.samples_used(licence_id, 0)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    """One server process for the whole module."""
    folder = tmp_path_factory.mktemp("street")
    site = make_site(folder, (KEYED,))
    with ServerProcess(site, folder / "server.log") as server:
        yield Street(site, server)


def test_a_licensed_buyer_is_served(street: Street) -> None:
    """The right licence, identity and key: the answers of the vendor's model, charged once."""
    licence, x = file(street.site, KEYED), images(6)
    with street.client(licence) as client:
        assert np.allclose(client.infer(KEYED.model, x), expected(x), atol=1e-5)
    assert street.charged(licence) == 6


def test_no_licence(street: Street) -> None:
    """Without a session nothing is answered, and the refusal says what is missing."""
    credentials = grpc.ssl_channel_credentials(street.site.root_certificates)
    with grpc.secure_channel(street.server.target, credentials) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(service_pb2.ModelInferRequest(model_name=KEYED.model), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "session-missing" in str(refused.value.details())


def test_somebody_elses_licence(street: Street) -> None:
    """A stolen licence file opens nothing without the identity key that it names."""
    licence = file(street.site, KEYED)
    with (
        street.client(licence, identity=OTHER_BUYER, input_key=OTHER_INPUT_KEY) as thief,
        pytest.raises(NotYourLicence) as refused,
    ):
        thief.infer(KEYED.model, images(1))
    assert refused.value.reason == "licence-not-yours"
    assert street.charged(licence) == 0


def test_wrong_input_key(street: Street) -> None:
    """A wrong key is refused before inference and costs nothing."""
    licence = file(street.site, KEYED)
    with (
        street.client(licence, input_key=OTHER_INPUT_KEY) as client,
        pytest.raises(WrongInputKey) as refused,
    ):
        client.infer(KEYED.model, images(1))
    assert refused.value.reason == "wrong-input-key"
    assert street.charged(licence) == 0


def test_expired_licence(street: Street) -> None:
    """A licence that has ended opens no session."""
    licence = file(street.site, KEYED, starts_in_s=-7200, ends_in_s=-3600)
    with street.client(licence) as client, pytest.raises(LicenceExpired) as refused:
        client.infer(KEYED.model, images(1))
    assert refused.value.reason == "licence-expired"


def test_exhausted_quota(street: Street) -> None:
    """The quota is spent to the last sample, the next one is refused and costs nothing."""
    licence = file(street.site, KEYED, quota=Quota(8, "total"))
    with street.client(licence) as client:
        client.infer(KEYED.model, images(5))
        with pytest.raises(QuotaExhausted) as refused:
            client.infer(KEYED.model, images(4))
        client.infer(KEYED.model, images(3))
        with pytest.raises(QuotaExhausted):
            client.infer(KEYED.model, images(1))
    assert refused.value.reason == "quota-exhausted"
    assert street.charged(licence) == 8


def call_until_refused(client: Client) -> None:
    """Call on: the server looks for revocations every few seconds, and each answer before is proper and charged."""
    for _ in range(200_000):
        client.infer(KEYED.model, images(1))


def test_revoked_licence(street: Street) -> None:
    """A revocation that another process puts into the store ends live sessions and opens no new one."""
    licence = file(street.site, KEYED)
    licence_id = parse_without_verification(licence.licence).licence_id
    now_s = int(street.site.clock.now_s())
    listed = revocation.issue(1, {licence_id: (now_s, "test")}, issuer=ISSUER, now_s=now_s)
    with street.client(licence) as client:
        client.infer(KEYED.model, images(1))
        with Store.open(street.site.directory) as store:
            store.apply_revocations(listed)
        with pytest.raises(LicenceRevoked) as refused:
            call_until_refused(client)
    assert refused.value.reason == "licence-revoked"


@pytest.mark.parametrize("place", [0.001, 0.3, 0.6, 0.999], ids=["header", "early", "middle", "end"])
def test_a_package_with_one_byte_changed(street: Street, tmp_path: Path, place: float) -> None:
    """Publishing refuses it, whichever byte it was, with one and the same reason."""
    raw = bytearray(sealed_bytes(KEYED)[0])
    raw[int(len(raw) * place)] ^= 1
    changed = tmp_path / "changed.tessera"
    changed.write_bytes(raw)
    with Store.open(street.site.directory) as store, pytest.raises(Tampered) as refused:
        store.publish(changed, now_s=street.site.clock.now_s())
    assert refused.value.reason == "package-tampered"
