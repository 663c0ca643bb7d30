"""The client's public face: light, complete, and without secrets."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tessera.client
from support import keys
from support.buyer import held
from tessera.client import AsyncClient, Client, LicenceMissing, RetryPolicy
from tessera.client._channel import address
from tessera.keystore.errors import ApiMisuse, Malformed, NotFound, WrongKey
from tessera.keystore.keyfile import KdfCost, save_identity, save_input_key
from tessera.keystore.licence import LicenceFile, write_licence_file
from tessera.keystore.secrets import Passphrase
from tessera.keystore.store.tls import make_ca

HEAVY = (
    "torch", "sqlalchemy", "alembic", "cryptography", "prometheus_client", "pydantic", "safetensors",
    "tessera.server", "tessera.protect", "tessera.cli", "tessera.keystore.store", "tessera.keystore.package",
)  # fmt: skip


def test_importing_the_client_is_light() -> None:
    """In a fresh interpreter nothing of the server's or vendor's rooms, nor their libraries, comes along."""
    script = f"import sys, tessera.client; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_is_sorted_and_complete() -> None:
    """`__all__` is what the package imports by name, no more and no less."""
    tree = ast.parse(Path(str(tessera.client.__file__)).read_text(encoding="utf-8"))
    imported = {a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert tessera.client.__all__ == sorted(imported)
    assert all(hasattr(tessera.client, name) for name in tessera.client.__all__)
    public = {name for name in vars(tessera.client) if not name.startswith("_")}
    assert public <= set(tessera.client.__all__)


def test_both_clients_have_the_same_surface() -> None:
    """Whatever one can do the other can."""

    def surface(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert surface(Client) == surface(AsyncClient)


def test_a_client_shows_who_and_where_and_no_secret() -> None:
    """The representation and the settings' own report hold no key and no token."""
    with Client(
        "node.example:8001", identity=keys.BUYER, licence=held().licence.token, input_key=keys.INPUT_KEY
    ) as client:
        text = repr(client) + repr(client.whoami()) + repr(client._core)
    assert "buyer" in text
    assert "node.example:8001" in text
    for secret in (keys.INPUT_KEY, keys.BUYER.export_secret()):
        assert secret.reveal().hex() not in text
        assert repr(secret.reveal())[2:-1] not in text
    assert held().licence.token not in text


def test_whoami_asks_nobody() -> None:
    """Buyer and licences are known without a server."""
    client = AsyncClient("localhost:1", identity=keys.BUYER, licence=[held().licence.token])
    who = client.whoami()
    assert (who.buyer_id, who.name) == (keys.BUYER.key_id, "buyer")
    assert [(one.model, one.has_input_key) for one in who.licences] == [("digits", True)]


def test_everything_can_be_given_as_files(tmp_path: Path) -> None:
    """Identity and input key behind a passphrase, and the licence file with its grant."""
    lock = Passphrase(b"open sesame")
    save_identity(tmp_path / "me.key", keys.BUYER, lock, cost=KdfCost.danger_for_tests)
    save_input_key(tmp_path / "input.key", keys.INPUT_KEY, lock, cost=KdfCost.danger_for_tests)
    mine = held()
    write_licence_file(tmp_path / "digits.licence", LicenceFile(mine.licence.token, mine.grant))
    client = AsyncClient(
        "localhost:1",
        identity=tmp_path / "me.key",
        licence=str(tmp_path / "digits.licence"),
        input_key=tmp_path / "input.key",
        passphrase=lambda: lock,
    )
    assert client._core.credentials.held == (mine,)
    assert client._core.credentials.input_key == keys.INPUT_KEY
    with pytest.raises(WrongKey):
        AsyncClient("localhost:1", identity=tmp_path / "me.key", licence=mine.licence.token)


