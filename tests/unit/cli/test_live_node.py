"""The operator's and the buyer's commands against a real server: real TLS, real socket, a small real model."""

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from support import keys
from support.appliance import KEYED, PASSPHRASE, PLAIN, Site, make_site, running
from support.cli import document, refusal
from tessera.keystore.errors import Malformed, NotFound
from tessera.keystore.keyfile import save_identity, save_input_key
from tessera.keystore.licence import LicenceFile, write_licence_file
from tessera.server.app import Appliance
from tessera.server.config import Limits

pytestmark = pytest.mark.slow

SECRET = {"TESSERA_PASSPHRASE": PASSPHRASE.reveal().decode()}


@pytest.fixture(autouse=True)
def _quiet_server() -> Iterator[None]:
    """Keep the log of the server in this process out of the standard output that the commands write to."""
    with capture_logs():
        yield


async def told(*arguments: object, **environment: str) -> dict[str, Any]:
    """Run a command in a thread, because the server runs in this one."""
    return await asyncio.to_thread(lambda: document(*arguments, **environment))


async def refused(*arguments: object, **environment: str) -> dict[str, str]:
    """As `told`, for a command that is refused."""
    return await asyncio.to_thread(lambda: refusal(*arguments, **environment))


def buyer_files(site: Site, folder: Path) -> list[object]:
    """Write what a buyer has, with input that fits the model; return the arguments of `tessera infer`."""
    licence = site.licence(kind=KEYED)
    write_licence_file(folder / "licence", LicenceFile(licence.token, site.grant(licence, kind=KEYED).token))
    save_identity(folder / "buyer.key", keys.BUYER)
    np.save(folder / "scan.npy", np.arange(128, dtype=np.uint8).reshape(2, 8, 8))
    arguments: list[object] = ["infer", folder / "scan.npy", "--model", KEYED.model, "--server", site.target]
    arguments += ["--ca", site.directory / "ca.pem", "--identity", folder / "buyer.key"]
    return [*arguments, "--licence", folder / "licence"]


async def test_health_tells_another_server_from_none(tmp_path: Path) -> None:
    """Something that answers under another authority is no reason to look whether the server runs."""
    async with running(tmp_path / "ours") as ours, running(tmp_path / "other") as other:
        wrong = await refused("health", "--server", ours.target, "--ca", other.directory / "ca.pem")
        assert wrong["reason"] == "server-unverified"
        assert "ca.pem" in wrong["remedy"]
        address = f"[::1]:{ours.target.rpartition(':')[2]}"
    gone = await refused("health", "--server", address, "--ca", ours.directory / "ca.pem")
    assert gone["reason"] == "unreachable"


async def test_a_sealed_server_is_unsealed_and_sealed_by_command(tmp_path: Path) -> None:
    """Health, status and refusals say so at each step; a wrong passphrase changes nothing."""
    async with running(tmp_path, sealed=True) as site:
        node, probe = site.directory, ("health", "--server", site.target, "--ca", site.directory / "ca.pem")
        assert (await refused(*probe))["message"].endswith("NOT_SERVING")
        wrong = {"TESSERA_PASSPHRASE": "wrong"}
        assert (await refused("keystore", "unseal", node, **wrong))["reason"] == "wrong-passphrase"
        assert (await told("keystore", "unseal", node, **SECRET))["sealed"] is False
        assert (await told(*probe))["serving"] is True
        assert (await told(*probe, grpc_proxy="http://127.0.0.1:9"))["serving"] is True
        assert (await told("keystore", "status", node))["server"] == "running"
        assert (await told("keystore", "seal", node))["sealed"] is True
        assert (await refused("usage", "export", "-k", node, "--out", tmp_path / "x"))["reason"] == "store-sealed"
        assert not (tmp_path / "x").exists()


