"""Throw-away certificates of the simulated cluster: a CA, the API server's certificate, the users' client certificates.

They carry the extensions that Python's VERIFY_X509_STRICT (the default from 3.13) and Go's verifier ask for: RFC 5280
4.2.1.1, 4.2.1.2 (key identifiers), 4.2.1.3 (key usage), 4.2.1.9 (basic constraints). Keys live in memory; where OpenSSL
wants a file it is in a private directory for that moment only.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALIDITY = datetime.timedelta(days=7)
CLOCK_SKEW = datetime.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its key, both PEM; `serial` is the certificate's."""

    certificate_pem: str
    key_pem: str
    serial: int

    def __repr__(self) -> str:
        return f"KeyPair(serial={self.serial})"  # the key is in no log

    def load_into(self, context: ssl.SSLContext) -> None:
        """Make it the certificate that `context` shows."""
        with tempfile.TemporaryDirectory(prefix="kube-tunnel-sim-") as directory:
            path = Path(directory, "pair.pem")
            path.touch(mode=0o600)
            path.write_text(self.certificate_pem + self.key_pem)
            context.load_cert_chain(path)


class CertificateAuthority:
    """A CA of one process's life."""

    def __init__(self, common_name: str = "kube-tunnel-sim-ca") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(common_name)
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = _builder(self._name, self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self._certificate = builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())
        self.certificate_pem = self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def server(self, common_name: str, hosts: tuple[str, ...]) -> KeyPair:
        """A server's certificate for `hosts` (names and addresses)."""
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        return self._issue(_name(common_name), ExtendedKeyUsageOID.SERVER_AUTH, names)

    def client(self, user: str, groups: tuple[str, ...] = ()) -> KeyPair:
        """A user's client certificate: CN is the user, each O a group (Kubernetes X509 client certs)."""
        return self._issue(_name(user, groups), ExtendedKeyUsageOID.CLIENT_AUTH, None)

    def _issue(
        self, subject: x509.Name, purpose: x509.ObjectIdentifier, names: x509.SubjectAlternativeName | None
    ) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = _builder(subject, self._name, key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(identifier, critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        key_bytes = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        certificate_pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        return KeyPair(certificate_pem, key_bytes.decode(), certificate.serial_number)


def _name(common_name: str, organizations: tuple[str, ...] = ()) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        issuer, subject, key, x509.random_serial_number(), now - CLOCK_SKEW, now + VALIDITY
    )
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
