"""The operator's door on a real appliance: every RPC."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from support import keys
from support.appliance import (
    DAY_S,
    KEYED,
    PASSPHRASE,
    PLAIN,
    RECORDED,
    RECORDS,
    Kind,
    Site,
    header,
    make_site,
    running,
    sealed_bytes,
    terms_of,
)
from tessera.keystore import canonical
from tessera.keystore import licence as licences
from tessera.keystore.copyright import CopyrightRecord
from tessera.keystore.grant import PackageSecrets, save_package_secrets
from tessera.keystore.licence import Terms
from tessera.keystore.package import UnlockedPackage
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import ContentKey
from tessera.keystore.store import Store
from tessera.keystore.usage import UsageDraft, UsageRecord, verify_chain, verify_checkpoint
from tessera.server.app import Appliance
from tessera.server.config import Limits
from tessera.server.engine import LoadedProgram, load_variant
from tessera.v1 import admin_pb2 as pb
from tessera.v1 import admin_pb2_grpc

pytestmark = pytest.mark.slow

OTHER = Kind(model="other")


async def refusal(call: object) -> grpc.aio.AioRpcError:
    """Return the error of a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value


def secrets_file(folder: Path, kind: Kind) -> bytes:
    """The bytes of the kind's package-secrets file."""
    path = folder / f"{kind.model}.secrets"
    package_id = sealed_bytes(kind)[1].package_id
    secrets = PackageSecrets(package_id, keys.CONTENT_KEY, kind.input_key, by_record=kind.records)
    save_package_secrets(path, secrets, None)
    return path.read_bytes()


def record(site: Site, count: int) -> list[UsageRecord]:
    """Append usage under one licence, as metering would."""
    drafts = [
        UsageDraft(
            time_us=int(site.clock.now_s() * 1e6),
            licence_id="lic-1",
            buyer_id=keys.BUYER.key_id,
            package_id=keys.PACKAGE_ID,
            model="digits",
            version=1,
            tier=1,
            samples=2,
            bytes_in=128,
            compute_us=500_000,
            request_id=f"r-{number}",
            payload_digest="0" * 64,
            session_id="s-1",
        )
        for number in range(count)
    ]
    return [appended.record for appended in site.appliance.node.store.append_usage(drafts)]


async def test_status_sealed_and_unsealed(tmp_path: Path) -> None:
    """Status answers while sealed; a wrong passphrase is FAILED_PRECONDITION; sealing closes sessions and unloads."""
    async with running(tmp_path, sealed=True) as site:
        admin = site.admin()
        status = await admin.GetStatus(pb.GetStatusRequest())
        assert (status.sealed, status.draining, status.sessions) == (True, False, 0)
        assert (status.node.node_id, status.node.verify_key) == (site.node.key_id, site.node.verify_key)
        error = await refusal(admin.Unseal(pb.UnsealRequest(passphrase=b"wrong")))
        assert (error.code(), header(error, "tessera-reason")) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "wrong-passphrase",
        )
        error = await refusal(admin.Unseal(pb.UnsealRequest()))
        assert header(error, "tessera-reason") == "wrong-passphrase"
        await admin.Unseal(pb.UnsealRequest(passphrase=PASSPHRASE.reveal()))
        await site.open()
        status = await admin.GetStatus(pb.GetStatusRequest())
        assert (status.sealed, status.sessions, status.models[0].state) == (False, 1, "ready")
        await admin.Seal(pb.SealRequest())
        status = await admin.GetStatus(pb.GetStatusRequest())
        assert (status.sealed, status.sessions, status.models[0].state) == (True, 0, "published")


async def test_unsealing_loads_what_has_a_key(tmp_path: Path) -> None:
    """After sealing and unsealing, a model with an installed grant is ready and the other one waits for its key."""
    async with running(tmp_path, (PLAIN, KEYED)) as site:
        await site.open()
        admin = site.admin()
        await admin.Seal(pb.SealRequest())
        await admin.Unseal(pb.UnsealRequest(passphrase=PASSPHRASE.reveal()))
        listed = await admin.ListModels(pb.ListModelsRequest())
        assert {model.name: model.state for model in listed.models} == {"digits": "ready", "secret-digits": "published"}


