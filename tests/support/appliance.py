"""A real appliance in the test's process: real store, real TLS, real ports of the loopback, a small real model.

    async with running(tmp_path) as site:
        opened = await site.open()                      # session of `keys.BUYER`
        …site.channel(), site.admin(), site.appliance.metrics_port…

`make_site` alone prepares the directory, for tests that start the server as a process.
"""

import functools
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from support import keys, tiers
from support.clock import ShiftedClock
from support.models import seal
from tessera.keystore import grant as grants
from tessera.keystore import licence as licences
from tessera.keystore import proof as proofs
from tessera.keystore.copyright import CopyrightRecord, bound_key, buyer_input_key
from tessera.keystore.grant import Grant, PackageSecrets
from tessera.keystore.identity import Identity, PublicIdentity
from tessera.keystore.keyfile import KdfCost
from tessera.keystore.licence import Licence, Terms
from tessera.keystore.package import Manifest
from tessera.keystore.proof import Purpose
from tessera.keystore.secrets import InputKey, Passphrase
from tessera.keystore.store import Store
from tessera.server.app import Appliance
from tessera.server.config import Limits, Settings
from tessera.transforms import TransformSpec
from tessera.v1 import admin_pb2_grpc, licensing_pb2, licensing_pb2_grpc

PASSPHRASE = Passphrase(b"correct horse battery staple")
HOUR_S = 3600
DAY_S = 86_400


@dataclass(frozen=True)
class Kind:
    """One model to publish: plain inputs, or inputs under `keys.INPUT_KEY`; one tier, or the three of `tiers.TIERS`.

    With `records` the key is a master, and the model is for the buyers of `RECORDS`, under the transform isnn:4:12.
    """

    model: str = "digits"
    version: int = 1
    keyed: bool = False
    tiered: bool = False
    records: bool = False

    @property
    def input_key(self) -> InputKey | None:
        """The input key of the package."""
        return keys.INPUT_KEY if self.keyed or self.records else None


PLAIN = Kind()
KEYED = Kind(model="secret-digits", keyed=True)
TIERED = Kind(tiered=True)
RECORDED = Kind(model="named-digits", records=True)

RECORDS = (CopyrightRecord("Acme", "Globex", "L-17"), CopyrightRecord("Acme", "Initech", "L-18"))
"""Of the buyers that `RECORDED` is for."""
FAINT = TransformSpec.parse_text("isnn:4:12")


def bound_to(record: CopyrightRecord) -> InputKey:
    """Return the bound key of a record under the master `keys.INPUT_KEY`."""
    return bound_key(buyer_input_key(keys.INPUT_KEY, record), record)


def terms_of(record: CopyrightRecord) -> Terms:
    """Return terms of `RECORDED` for the buyer of a record."""
    return Terms(RECORDED.model, input_key_id=proofs.input_key_id(bound_to(record)), copyright=record)


@functools.cache
def sealed_bytes(kind: Kind) -> tuple[bytes, Manifest]:
    """Return a package file and its manifest; exported once a process, because torch takes its time."""
    key_id = None if kind.input_key is None else proofs.input_key_id(kind.input_key)
    with tempfile.TemporaryDirectory() as folder:
        if kind.tiered:
            tiered = tiers.seal_tiered(Path(folder), model=kind.model, version=kind.version)
            return tiered.sealed.path.read_bytes(), tiered.sealed.manifest
        if kind.records:
            ids = tuple(sorted(proofs.input_key_id(bound_to(record)) for record in RECORDS))
            sealed = seal(
                Path(folder), model=kind.model, version=kind.version, input_key_ids=ids, transform=FAINT.to_json()
            )
        else:
            sealed = seal(Path(folder), model=kind.model, version=kind.version, input_key_id=key_id)
        return sealed.path.read_bytes(), sealed.manifest


