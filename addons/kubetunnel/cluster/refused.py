"""Says why a credential may have been refused: the dates that stand in it (RFC 5280 4.1.2.5, RFC 7519 4.1.4)."""

from __future__ import annotations

from datetime import UTC, datetime

from kubetunnel.cluster.exec_plugin import Credential
from kubetunnel.cluster.oidc import expiry


def why_refused(credential: Credential) -> str:
    """E.g. ": its client certificate expired on 2024-01-31 12:00 UTC"; "" where the dates explain nothing."""
    now = datetime.now(tz=UTC)
    if ends := expiry(credential.authorization.removeprefix("Bearer ")):
        if ends < now:
            return f": its token expired on {ends:%Y-%m-%d %H:%M} UTC"
        return ""
    if credential.certificate is None or credential.authorization:
        return ""
    from cryptography import x509  # late: it is needed for this sentence alone

    certificate = x509.load_pem_x509_certificate(credential.certificate.data)
    if certificate.not_valid_after_utc < now:
        return f": its client certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if certificate.not_valid_before_utc > now:
        return f": its client certificate is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    return ""