async def test_publish_load_unload(tmp_path: Path) -> None:
    """A package with its secrets is published and loaded; unloading stops sessions, loading brings them back."""
    async with running(tmp_path, ()) as site:
        admin, file = site.admin(), tmp_path / "digits.tessera"
        file.write_bytes(sealed_bytes(PLAIN)[0])
        request = pb.PublishModelRequest(path=str(file), secrets=secrets_file(tmp_path, PLAIN))
        model = (await admin.PublishModel(request)).model
        assert (model.name, model.version, model.state) == ("digits", 1, "ready")
        assert model.size_bytes == file.stat().st_size
        assert json.loads(model.tiers)[0]["tier"] == 1
        assert (await admin.PublishModel(request)).model == model
        unloaded = (await admin.UnloadModel(pb.UnloadModelRequest(name="digits"))).model
        assert unloaded.state == "unloaded"
        error = await refusal(site.open())
        assert (error.code(), header(error, "tessera-reason")) == (grpc.StatusCode.UNAVAILABLE, "model-not-ready")
        loaded = (await admin.LoadModel(pb.LoadModelRequest(name="digits", version=1))).model
        assert loaded.state == "ready"
        await site.open()


async def test_publishing_refuses_what_is_not_whole(tmp_path: Path) -> None:
    """A relative path, no file, one flipped byte, another package of the same name, secrets that are none."""
    async with running(tmp_path) as site:
        admin = site.admin()
        error = await refusal(admin.PublishModel(pb.PublishModelRequest(path="digits.tessera")))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        error = await refusal(admin.PublishModel(pb.PublishModelRequest(path=str(tmp_path / "none"))))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        raw = bytearray(sealed_bytes(KEYED)[0])
        raw[-1] ^= 1
        damaged = tmp_path / "damaged.tessera"
        damaged.write_bytes(bytes(raw))
        error = await refusal(admin.PublishModel(pb.PublishModelRequest(path=str(damaged))))
        assert (error.code(), header(error, "tessera-reason")) == (grpc.StatusCode.DATA_LOSS, "package-tampered")
        whole = tmp_path / "whole.tessera"
        whole.write_bytes(sealed_bytes(KEYED)[0])
        error = await refusal(admin.PublishModel(pb.PublishModelRequest(path=str(whole), secrets=b"{}")))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        listed = await admin.ListModels(pb.ListModelsRequest())
        assert [model.name for model in listed.models] == ["digits"]


async def test_publishing_refuses_the_secrets_of_another_package(tmp_path: Path) -> None:
    """Another package's file, and a content key that is not the package's: neither is kept, nothing is published."""
    async with running(tmp_path, ()) as site:
        admin, file = site.admin(), tmp_path / "digits.tessera"
        file.write_bytes(sealed_bytes(PLAIN)[0])
        request = pb.PublishModelRequest(path=str(file), secrets=secrets_file(tmp_path, KEYED))
        error = await refusal(admin.PublishModel(request))
        assert (error.code(), header(error, "tessera-reason")) == (grpc.StatusCode.PERMISSION_DENIED, "grant-mismatch")
        forged = PackageSecrets(sealed_bytes(PLAIN)[1].package_id, ContentKey(bytes(32)), None)
        save_package_secrets(tmp_path / "forged", forged, None)
        request = pb.PublishModelRequest(path=str(file), secrets=(tmp_path / "forged").read_bytes())
        error = await refusal(admin.PublishModel(request))
        assert (error.code(), header(error, "tessera-reason")) == (grpc.StatusCode.FAILED_PRECONDITION, "wrong-key")
        assert not (await admin.ListModels(pb.ListModelsRequest())).models
        assert site.appliance.node.store.secret_names("package-secrets") == []