@dataclass
class Site:
    """A store with published models, the licences for it, and the appliance once it runs."""

    directory: Path
    node: PublicIdentity
    kinds: tuple[Kind, ...]
    clock: ShiftedClock = field(default_factory=ShiftedClock)
    running: Appliance | None = None
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def appliance(self) -> Appliance:
        """The appliance, which has been started."""
        assert self.running is not None
        return self.running

    @property
    def target(self) -> str:
        """Where buyers connect."""
        return f"localhost:{self.appliance.port}"

    @property
    def root_certificates(self) -> bytes:
        """What buyers trust."""
        return (self.directory / "ca.pem").read_bytes()

    def settings(self, **changes: Any) -> Settings:
        """Return settings with free ports and the CPU, for this store."""
        given: dict[str, Any] = {
            "directory": self.directory,
            "port": 0,
            "metrics_port": 0,
            "device": "cpu",
            "threads": 1,
        }
        return Settings(**(given | changes))

    def channel(self) -> grpc.aio.Channel:
        """Return a TLS channel to the public port; the site closes it."""
        channel = grpc.aio.secure_channel(self.target, grpc.ssl_channel_credentials(self.root_certificates))
        self.channels.append(channel)
        return channel

    def licensing(self) -> licensing_pb2_grpc.LicensingServiceStub:
        """Return a stub of the buyer's door."""
        return licensing_pb2_grpc.LicensingServiceStub(self.channel())

    def admin(self) -> admin_pb2_grpc.AdminServiceStub:
        """Return a stub of the operator's door."""
        channel = grpc.aio.insecure_channel(f"unix:{self.appliance.admin_socket}")
        self.channels.append(channel)
        return admin_pb2_grpc.AdminServiceStub(channel)

    def licence(
        self,
        terms: Terms | None = None,
        *,
        kind: Kind = PLAIN,
        buyer: Identity = keys.BUYER,
        issuer: Identity = keys.ISSUER,
        starts_in_s: int = -HOUR_S,
        ends_in_s: int = DAY_S,
        **overrides: Any,
    ) -> Licence:
        """Return a fresh licence for `kind`, by the site's clock; `overrides` are terms."""
        key_id = None if kind.input_key is None else proofs.input_key_id(kind.input_key)
        now_s = int(self.clock.now_s())
        return licences.issue(
            terms or Terms(kind.model, input_key_id=key_id, **overrides),
            issuer=issuer,
            buyer=buyer.public,
            node=self.node,
            not_before_s=now_s + starts_in_s,
            expires_at_s=now_s + ends_in_s,
            now_s=now_s,
        )

    def grant(self, licence: Licence, *, kind: Kind = PLAIN, buyer: Identity = keys.BUYER) -> Grant:
        """Return the grant of a licence for the published package of `kind`."""
        package_id = sealed_bytes(kind)[1].package_id
        tier_key = tiers.tier_key(package_id=package_id) if kind.tiered else None
        secrets = PackageSecrets(package_id, keys.CONTENT_KEY, kind.input_key, tier_key, by_record=kind.records)
        now_s = self.clock.now_s()
        return grants.issue(
            licence, issuer=keys.ISSUER, secrets=secrets, buyer=buyer.public, node=self.node, now_s=now_s
        )

    async def proof(
        self, licence: Licence, purpose: Purpose = "open-session", *, buyer: Identity = keys.BUYER
    ) -> licensing_pb2.PossessionProof:
        """Fetch a challenge and answer it."""
        challenge = await self.licensing().CreateChallenge(licensing_pb2.CreateChallengeRequest())
        signature = proofs.sign_proof(buyer, purpose, challenge.nonce, challenge.node.node_id, licence.digest)
        return licensing_pb2.PossessionProof(
            nonce=challenge.nonce, buyer_public_key=buyer.public.verify_key, signature=signature
        )

    async def request(
        self,
        licence: Licence,
        *,
        kind: Kind = PLAIN,
        buyer: Identity = keys.BUYER,
        input_key: InputKey | None = None,
        with_grant: bool = True,
    ) -> licensing_pb2.OpenSessionRequest:
        """Return a whole request to open a session; `input_key` is the kind's own unless given."""
        proof = await self.proof(licence, buyer=buyer)
        key = input_key or kind.input_key
        confirmation = b""
        if key is not None:
            confirmation = proofs.confirm(proofs.confirmation_key(key), proof.nonce, self.node.key_id, licence.digest)
        return licensing_pb2.OpenSessionRequest(
            licence=licence.token,
            grant=self.grant(licence, kind=kind).token if with_grant else "",
            proof=proof,
            key_confirmation=confirmation,
        )

    async def open(
        self, licence: Licence | None = None, *, kind: Kind = PLAIN, **overrides: Any
    ) -> licensing_pb2.OpenSessionResponse:
        """Open a session of `keys.BUYER`, under a fresh licence unless one is given."""
        licence = licence or self.licence(kind=kind, **overrides)
        return await self.licensing().OpenSession(await self.request(licence, kind=kind))

    async def close(self) -> None:
        """Close the channels that were handed out."""
        for channel in self.channels:
            await channel.close()


def make_site(folder: Path, kinds: Iterable[Kind] = (PLAIN,)) -> Site:
    """Make a store under `folder` that trusts `keys.ISSUER` and has the models published; its passphrase is
    `PASSPHRASE`."""
    clock = ShiftedClock()
    folder.mkdir(parents=True, exist_ok=True)
    directory = folder / "store"
    kinds = tuple(kinds)
    with Store.create(
        directory, master=PASSPHRASE, node_name="test-node", now_s=clock.now_s(), cost=KdfCost.danger_for_tests
    ) as store:
        store.trust_issuer(keys.ISSUER.public)
        for kind in kinds:
            file = folder / f"{kind.model}-{kind.version}.tessera"
            file.write_bytes(sealed_bytes(kind)[0])
            store.publish(file, now_s=clock.now_s())
        node = store.node
    return Site(directory, node, kinds, clock)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata that carries a session token."""
    return (("authorization", f"Bearer {token}"),)


def header(error: grpc.aio.AioRpcError, name: str) -> str:
    """Return one trailing metadata value of a refused call; empty when it is missing."""
    for key, value in error.trailing_metadata() or ():
        if key == name:
            return value if isinstance(value, str) else value.decode("ascii")
    return ""


@asynccontextmanager
async def running(
    folder: Path,
    kinds: Iterable[Kind] = (PLAIN,),
    *,
    sealed: bool = False,
    limits: Limits | None = None,
    **changes: Any,
) -> AsyncIterator[Site]:
    """Make a site and run its appliance in this process, unsealed unless `sealed`; `changes` are settings."""
    site = make_site(folder, kinds)
    settings = site.settings(**({"limits": limits} if limits else {}), **changes)
    async with Appliance(settings, passphrase=None if sealed else PASSPHRASE, clock=site.clock) as appliance:
        site.running = appliance
        try:
            yield site
        finally:
            await site.close()
