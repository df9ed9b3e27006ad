"""The TLS context for an API server: its authority, our client certificate, and what old clusters need forgiven."""

from __future__ import annotations

import os
import ssl
import tempfile
from pathlib import Path

from kubetunnel.cluster.entry import Pem
from kubetunnel.core.errors import KubeconfigError


def client_context(ca: Pem | None, *, insecure: bool, certificate: Pem | None, key: Pem | None) -> ssl.SSLContext:
    """A context that verifies the server against `ca` (None: the system's authorities) and shows our certificate.

    Blocks (files); run it in a thread.

    Raises:
        KubeconfigError: naming where the certificate or key that cannot be used came from.
    """
    try:
        # not load_default_certs beside a CA of the cluster's own: then any public authority could speak for it
        context = ssl.create_default_context(cadata=ca.data.decode("ascii") if ca else None)
    except (ssl.SSLError, ValueError) as error:
        origin = ca.origin if ca else "The system's certificates"
        raise KubeconfigError(f"{origin}: no PEM certificate can be read from it ({_reason(error)}).") from error
    # Python 3.13 sets it; authorities of older managed clusters lack the key identifiers that it asks for
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    # HTTP/2 has no Upgrade: port-forwards need HTTP/1.1 (RFC 9113 8.6)
    context.set_alpn_protocols(["http/1.1"])
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate and key:
        _load_pair(context, certificate, key)
    return context


def _load_pair(context: ssl.SSLContext, certificate: Pem, key: Pem) -> None:
    # the ssl module reads a pair from a file only: one of mode 0600 (mkstemp), gone before anything else happens
    descriptor, name = tempfile.mkstemp(prefix="kube-tunnel-", suffix=".pem")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(certificate.data + b"\n" + key.data)
        # an empty password, or OpenSSL would ask for one at the terminal
        context.load_cert_chain(name, password="")
    except (ssl.SSLError, ValueError) as error:
        raise KubeconfigError(
            f"{certificate.origin} and {key.origin} are no PEM certificate with its unencrypted key ({_reason(error)})."
        ) from error
    finally:
        Path(name).unlink()


def _reason(error: Exception) -> str:
    return (error.reason if isinstance(error, ssl.SSLError) else "") or "not PEM text"