async def test_models_that_cannot_be_loaded(tmp_path: Path) -> None:
    """No such model, no key for it, a sealed store: three reasons."""
    async with running(tmp_path) as site:
        admin = site.admin()
        error = await refusal(admin.LoadModel(pb.LoadModelRequest(name="none")))
        assert (error.code(), header(error, "tessera-reason")) == (grpc.StatusCode.NOT_FOUND, "model-unknown")
        error = await refusal(admin.LoadModel(pb.LoadModelRequest(name="digits")))
        assert header(error, "tessera-reason") == "grant-missing"
        error = await refusal(admin.LoadModel(pb.LoadModelRequest(name="digits", version=-1)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        await admin.Seal(pb.SealRequest())
        error = await refusal(admin.LoadModel(pb.LoadModelRequest(name="digits")))
        assert header(error, "tessera-reason") == "store-sealed"


async def test_one_model_that_will_not_load_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong, no memory for it for one: it is listed as failed, the node starts and serves the rest."""

    def greedy(package: UnlockedPackage, device: Any, **how: Any) -> LoadedProgram:
        if package.manifest.model == OTHER.model:
            raise MemoryError("CANARY")
        return load_variant(package, device, **how)

    monkeypatch.setattr("tessera.server.node.load_variant", greedy)
    site = make_site(tmp_path, (OTHER, PLAIN))
    with Store.open(site.directory) as store:
        store.unseal(PASSPHRASE)
        for kind in site.kinds:
            store.put_package_secrets(PackageSecrets(sealed_bytes(kind)[1].package_id, keys.CONTENT_KEY, None))
    with capture_logs() as logs:
        async with Appliance(site.settings(), passphrase=PASSPHRASE, clock=site.clock) as site.running:
            listed = (await site.admin().ListModels(pb.ListModelsRequest())).models
            error = await refusal(site.admin().LoadModel(pb.LoadModelRequest(name=OTHER.model)))
            await site.open()
            await site.close()
    assert {m.name: (m.state, m.reason) for m in listed} == {
        OTHER.model: ("failed", "internal"),
        PLAIN.model: ("ready", ""),
    }
    assert error.code() is grpc.StatusCode.INTERNAL
    (told,) = [line for line in logs if line["event"] == "model not loaded"]
    assert (told["model"], told["error"], told["where"][-1].split()[-1]) == (OTHER.model, "MemoryError", "greedy")
    assert "CANARY" not in str(logs)


async def test_an_installed_licence_needs_no_grant_from_its_buyer(tmp_path: Path) -> None:
    """The operator installs licence and grant; the buyer then opens a session with the licence alone."""
    async with running(tmp_path) as site:
        licence = site.licence()
        request = pb.InstallLicenceRequest(licence=licence.token, grant=site.grant(licence).token)
        assert (await site.admin().InstallLicence(request)).licence_id == licence.licence_id
        await site.licensing().OpenSession(await site.request(licence, with_grant=False))
        error = await refusal(site.admin().InstallLicence(pb.InstallLicenceRequest(licence="x", grant="y")))
        assert (error.code(), header(error, "tessera-reason")) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "licence-malformed",
        )
        foreign = site.licence(issuer=keys.OTHER_ISSUER)
        error = await refusal(site.admin().InstallLicence(pb.InstallLicenceRequest(licence=foreign.token)))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_this_node_issues_when_it_holds_the_keys(tmp_path: Path) -> None:
    """Without the issuer's key issuing is refused; with it and the package's secrets the licence works at once."""
    async with running(tmp_path, (KEYED,)) as site:
        admin, store = site.admin(), site.appliance.node.store
        file = tmp_path / "again.tessera"
        file.write_bytes(sealed_bytes(KEYED)[0])
        terms = {
            "exp": int(site.clock.now_s()) + DAY_S,
            "input_key_id": sealed_bytes(KEYED)[1].input_key_id,
            "quota": {"samples": 7, "period": "day"},
        }
        request = pb.IssueLicenceRequest(
            model=KEYED.model,
            buyer_identity=keys.BUYER.public.to_json(),
            terms=canonical.dumps(terms).decode(),
        )
        error = await refusal(admin.IssueLicence(request))
        assert (error.code(), header(error, "tessera-reason")) == (grpc.StatusCode.NOT_FOUND, "issuer-absent")
        store.set_issuer_identity(keys.ISSUER)
        assert header(await refusal(admin.IssueLicence(request)), "tessera-reason") == "issuer-absent"
        await admin.PublishModel(pb.PublishModelRequest(path=str(file), secrets=secrets_file(tmp_path, KEYED)))
        issued = await admin.IssueLicence(request)
        licence = licences.verify(issued.licence, keys.ISSUERS)
        assert (licence.licence_id, licence.node_id) == (issued.licence_id, site.node.key_id)
        session = await site.licensing().OpenSession(await site.request(licence, kind=KEYED, with_grant=False))
        assert session.samples_left == 7
        report = await admin.GetUsageReport(pb.GetUsageReportRequest())
        assert list(report.usages) == []


async def test_this_node_issues_to_the_buyers_of_a_model_by_record(tmp_path: Path) -> None:
    """A legal record gets a licence; a stranger's, and the master's id without a record, get none (rules C-5, G-3)."""
    async with running(tmp_path, (RECORDED,)) as site:
        admin = site.admin()
        site.appliance.node.store.set_issuer_identity(keys.ISSUER)
        file = tmp_path / "again.tessera"
        file.write_bytes(sealed_bytes(RECORDED)[0])
        await admin.PublishModel(pb.PublishModelRequest(path=str(file), secrets=secrets_file(tmp_path, RECORDED)))

        def request(terms: Terms) -> pb.IssueLicenceRequest:
            wanted = terms.to_claims() | {"exp": int(site.clock.now_s()) + DAY_S}
            buyer = keys.BUYER.public.to_json()
            return pb.IssueLicenceRequest(
                model=RECORDED.model, buyer_identity=buyer, terms=canonical.dumps(wanted).decode()
            )

        issued = await admin.IssueLicence(request(terms_of(RECORDS[0])))
        licence = licences.verify(issued.licence, keys.ISSUERS)
        assert licence.terms.copyright == RECORDS[0]
        installed = len(site.appliance.node.store.licences())
        legal = terms_of(RECORDS[0]).input_key_id
        wrong = [
            terms_of(CopyrightRecord("Acme", "Umbrella", "L-19")),
            Terms(RECORDED.model, input_key_id=input_key_id(keys.INPUT_KEY)),
            Terms(RECORDED.model, input_key_id=legal, copyright=RECORDS[1]),
            Terms(RECORDED.model, input_key_id=legal),
            Terms(RECORDED.model),
        ]
        for terms in wrong:
            error = await refusal(admin.IssueLicence(request(terms)))
            assert header(error, "tessera-reason") == "grant-mismatch"
            assert "record" in header(error, "tessera-remedy")
        assert len(site.appliance.node.store.licences()) == installed


@pytest.mark.parametrize(
    "terms",
    [
        "",
        "[]",
        "{}",
        '{"exp":"soon"}',
        '{"exp":true}',
        '{"exp":1}',
        '{"exp":9999999999,"tear":1}',
        '{"exp":9,"model":"x"}',
    ],
)
async def test_terms_that_are_none_are_malformed(tmp_path: Path, terms: str) -> None:
    """Terms without an end, with an unknown field, for another model, or that are no object are refused."""
    async with running(tmp_path) as site:
        site.appliance.node.store.set_issuer_identity(keys.ISSUER)
        site.appliance.node.store.put_package_secrets(
            PackageSecrets(sealed_bytes(PLAIN)[1].package_id, keys.CONTENT_KEY, None)
        )
        request = pb.IssueLicenceRequest(model="digits", buyer_identity=keys.BUYER.public.to_json(), terms=terms)
        assert (await refusal(site.admin().IssueLicence(request))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_usage_is_reported_by_licence(tmp_path: Path) -> None:
    """The report sums requests, samples, bytes and seconds."""
    async with running(tmp_path) as site:
        record(site, 3)
        (usage,) = (await site.admin().GetUsageReport(pb.GetUsageReportRequest())).usages
    assert (usage.licence_id, usage.model, usage.requests, usage.samples) == ("lic-1", "digits", 3, 6)
    assert (usage.bytes_in, usage.compute_seconds) == (384, 1.5)
    assert not usage.HasField("quota_samples")


@pytest.mark.parametrize("start", [0, 1, 6])
async def test_usage_is_exported_in_pages_and_verifies(tmp_path: Path, start: int) -> None:
    """The export comes in pages, is canonical, and the chain with its checkpoint verifies offline."""
    async with running(tmp_path, limits=Limits(usage_page_records=4)) as site:
        appended = record(site, 10)
        stream = site.admin().ExportUsage(pb.ExportUsageRequest(from_sequence=start))
        messages = [message async for message in stream]
    assert max(len(message.records) for message in messages) == 4
    raw = [line for message in messages for line in message.records]
    records = [UsageRecord.from_claims(canonical.loads(line.encode(), max_bytes=4096)) for line in raw]
    assert records == appended[max(start, 1) - 1 :]
    assert [bool(message.checkpoint) for message in messages][-1:] == [True]
    assert not any(message.checkpoint for message in messages[:-1])
    checkpoint = verify_checkpoint(messages[-1].checkpoint, {site.node.key_id: site.node.verify_key})
    assert checkpoint.sequence == 10
    if start <= 1:
        assert verify_chain(records, node_id=site.node.key_id, checkpoint=checkpoint).samples == 20


async def test_an_empty_ledger_exports_a_checkpoint(tmp_path: Path) -> None:
    """Nothing used is a statement too; a negative start is malformed; a sealed node cannot sign."""
    async with running(tmp_path) as site:
        messages = [message async for message in site.admin().ExportUsage(pb.ExportUsageRequest())]
        assert [len(message.records) for message in messages] == [0]
        checkpoint = verify_checkpoint(messages[0].checkpoint, {site.node.key_id: site.node.verify_key})
        assert checkpoint.sequence == 0

        async def read(start: int) -> None:
            async for _ in site.admin().ExportUsage(pb.ExportUsageRequest(from_sequence=start)):
                pass

        assert (await refusal(read(-1))).code() is grpc.StatusCode.INVALID_ARGUMENT
        await site.admin().Seal(pb.SealRequest())
        assert header(await refusal(read(0)), "tessera-reason") == "store-sealed"


async def test_the_operators_door_is_not_on_the_public_port(tmp_path: Path) -> None:
    """No admin method is registered behind TLS."""
    async with running(tmp_path) as site:
        stub = admin_pb2_grpc.AdminServiceStub(site.channel())
        assert (await refusal(stub.GetStatus(pb.GetStatusRequest()))).code() is grpc.StatusCode.UNIMPLEMENTED
        assert site.appliance.admin_socket.stat().st_mode & 0o777 == 0o600
