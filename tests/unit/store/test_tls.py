"""The node's certificate authority and server certificate, by real TLS handshakes (rules S-26 to S-28)."""

import shutil
import ssl
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from support import keys
from support.stores import make_store
from tessera.keystore.errors import Malformed, NotFound, Tampered
from tessera.keystore.secrets import SecretBytes
from tessera.keystore.store import Store, tls

HOSTS = ("localhost", "127.0.0.1", "::1", "*.example.org")


@pytest.fixture
def fresh(directory: Path) -> Iterator[Store]:
    """A store whose certificates are valid at the real time: `ssl` has no other clock."""
    with make_store(directory, hosts=HOSTS, now_s=time.time()) as store:
        yield store


def _handshake(directory: Path, host: str, *, ca: Path | None = None) -> None:
    """Let a client that trusts one authority only meet a server with the store's certificate, in memory."""
    client_context = ssl.create_default_context(cafile=str(ca or directory / "ca.pem"))
    client_context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(directory / "tls" / "server.pem", directory / "tls" / "server.key")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    waiting = [
        client_context.wrap_bio(to_client, to_server, server_hostname=host),
        server_context.wrap_bio(to_server, to_client, server_side=True),
    ]
    while waiting:
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "a.example.org"])
def test_a_client_that_trusts_the_authority_connects(directory: Path, host: str) -> None:
    """Names, a wildcard and both kinds of address are accepted by OpenSSL under its strict rules."""
    _handshake(directory, host)


@pytest.mark.usefixtures("fresh")
def test_other_hosts_and_authorities_are_refused(directory: Path, tmp_path: Path) -> None:
    """A host that is not in the certificate, and a client that trusts another node's authority, end the handshake."""
    make_store(tmp_path / "other", now_s=time.time()).close()
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(directory, "example.com")
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(directory, "localhost", ca=tmp_path / "other" / "ca.pem")


