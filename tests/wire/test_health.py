"""`grpc.health.v1` over the life of an appliance; draining."""

import asyncio
import os
import signal
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from support import keys
from support.appliance import PASSPHRASE, PLAIN, Kind, Site, header, make_site, running, sealed_bytes
from tessera.keystore.errors import Conflict, NotFound, Unavailable, WrongKey
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.package import UnlockedPackage
from tessera.keystore.secrets import Passphrase
from tessera.keystore.store import Store
from tessera.server.app import Appliance, serve
from tessera.server.config import Settings
from tessera.server.engine import LoadedProgram, load_variant
from tessera.server.services.health import SERVICES
from tessera.v1 import admin_pb2
from tessera.v1 import licensing_pb2 as pb

pytestmark = pytest.mark.slow

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def states(site: Site) -> set[int]:
    """The states of all services."""
    stub = health_pb2_grpc.HealthStub(site.channel())
    answers = [await stub.Check(health_pb2.HealthCheckRequest(service=name)) for name in SERVICES]
    return {answer.status for answer in answers}


async def test_health_follows_the_seal(tmp_path: Path) -> None:
    """NOT_SERVING while sealed, SERVING once unsealed and loaded, NOT_SERVING again when sealed; no session needed."""
    async with running(tmp_path, sealed=True) as site:
        assert await states(site) == {NOT_SERVING}
        await site.admin().Unseal(admin_pb2.UnsealRequest(passphrase=PASSPHRASE.reveal()))
        assert await states(site) == {SERVING}
        await site.admin().Seal(admin_pb2.SealRequest())
        assert await states(site) == {NOT_SERVING}


async def test_an_unknown_service_is_not_found(tmp_path: Path) -> None:
    """A service that is not here is NOT_FOUND, as the protocol says."""
    async with running(tmp_path) as site:
        stub = health_pb2_grpc.HealthStub(site.channel())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="other"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watch_sees_the_change(tmp_path: Path) -> None:
    """A watcher gets the present state at once and the next when it comes."""
    async with running(tmp_path, sealed=True) as site:
        watch = health_pb2_grpc.HealthStub(site.channel()).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == NOT_SERVING
        await site.admin().Unseal(admin_pb2.UnsealRequest(passphrase=PASSPHRASE.reveal()))
        assert (await watch.read()).status == SERVING
        watch.cancel()


async def test_draining_is_final_and_has_a_reason(tmp_path: Path) -> None:
    """A draining server shows NOT_SERVING, refuses what is new with `draining`, and waits for what was admitted."""
    async with running(tmp_path) as site:
        opened = await site.open()
        gate = site.appliance.node.gate
        permit = gate.admit(opened.session_token, "digits", "", 1, "r-1")
        draining = asyncio.create_task(site.appliance.drain())
        async with asyncio.timeout(5):
            while not gate.draining:  # noqa: ASYNC110 -- the gate wakes nobody
                await asyncio.sleep(0)
        assert await states(site) == {NOT_SERVING}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.licensing().CreateChallenge(pb.CreateChallengeRequest())
        assert (caught.value.code(), header(caught.value, "tessera-reason")) == (
            grpc.StatusCode.UNAVAILABLE,
            "draining",
        )
        assert (await site.admin().GetStatus(admin_pb2.GetStatusRequest())).draining
        assert not draining.done()
        permit.release()
        await asyncio.wait_for(draining, 5)


async def test_one_store_has_one_server(tmp_path: Path) -> None:
    """A second server on the same store is refused while the first runs, and the store can be served again after."""
    async with running(tmp_path) as site:
        with pytest.raises(Conflict):
            async with Appliance(site.settings()):
                pass
        settings = site.settings()
    async with Appliance(settings, passphrase=PASSPHRASE) as again:
        assert not again.node.store.sealed


async def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """No store, or a wrong passphrase: a typed error, and the next start finds everything free."""
    with pytest.raises(NotFound) as caught:
        async with Appliance(Settings(directory=tmp_path / "none")):
            pass
    assert caught.value.reason == "not-initialised"
    site = make_site(tmp_path)
    with pytest.raises(WrongKey):
        async with Appliance(site.settings(), passphrase=Passphrase(b"wrong")):
            pass
    async with Appliance(site.settings(), passphrase=PASSPHRASE) as appliance:
        assert appliance.admin_socket.stat().st_mode & 0o777 == 0o600
    assert not appliance.admin_socket.exists()


