"""The certificate authority that TLS ends at: is it there, whose may its key be, until when, and who trusts it."""

from __future__ import annotations

import os
import shlex
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from kubetunnel.doctor.verdict import Verdict, fail, ok, skip, warn

CA, TRUST = "CA", "CA trust"
EXPIRES_SOON = timedelta(days=30)
_BASENAME = "mitmproxy"  # mitmproxy.options.CONF_BASENAME, whose import costs more than this whole check
_PRIVATE = ("ca.pem", "ca.p12")

# OpenSSL's own default is asked for first: Debian, Ubuntu, Alpine; Fedora, RHEL; macOS, the BSDs
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA as found.

    Attributes:
        path: of its certificate.
        open_files: those with the key that others may read.
        trusted_by: the stores that have it.
    """

    path: Path
    not_before: datetime
    not_after: datetime
    open_files: tuple[Path, ...] = ()
    trusted_by: tuple[str, ...] = ()


def judge_authority(found: Authority, now: datetime) -> list[Verdict]:
    return [_judge_certificate(found, now), _judge_trust(found)]


def _judge_certificate(found: Authority, now: datetime) -> Verdict:
    renew = f"mv {shlex.quote(str(found.path.parent))} {shlex.quote(f'{found.path.parent}.old')}    (a new one is made)"
    if found.open_files:
        files = shlex.join(map(str, found.open_files))
        return fail(
            CA, f"others on this machine may read the key in {files}, and pose as any site", f"chmod 600 {files}"
        )
    if now >= found.not_after:
        return fail(CA, f"{found.path} expired on {found.not_after:%Y-%m-%d}", renew)
    if now < found.not_before:
        return fail(CA, f"{found.path} is not valid before {found.not_before:%Y-%m-%d %H:%M} UTC", "date -u")
    if found.not_after - now < EXPIRES_SOON:
        return warn(CA, f"{found.path} expires on {found.not_after:%Y-%m-%d}", renew)
    return ok(CA, f"{found.path}, valid until {found.not_after:%Y-%m-%d}")


def _judge_trust(found: Authority) -> Verdict:
    if found.trusted_by:
        return ok(TRUST, f"trusted by {', '.join(found.trusted_by)}")
    return warn(
        TRUST,
        "no store of this machine trusts it: https:// needs -k or --cacert",
        f"curl --cacert {shlex.quote(str(found.path))} https://…    (all of it: kube-tunnel ca)",
    )


def check_trust(confdir: Path, now: datetime, environ: Mapping[str, str] = os.environ) -> list[Verdict]:
    """Blocks for some files.

    Args:
        confdir: mitmproxy's.
        now: with a time zone.
    """
    path = confdir.expanduser() / f"{_BASENAME}-ca-cert.pem"
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        return [skip(CA, f"there is none yet: it is made in {confdir} at the first start", "kube-tunnel ca")]
    except (OSError, ValueError) as e:
        return [fail(CA, f"{path} cannot be used: {e}", f"mv {confdir} {confdir}.old    (a new one is made)")]
    own = certificate.public_bytes(Encoding.DER)
    files = [path.with_name(f"{_BASENAME}-{name}") for name in _PRIVATE]
    return judge_authority(
        Authority(
            path,
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            tuple(file for file in files if file.exists() and file.stat().st_mode & 0o077),
            tuple(store for store in _stores(environ) if own in certificates_in(Path(store))),
        ),
        now,
    )


def _stores(environ: Mapping[str, str]) -> list[str]:
    """The bundles that curl, Python and the rest look into, without those that are the same file."""
    named = (environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().openssl_cafile, *_BUNDLES)
    stores: dict[str, str] = {}
    for store in named:
        if store and Path(store).is_file():
            stores.setdefault(str(Path(store).resolve()), store)
    return list(stores.values())


def certificates_in(bundle: Path) -> Sequence[bytes]:
    """DER of each certificate of a PEM file; none where it cannot be read."""
    try:
        text = bundle.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ()
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    blocks = (part.partition(end)[0] for part in text.split(begin)[1:])
    found = []
    for block in blocks:
        try:
            found.append(ssl.PEM_cert_to_DER_cert(f"{begin}\n{block.strip()}\n{end}\n"))
        except ValueError:
            continue  # somebody else's broken entry
    return found