def test_renewing_changes_key_and_certificate_and_keeps_the_hosts(fresh: Store, directory: Path) -> None:
    """Clients that trust the authority go on; the hosts stay unless new ones are given; the key is still private."""
    key, certificate = directory / "tls" / "server.key", directory / "tls" / "server.pem"
    before = key.read_bytes(), certificate.read_bytes()
    fresh.renew_server_certificate(now_s=time.time())
    assert tls.hosts_of(certificate.read_bytes()) == HOSTS
    assert key.read_bytes() != before[0]
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    _handshake(directory, "localhost")
    fresh.renew_server_certificate(["gpu-7.example.org"], now_s=time.time())
    _handshake(directory, "gpu-7.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(directory, "localhost")


def test_a_pair_is_held_against_itself(fresh: Store, directory: Path) -> None:
    """What the operator put there must be a certificate and its key; its end is told."""
    key, certificate = ((directory / "tls" / name).read_bytes() for name in ("server.key", "server.pem"))
    loaded = x509.load_pem_x509_certificate(certificate)
    assert tls.check_server_pair(certificate + (directory / "ca.pem").read_bytes(), key) == (
        loaded.not_valid_after_utc.timestamp()
    )
    fresh.renew_server_certificate(now_s=time.time())
    with pytest.raises(Malformed, match="not for the key"):
        tls.check_server_pair((directory / "tls" / "server.pem").read_bytes(), key)
    for pem, private in ((b"", key), (certificate, b""), (key, certificate), (certificate, certificate[:200])):
        with pytest.raises(Malformed, match="in PEM"):
            tls.check_server_pair(pem, private)


def test_certificates_say_what_they_are_for(store: Store, directory: Path) -> None:
    """The authority signs for ten years and no further authority; the server's lasts two years, for servers only."""
    authority = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    server = x509.load_pem_x509_certificate((directory / "tls" / "server.pem").read_bytes())
    server.verify_directly_issued_by(authority)
    assert (authority.not_valid_after_utc - authority.not_valid_before_utc).days == 3653
    assert (server.not_valid_after_utc - server.not_valid_before_utc).days == 731
    assert int(server.not_valid_before_utc.timestamp()) == keys.NOW_S - 3600
    basic = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert (basic.value.ca, basic.value.path_length) == (True, 0)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_renewing_without_a_certificate_needs_hosts(store: Store, directory: Path) -> None:
    """When tls/ is lost the hosts must be named, and then the files come back."""
    shutil.rmtree(directory / "tls")
    with pytest.raises(NotFound):
        store.renew_server_certificate(now_s=keys.NOW_S)
    store.renew_server_certificate(["localhost"], now_s=keys.NOW_S)
    assert (directory / "tls" / "server.key").exists()
    (directory / "tls" / "server.pem").write_bytes(b"no certificate")
    with pytest.raises(Malformed):
        store.renew_server_certificate(now_s=keys.NOW_S)


@pytest.mark.parametrize(
    "host",
    ["", ".", "a..b", "-a", "a-", "a b", "bücher.example", "x" * 64, "a." * 130 + "a", "*", "1.2.3", "a/b", "a\n"],
)
def test_what_is_no_host_is_refused_before_anything_is_written(directory: Path, host: str) -> None:
    """A host that a certificate cannot hold makes no store."""
    with pytest.raises(Malformed):
        make_store(directory, hosts=[host])
    assert not directory.exists()


@pytest.mark.parametrize("hosts", [[], [f"h{number}.example" for number in range(65)]])
def test_the_number_of_hosts_is_bounded(directory: Path, hosts: list[str]) -> None:
    """A certificate is for 1 to 64 hosts."""
    with pytest.raises(Malformed):
        make_store(directory, hosts=hosts)


@settings(max_examples=100, deadline=None)
@given(host=st.text(max_size=30) | st.from_regex(r"[a-z0-9.*:-]{1,20}", fullmatch=True))
def test_any_text_is_a_host_or_malformed(host: str) -> None:
    """What is accepted as a host stands in the certificate, whatever the text."""
    try:
        name = tls._general_name(host)
    except Malformed:
        return
    assert str(name.value).lower() == host.lower() or isinstance(name, x509.IPAddress)


def test_a_damaged_authority_is_tampered() -> None:
    """A key that is not the authority's, or no key at all, signs nothing."""
    ca, other = (tls.make_ca("Test", now_s=keys.NOW_S) for _ in range(2))
    for key in (other.key, SecretBytes(b"no key"), SecretBytes(b"")):
        with pytest.raises(Tampered):
            tls.issue_server_certificate(tls.Credentials(ca.certificate, key), ["localhost"], now_s=keys.NOW_S)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("a003020102", "a003020126", id="no such version"),
        pytest.param("0603551d25", "0603551d13", id="an extension twice"),
    ],
)
def test_a_damaged_certificate_is_malformed_or_tampered(old: str, new: str) -> None:
    """The library has errors of its own for these, some raised only when a field is asked for."""
    ca = tls.make_ca("test", now_s=keys.NOW_S)
    made = tls.issue_server_certificate(ca, ["localhost"], now_s=keys.NOW_S)
    raw = x509.load_pem_x509_certificate(made.certificate).public_bytes(Encoding.DER)
    assert raw.count(bytes.fromhex(old)) == 1
    damaged = ssl.DER_cert_to_PEM_cert(raw.replace(bytes.fromhex(old), bytes.fromhex(new))).encode()
    with pytest.raises(Malformed):
        tls.hosts_of(damaged)
    with pytest.raises(Tampered):
        tls.issue_server_certificate(tls.Credentials(damaged, ca.key), ["localhost"], now_s=keys.NOW_S)


def test_credentials_do_not_print_their_key() -> None:
    """The private key stays out of `repr`."""
    assert "PRIVATE" not in repr(tls.make_ca("Test", now_s=keys.NOW_S))
