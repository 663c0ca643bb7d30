"""`tessera keystore`, `model`, `licence install`, `usage` on a node whose server is stopped."""

import socket
from pathlib import Path

import pytest

from support import keys
from support.cli import document, invoke, passphrase_file, refusal
from support.vendor import PASSPHRASE, Bench, make_bench
from tessera.cli import admin
from tessera.keystore.secrets import Passphrase
from tessera.keystore.store import Store
from tessera.keystore.usage import sign_receipt


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A vendor's folder and a node."""
    return make_bench(tmp_path)


def licensed(bench: Bench) -> str:
    """Publish the package, issue and install a licence; return its id."""
    document("model", "publish", bench.package, "--keystore", bench.node)
    issued = document(
        *("licence", "issue", "--issuer", bench.issuer, "--package", bench.package, "--buyer", f"{bench.buyer}.pub"),
        *("--node", bench.node / "node.pub", "--out", bench.licence),
    )
    document("licence", "install", bench.licence, "--keystore", bench.node)
    return str(issued["licence_id"])


@pytest.mark.slow
def test_init_makes_a_store_once(tmp_path: Path) -> None:
    """The node's public identity and CA certificate are told; a second init is refused."""
    node, secret = tmp_path / "node", passphrase_file(tmp_path)
    made = document("keystore", "init", node, "--name", "n1", "--host", "gpu1.test", "--passphrase-file", secret)
    assert "gpu1.test" in made["hosts"]
    assert (node / "ca.pem").read_bytes().startswith(b"-----BEGIN CERTIFICATE-----")
    assert document("identity", "show", node / "node.pub")["key_id"] == made["node_id"]
    assert refusal("keystore", "init", node, "--passphrase-file", secret)["reason"] == "already-initialised"


def test_status_needs_no_passphrase(bench: Bench) -> None:
    """Public facts can be had while the store is sealed."""
    told = document("keystore", "status", bench.node)
    assert (told["name"], told["sealed"], told["server"]) == ("test-node", True, "stopped")
    assert told["issuers"] == {keys.ISSUER.key_id: "vendor"}
    licensed(bench)
    told = document("keystore", "status", bench.node)
    assert (told["models"], told["licences"], told["ledger_records"]) == (1, 1, 0)


def test_a_folder_without_a_store_is_told(tmp_path: Path) -> None:
    """The remedy names the command that makes one."""
    error = refusal("keystore", "status", tmp_path)
    assert (error["reason"], error["remedy"]) == ("not-initialised", "run: tessera keystore init")


def test_trust_takes_issuers_only(bench: Bench, tmp_path: Path) -> None:
    """Another role's file is a mistake that the message explains."""
    document("keys", "new", "--kind", "issuer", "--name", "Other", "--out", tmp_path / "other.key")
    trusted = document("keystore", "trust", bench.node, tmp_path / "other.key.pub")["trusted"]
    assert trusted[0]["key_id"] in document("keystore", "status", bench.node)["issuers"]
    assert refusal("keystore", "trust", bench.node, f"{bench.buyer}.pub")["reason"] == "malformed"


def test_rotate_and_rewrap(bench: Bench) -> None:
    """A new term is started, and what is stored is wrapped under it."""
    told = document("keystore", "rotate", bench.node, "--rewrap", TESSERA_PASSPHRASE=PASSPHRASE.decode())
    assert told["term"] == 2
    assert told["rewrapped"] > 0


def test_the_certificate_can_be_renewed(bench: Bench) -> None:
    """It lasts two years: without a command for it, the node would then be unreachable for good."""
    opened = {"TESSERA_PASSPHRASE": PASSPHRASE.decode()}
    authority = (bench.node / "ca.pem").read_bytes()
    told = document("keystore", "certificate", bench.node, "--host", "gpu2.test", **opened)
    assert told["hosts"] == ["localhost", "127.0.0.1", "::1", "gpu2.test"]
    first = (bench.node / "tls" / "server.pem").read_bytes()
    assert document("keystore", "certificate", bench.node, **opened)["hosts"] == told["hosts"]
    assert (bench.node / "tls" / "server.pem").read_bytes() != first
    assert (bench.node / "ca.pem").read_bytes() == authority
    shown = document("keystore", "status", bench.node)
    assert (shown["hosts"], shown["certificate_ends"]) == (told["hosts"], told["certificate_ends"])


def test_a_lost_certificate_comes_back_for_the_hosts_that_are_named(bench: Bench) -> None:
    """Status still answers, and renewing says what it cannot know."""
    opened = {"TESSERA_PASSPHRASE": PASSPHRASE.decode()}
    certificate = bench.node / "tls" / "server.pem"
    for spoil in (lambda: certificate.write_bytes(b"none"), certificate.unlink):
        spoil()
        assert document("keystore", "status", bench.node)["certificate_ends"] is None
        assert refusal("keystore", "certificate", bench.node, **opened)["message"].startswith("--host: ")
    document("keystore", "certificate", bench.node, "--host", "gpu2.test", **opened)
    assert document("keystore", "status", bench.node)["certificate_ends"] is not None


def test_hosts_that_no_certificate_can_name(bench: Bench) -> None:
    """A port or a blank is the usual mistake."""
    error = refusal(
        "keystore", "certificate", bench.node, "--host", "gpu2.test:8001", TESSERA_PASSPHRASE=PASSPHRASE.decode()
    )
    assert error["message"].startswith("--host: ")


