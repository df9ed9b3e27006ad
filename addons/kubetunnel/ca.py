"""`kube-tunnel ca`: the certificate authority that mitmproxy signs with, and how to have it trusted.

mitmproxy makes it at its first start (`mitmproxy.certs.CertStore`); here it is made before that, by the same code.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from mitmproxy.certs import CertStore
from mitmproxy.options import CONF_BASENAME, KEY_SIZE

_PRIVATE = ("ca.pem", "ca.p12")  # with the key

_TRUST = """\
{path}
  {subject}, valid until {until:%Y-%m-%d}
  SHA-256 {fingerprint}

It is the certificate of your own CA. The key is for nobody but you: who has it can pose as any site to whatever trusts
this CA. So trust it only where you need it. The key:
{key}

One command or program:
  curl        curl --cacert {quoted} https://…    (without checking: curl -k https://…)
  Python      export SSL_CERT_FILE={quoted} REQUESTS_CA_BUNDLE={quoted}
  gRPC        export GRPC_DEFAULT_SSL_ROOTS_FILE_PATH={quoted}
  Node.js     export NODE_EXTRA_CA_CERTS={quoted}
  Java        keytool -importcert -noprompt -cacerts -storepass changeit -alias kube-tunnel -file {quoted}
  Firefox     Settings, Privacy & Security, View Certificates, Authorities, Import…, trust it to identify websites
In the place of the usual CAs, not in addition, are those of SSL_CERT_FILE, REQUESTS_CA_BUNDLE and the one for gRPC.

The whole machine:
  Debian, Ubuntu    sudo cp {quoted} /usr/local/share/ca-certificates/kube-tunnel.crt && sudo update-ca-certificates
  Fedora, RHEL      sudo cp {quoted} /etc/pki/ca-trust/source/anchors/kube-tunnel.pem && sudo update-ca-trust
  macOS             sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain {quoted}
"""


def describe(confdir: Path) -> str:
    """Where the CA's certificate is and how to have it trusted, for people; makes the CA where there is none.

    Args:
        confdir: mitmproxy's directory (option `confdir`); made, for its owner alone, where it is missing.

    Raises:
        OSError: the directory or a file in it cannot be read or written.
        ValueError: the file of the CA holds no certificate.
    """
    confdir = confdir.expanduser().absolute()
    key = confdir / f"{CONF_BASENAME}-ca.pem"
    if not key.exists():
        confdir.mkdir(mode=0o700, parents=True, exist_ok=True)
        CertStore.create_store(confdir, CONF_BASENAME, KEY_SIZE)
    _keep_private(confdir)
    certificate = _certificate(key)
    path = confdir / f"{CONF_BASENAME}-ca-cert.pem"
    if not path.exists():  # the user's own CA
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return _TRUST.format(
        path=path,
        key=key,
        quoted=shlex.quote(str(path)),
        subject=certificate.subject.rfc4514_string(),
        until=certificate.not_valid_after_utc,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(":").upper(),
    )


def _keep_private(confdir: Path) -> None:
    for name in _PRIVATE:
        path = confdir / f"{CONF_BASENAME}-{name}"
        if path.exists() and path.stat().st_mode & 0o077:
            path.chmod(0o600)


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0]
    except ValueError as e:
        raise ValueError(f"{path} holds no certificate. Remove it and a new CA is made.") from e