async def test_ports_that_are_taken_are_refused(tmp_path: Path) -> None:
    """A gRPC or metrics port that another server holds is a typed error; nothing is left running."""
    other = make_site(tmp_path / "other")
    async with running(tmp_path) as site:
        for taken in ({"port": site.appliance.port}, {"metrics_port": site.appliance.metrics_port}):
            with pytest.raises(Unavailable) as caught:
                async with Appliance(other.settings(**taken)):
                    pass
            assert "listen" in (caught.value.remedy or "")
    async with Appliance(other.settings(), passphrase=PASSPHRASE):
        pass


@pytest.mark.parametrize("host", ["::1", "127.0.0.1"])
async def test_metrics_are_served_on_either_family(tmp_path: Path, host: str) -> None:
    """An IPv6 address is bound as one, as for the gRPC port."""
    async with running(tmp_path, (), metrics_host=host) as site:
        shown = f"[{host}]" if ":" in host else host
        assert "tessera_sessions 0.0" in await asyncio.to_thread(_scrape, site.appliance.metrics_port, shown)


async def test_a_signal_ends_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM while models are being loaded: the one in hand is finished, no other is begun, the end is orderly."""
    entered, go, begun = threading.Event(), threading.Event(), []

    def slow(package: UnlockedPackage, device: Any, **how: Any) -> LoadedProgram:
        begun.append(package.manifest.model)
        entered.set()
        go.wait(10)
        return load_variant(package, device, **how)

    monkeypatch.setattr("tessera.server.node.load_variant", slow)
    monkeypatch.setattr("tessera.server.app.configure_logging", lambda *_: None)
    site = make_site(tmp_path, (PLAIN, Kind(model="other")))
    with Store.open(site.directory) as store:
        store.unseal(PASSPHRASE)
        for kind in site.kinds:
            store.put_package_secrets(PackageSecrets(sealed_bytes(kind)[1].package_id, keys.CONTENT_KEY, None))
    with capture_logs() as logs:
        serving = asyncio.create_task(serve(site.settings(), passphrase=PASSPHRASE))
        assert await asyncio.to_thread(entered.wait, 10)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
        go.set()
        await asyncio.wait_for(serving, 10)
    assert begun == [PLAIN.model]
    assert [line["event"] for line in logs][-1] == "stopped"
    assert not (site.directory / "admin.sock").exists()


async def test_metrics_are_served_and_name_no_licence(tmp_path: Path) -> None:
    """`/metrics` shows the calls by method and code, the refusals by reason, the sessions; and no id of anybody."""
    async with running(tmp_path) as site:
        licence = site.licence()
        opened = await site.open(licence)
        with pytest.raises(grpc.aio.AioRpcError):
            await site.licensing().GetUsage(pb.GetUsageRequest())
        page = await asyncio.to_thread(_scrape, site.appliance.metrics_port)
        assert 'tessera_requests_total{code="OK",rpc="tessera.v1.LicensingService/OpenSession"} 1.0' in page
        assert 'tessera_refusals_total{reason="session-missing"} 1.0' in page
        assert "tessera_sessions 1.0" in page
        assert "tessera_store_sealed 0.0" in page
        for private in (licence.licence_id, licence.buyer_id, opened.session_id, opened.session_token):
            assert private not in page


def _scrape(port: int, host: str = "127.0.0.1") -> str:
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5) as answer:
        body: bytes = answer.read()
    return body.decode()


async def test_a_process_drains_on_sigterm(tmp_path: Path) -> None:
    """`python -m tessera.server` serves with a passphrase from the environment and exits 0 on SIGTERM."""
    site = make_site(tmp_path, (PLAIN,))
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tessera.server",
            *("--directory", str(site.directory), "--port", "0", "--metrics-port", "0", "--device", "cpu"),
            *("--master", "env:CANARY_PASS"),
            env={"CANARY_PASS": PASSPHRASE.reveal().decode(), "PATH": "/usr/bin:/bin"},
            stderr=stream,
        )
    socket = site.directory / "admin.sock"
    async with asyncio.timeout(60):
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            ask: Any = channel.unary_unary(
                "/tessera.v1.AdminService/GetStatus", response_deserializer=admin_pb2.GetStatusResponse.FromString
            )
            status = await ask(b"", wait_for_ready=True)
            assert status.node.node_id == site.node.key_id
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    text = log.read_text()
    assert '"event": "stopped"' in text
    assert PASSPHRASE.reveal().decode() not in text
    assert not socket.exists()