def test_a_second_list_is_refused_with_the_way_out(bench: Bench, tmp_path: Path) -> None:
    """Started anew, a list would take back what the first one revoked; its issuer is told which list to give."""
    call = ("licence", "revoke", "--issuer", bench.issuer, "--keystore", bench.node, "--list")
    document(*call, tmp_path / "first.jwt", "licence-a")
    for _ in range(2):  # the second time it has a higher number and still leaves licence-a out
        error = refusal(*call, tmp_path / "second.jwt", "licence-b")
        assert error["reason"] == "revocation-rollback"
        assert error["remedy"].startswith(f"add to the list that is in force on {bench.node}")
    assert document(*call, tmp_path / "first.jwt", "licence-b")["revoked"] == 2


@pytest.mark.slow
def test_the_passphrase_can_be_changed(bench: Bench, tmp_path: Path) -> None:
    """The old one opens the store no more."""
    new = tmp_path / "new"
    new.touch(mode=0o600)
    new.write_text("another one")
    old = {"TESSERA_PASSPHRASE": PASSPHRASE.decode()}
    document("keystore", "passphrase", bench.node, "--new-passphrase-file", new, **old)
    assert refusal("keystore", "rotate", bench.node, **old)["reason"] == "wrong-passphrase"


def test_publish_list_install_list(bench: Bench) -> None:
    """What was given to the node is what it lists."""
    licence_id = licensed(bench)
    (model,) = document("model", "list", "--keystore", bench.node)["models"]
    assert (model["model"], model["version"], model["state"]) == ("digits", 1, "published")
    (licence,) = document("licence", "list", TESSERA_KEYSTORE=str(bench.node))["licences"]
    assert (licence["licence_id"], licence["standing"]) == (licence_id, "valid")


def test_a_changed_package_is_not_published(bench: Bench) -> None:
    """The refusal carries the reason and leaves nothing behind."""
    raw = bytearray(bench.package.read_bytes())
    raw[len(raw) // 2] ^= 1
    bench.package.write_bytes(raw)
    assert refusal("model", "publish", bench.package, "--keystore", bench.node)["reason"] == "package-tampered"
    assert document("model", "list", "--keystore", bench.node)["models"] == []


def test_revoking_on_a_stopped_node(bench: Bench) -> None:
    """With --keystore the list is in force when the server starts."""
    licensed(bench)
    arguments = ("--issuer", bench.issuer, "--list", bench.folder / "revoked.jwt", "--keystore", bench.node)
    assert document("licence", "revoke", bench.licence, *arguments)["sessions_closed"] == 0
    (licence,) = document("licence", "list", "--keystore", bench.node)["licences"]
    assert licence["standing"] == "revoked"


def test_a_licence_without_its_grant_is_refused(bench: Bench) -> None:
    """The node could not open the package with it."""
    bench.licence.write_text(keys.licence().token)
    assert refusal("licence", "install", bench.licence, "--keystore", bench.node)["reason"] == "grant-missing"


def test_usage_is_reported_exported_and_verified(bench: Bench) -> None:
    """The sums, the export and its proof speak of the same records."""
    with Store.open(bench.node) as store:
        store.append_usage([keys.draft(number) for number in (1, 2, 3)])
    (entry,) = document("usage", "report", "--keystore", bench.node)["usage"]
    assert (entry["requests"], entry["samples"], entry["bytes_in"]) == (3, 6, 384)
    export = bench.folder / "usage.jsonl"
    secret = {"TESSERA_PASSPHRASE": PASSPHRASE.decode()}
    assert document("usage", "export", "--keystore", bench.node, "--out", export, **secret)["records"] == 3
    told = document("usage", "verify", export, "--node", bench.node / "node.pub")
    assert (told["records"], told["samples"]) == (3, 6)
    lines = export.read_text().splitlines()
    export.write_text("\n".join([lines[0].replace('"samples":1', '"samples":9'), *lines[1:]]) + "\n")
    assert refusal("usage", "verify", export, "--node", bench.node / "node.pub")["reason"] == "ledger-broken"


def test_one_receipt_is_verified(bench: Bench) -> None:
    """A buyer checks a receipt with the node's public identity alone; another node's is refused."""
    with Store.open(bench.node) as store:
        store.unseal(Passphrase(PASSPHRASE))
        record = store.append_usage([keys.draft(5)])[0].record
        token = sign_receipt(record, store.node_identity())
    path = bench.folder / "one.receipt"
    path.write_text(token + "\n")
    assert document("usage", "verify", path, "--node", bench.node / "node.pub")["samples"] == 5
    path.write_text(sign_receipt(record, keys.NODE))
    assert refusal("usage", "verify", path, "--node", bench.node / "node.pub")["reason"] == "receipt-invalid"


@pytest.mark.parametrize(
    "arguments", [["model", "load", "digits", "--keystore"], ["keystore", "seal"], ["keystore", "unseal"]]
)
def test_what_needs_a_server_says_how_to_start_one(bench: Bench, arguments: list[str]) -> None:
    """The remedy is the command."""
    error = refusal(*arguments, bench.node)
    assert (error["reason"], error["remedy"]) == ("unavailable", f"start one: tessera serve {bench.node}")


def test_a_socket_that_nobody_listens_on_is_no_server(bench: Bench) -> None:
    """A killed server leaves its socket; the commands then work on the store."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(bench.node / admin.SOCKET_NAME))
    assert not admin.server_is_running(bench.node)
    assert document("model", "list", "--keystore", bench.node)["models"] == []


def test_tables_are_for_people(bench: Bench) -> None:
    """Without --json the same entries come as a table."""
    licensed(bench)
    result = invoke("licence", "list", "--keystore", bench.node)
    assert result.exit_code == 0
    assert keys.BUYER.key_id in result.stdout