async def test_an_export_may_take_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit on one call is none on the export of a ledger that has grown for years."""
    monkeypatch.setattr("tessera.cli.admin.TIMEOUT_S", 0.3)
    async with running(tmp_path, (), limits=Limits(usage_page_records=1)) as site:
        drafts = [keys.draft(number, request_id=f"r-{number}") for number in range(2000)]
        await asyncio.to_thread(site.appliance.node.store.append_usage, drafts)
        exported = await told("usage", "export", "-k", site.directory, "--out", tmp_path / "usage.jsonl")
    assert exported["records"] == 2000


async def test_a_socket_in_another_place_is_found(tmp_path: Path) -> None:
    """Commands that know the key store only reach its server all the same, and do not take it for stopped."""
    place = tmp_path / "run" / "operator.sock"
    place.parent.mkdir()
    async with running(tmp_path / "deep", sealed=True, admin_socket=place) as site:
        node = site.directory
        assert place.is_socket()
        assert (await told("keystore", "status", node))["server"] == "running"
        assert "a server is running" in (await refused("keystore", "rotate", node, **SECRET))["message"]
        assert (await told("keystore", "unseal", node, **SECRET))["sealed"] is False
    assert (await told("keystore", "status", node))["server"] == "stopped"


async def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path: Path) -> None:
    """The next client sees it and those that are connected notice nothing; half a renewal changes nothing."""
    async with running(tmp_path) as site:
        folder = site.directory / "tls"
        opened = await site.open()
        assert opened.session_token
        before = await shown(site)
        renewed = await told("keystore", "certificate", site.directory, "--host", "gpu7.test", **SECRET)
        assert renewed["hosts"] == ["localhost", "127.0.0.1", "::1", "gpu7.test"]
        after = await shown(site)
        assert after != before
        assert after == (folder / "server.pem").read_text().strip()
        assert (await told("health", "--server", site.target, "--ca", site.directory / "ca.pem"))["serving"] is True
        pair = (folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes()
        await told("keystore", "certificate", site.directory, **SECRET)
        (folder / "server.key").write_bytes(pair[0])  # the certificate is the newer one: they do not belong together
        assert await shown(site) == after
        (folder / "server.pem").unlink()
        assert await shown(site) == after
        (folder / "server.pem").write_bytes(pair[1])
        assert await shown(site) == after


async def shown(site: Site) -> str:
    """Return the certificate that a client sees which connects now."""
    address = ("localhost", site.appliance.port)
    return (await asyncio.to_thread(ssl.get_server_certificate, address)).strip()


async def test_a_certificate_of_another_key_is_named_at_the_start(tmp_path: Path) -> None:
    """Not as a port that cannot be bound; and without the files it says how to have them made."""
    site, other = make_site(tmp_path / "a"), make_site(tmp_path / "b")
    pem = site.directory / "tls" / "server.pem"
    pem.write_bytes((other.directory / "tls" / "server.pem").read_bytes())
    with pytest.raises(Malformed, match="not for the key") as caught:
        async with Appliance(site.settings()):
            pass
    assert "tessera keystore certificate" in caught.value.remedy
    pem.unlink()
    with pytest.raises(NotFound) as missing:
        async with Appliance(site.settings()):
            pass
    assert "tessera keystore certificate" in missing.value.remedy
    await told("keystore", "certificate", site.directory, "--host", "localhost", **SECRET)
    async with Appliance(site.settings()) as site.running:
        assert await shown(site) == pem.read_text().strip()


async def test_a_buyer_infers_and_both_sides_verify_the_usage(tmp_path: Path) -> None:
    """Predictions, the receipt on the buyer's disk, the report and the export speak of the same two samples."""
    async with running(tmp_path, [KEYED]) as site:
        infer = buyer_files(site, tmp_path)
        found = await told(*infer, "--receipts", tmp_path / "receipts", "--top", 3)
        assert [len(entry["top"]) for entry in found["predictions"]] == [3, 3]
        assert found["session"] == {"model": KEYED.model, "version": KEYED.version, "tier": 1, "notice": ""}
        (usage,) = found["usage"]
        (entry,) = (await told("usage", "report", "-k", site.directory))["usage"]
        assert entry["samples"] == usage["samples"] == 2
        public = ("--node", site.directory / "node.pub")
        receipt = tmp_path / "receipts" / f"{usage['sequence']}.receipt"
        assert (await told("usage", "verify", receipt, *public))["request_id"] == usage["request_id"]
        export = tmp_path / "usage.jsonl"
        assert (await told("usage", "export", "-k", site.directory, "--out", export))["records"] == 1
        assert (await told("usage", "verify", export, *public))["samples"] == 2


async def test_a_wrong_input_key_is_refused_by_the_server(tmp_path: Path) -> None:
    """The reason reaches the shell, and nothing is charged."""
    async with running(tmp_path, [KEYED]) as site:
        save_input_key(tmp_path / "other.key", keys.OTHER_INPUT_KEY)
        error = await refused(*buyer_files(site, tmp_path), "--input-key", tmp_path / "other.key")
        assert error["reason"] == "wrong-input-key"
        assert (await told("usage", "report", "-k", site.directory))["usage"] == []


async def test_models_are_published_loaded_and_unloaded_in_a_running_server(tmp_path: Path) -> None:
    """The commands go through the socket, so the server knows at once."""
    async with running(tmp_path) as site:
        place = ("--keystore", site.directory)
        package = tmp_path / f"{PLAIN.model}-{PLAIN.version}.tessera"
        assert (await told("model", "publish", package, *place))["model"] == PLAIN.model
        licence = site.licence()
        write_licence_file(tmp_path / "licence", LicenceFile(licence.token, site.grant(licence).token))
        installed = await told("licence", "install", tmp_path / "licence", *place)
        assert installed["installed"] == [licence.licence_id]
        assert (await told("model", "load", PLAIN.model, *place))["state"] == "ready"
        assert (await told("model", "unload", PLAIN.model, *place))["state"] == "unloaded"
        assert [entry["state"] for entry in (await told("model", "list", *place))["models"]] == ["unloaded"]
        assert (await refused("model", "load", "absent", *place))["reason"] == "model-unknown"


async def test_revoking_closes_the_sessions_of_a_running_server(tmp_path: Path) -> None:
    """`licence revoke --keystore` tells how many sessions it ended."""
    async with running(tmp_path) as site:
        save_identity(tmp_path / "acme.key", keys.ISSUER)
        licence = site.licence()
        await site.open(licence)
        listed = ("--issuer", tmp_path / "acme.key", "--list", tmp_path / "list", "--keystore", site.directory)
        assert (await told("licence", "revoke", licence.licence_id, *listed))["sessions_closed"] == 1


async def test_keys_are_not_rotated_under_a_running_server(tmp_path: Path) -> None:
    """The server would go on with the old ones."""
    async with running(tmp_path) as site:
        assert (await refused("keystore", "rotate", site.directory))["reason"] == "unavailable"