@pytest.mark.parametrize(
    "wrong", [{"receipts": "maybe"}, {"timeout_s": 0}, {"timeout_s": float("inf")}, {"retries": -1}]
)
def test_senseless_settings_are_refused_at_once(wrong: dict[str, object]) -> None:
    """They do not wait for the first call."""
    with pytest.raises(ApiMisuse):
        AsyncClient("localhost:1", identity=keys.BUYER, licence=held().licence.token, **wrong)  # type: ignore[arg-type]


def test_a_malformed_licence_is_refused_at_once() -> None:
    """A token that is none is named when the client is made."""
    with pytest.raises(Malformed):
        AsyncClient("localhost:1", identity=keys.BUYER, licence="eyJh.eyJh.eyJh")
    with pytest.raises(NotFound):
        AsyncClient("localhost:1", identity=keys.BUYER, licence="no/such/file")


@pytest.mark.parametrize(
    "target", ["localhost:8001", "127.0.0.1:8001", "127.9.9.9:1", "[::1]:8001", "ipv4:127.0.0.1:1", "unix:/tmp/x"]
)
def test_plaintext_reaches_this_machine(target: str) -> None:
    """The loopback in all its spellings."""
    assert address(target, None, danger_plaintext=True, max_message_bytes=1).plaintext


@pytest.mark.parametrize(
    "target", ["node.example:8001", "10.0.0.1:8001", "0.0.0.0:1", "localhost.evil.example:1", "dns:///x:1", "8001"]
)
def test_plaintext_reaches_nothing_else(target: str) -> None:
    """A token never crosses a network in the clear."""
    with pytest.raises(ApiMisuse, match="danger_plaintext"):
        address(target, None, danger_plaintext=True, max_message_bytes=1)


@pytest.mark.parametrize("target", ["", "https://node:8001", "HTTP://localhost:8001", "grpc://node:8001"])
@pytest.mark.parametrize("plaintext", [True, False])
def test_an_address_is_not_a_url(target: str, plaintext: bool) -> None:
    """gRPC would look for a machine called `https`, and the client would call the server unreachable."""
    with pytest.raises(ApiMisuse, match="host:port"):
        address(target, None, danger_plaintext=plaintext, max_message_bytes=1)


def test_certificates_are_looked_at_early(tmp_path: Path) -> None:
    """A missing file, a file without PEM, and a contradiction are named when the client is made."""
    with pytest.raises(NotFound):
        address("n:1", tmp_path / "none.pem", danger_plaintext=False, max_message_bytes=1)
    with pytest.raises(Malformed):
        address("n:1", b"not a certificate", danger_plaintext=False, max_message_bytes=1)
    whole = make_ca("test", now_s=float(keys.NOW_S)).certificate
    for broken in (
        whole[:200],
        whole[:200] + whole[210:],
        whole.replace(b"M", b"!"),
        whole + whole.replace(b"MI", b"NI"),
    ):
        with pytest.raises(Malformed):
            address("n:1", broken, danger_plaintext=False, max_message_bytes=1)
    commented = "# Főtanúsítvány\n".encode() + whole
    assert address("n:1", commented, danger_plaintext=False, max_message_bytes=1).roots == commented
    with pytest.raises(ApiMisuse):
        address("localhost:1", b"x", danger_plaintext=True, max_message_bytes=1)


def test_a_closed_client_says_so() -> None:
    """Closing twice is fine; calling afterwards is the caller's fault."""
    client = Client("localhost:1", identity=keys.BUYER, licence=held().licence.token, retry=RetryPolicy(0))
    client.close()
    client.close()
    with pytest.raises(ApiMisuse, match="closed"):
        client.contract("digits")


def test_without_a_licence_the_client_says_which_it_has() -> None:
    """No licence at all is possible, and leads to one clear error."""
    with (
        Client("localhost:1", identity=keys.BUYER, licence=[]) as client,
        pytest.raises(LicenceMissing, match="none at all"),
    ):
        client.infer("digits", 0)  # type: ignore[arg-type]
