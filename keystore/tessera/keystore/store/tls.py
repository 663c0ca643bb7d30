"""The node's own certificate authority and the server's certificate (rules S-26 to S-28).

The operator hands `ca.pem` to buyers; their clients trust that authority and nobody else. The authority's private key
lies wrapped in the store; the server's lies in a file of mode 0600, because health must be answered while sealed.
"""

import datetime as dt
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tessera.keystore.errors import Malformed, Tampered
from tessera.keystore.secrets import SecretBytes

CA_DAYS = 3653
SERVER_DAYS = 731
SKEW = dt.timedelta(hours=1)
"""Certificates begin this much before they are made, for clients whose clock is behind."""
MAX_HOSTS = 64

_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What the library raises, now or when a field is asked for, of bytes that are no certificate or key."""

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate in PEM and its private key in PKCS#8 PEM."""

    certificate: bytes
    key: SecretBytes = field(repr=False)


def make_ca(name: str, *, now_s: float) -> Credentials:
    """Return a self-signed authority on P-256 for ten years; it may sign servers' certificates, no authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    builder = _builder(subject, subject, key, now_s, CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    return _signed(builder, key, key)


def issue_server_certificate(ca: Credentials, hosts: Sequence[str], *, now_s: float) -> Credentials:
    """Return a server's certificate on P-256 for two years, valid for `hosts`: DNS names, `*.` names and IP addresses.

    Raises `Malformed` for anything else among them, and `Tampered` when `ca` is no authority of ours.
    """
    names = [_general_name(host) for host in dict.fromkeys(hosts)]
    if not 0 < len(names) <= MAX_HOSTS:
        raise Malformed(f"a server certificate is for 1 to {MAX_HOSTS} hosts")
    authority, ca_key = _load(ca)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_subject("server"), authority.subject, key, now_s, SERVER_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return _signed(builder.add_extension(issuer, critical=False), key, ca_key)


def hosts_of(certificate: bytes) -> tuple[str, ...]:
    """Return the hosts that a server's certificate in PEM is valid for. Raises `Malformed`."""
    try:
        loaded = x509.load_pem_x509_certificate(certificate)
        names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _UNREADABLE as error:
        raise Malformed("server.pem is not a server's certificate") from error
    return tuple(str(name.value) for name in names)


def check_server_pair(certificate: bytes, key: bytes) -> float:
    """Return the Unix time at which a server's certificate ends; the operator may have put another's there.

    Raises `Malformed` unless both are PEM and belong together; the certificate may be followed by its chain.
    """
    try:
        loaded = x509.load_pem_x509_certificate(certificate)
        private = serialization.load_pem_private_key(key, password=None)
        together = loaded.public_key() == private.public_key()
        ends_at_s = loaded.not_valid_after_utc.timestamp()
    except _UNREADABLE as error:
        raise Malformed("server.pem and server.key are not a certificate and its private key in PEM") from error
    if not together:
        raise Malformed("the certificate in server.pem is not for the key in server.key")
    return ends_at_s


def expires_at_s(certificate: bytes) -> int:
    """Return the Unix time at which a certificate in PEM ends. Raises `Malformed`."""
    try:
        return int(x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp())
    except _UNREADABLE as error:
        raise Malformed("server.pem is not a server's certificate") from error


def _subject(name: str) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tessera")]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now_s: float, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.fromtimestamp(int(now_s), dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> Credentials:
    certificate = builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Credentials(certificate, SecretBytes(pem))


def _load(ca: Credentials) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(ca.certificate)
        key = serialization.load_pem_private_key(ca.key.reveal(), password=None)
        together = certificate.public_key() == key.public_key()
    except _UNREADABLE as error:
        raise Tampered("the certificate authority in the key store is damaged") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not together:
        raise Tampered("the certificate authority's key and certificate do not belong together")
    return certificate, key


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.removeprefix("*.").split(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise Malformed(f"{host!r:.80} is neither a host name in ASCII nor an IP address")
    return x509.DNSName(host.lower())
