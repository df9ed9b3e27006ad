"""A PEM file of our CA and those that this machine trusts: most programs take a file in the place of the usual one."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path

from kubetunnel.virtual_addresses import default_path

_NAME = "ca-bundle.pem"


def usual_authorities(environ: Mapping[str, str]) -> Path | None:
    """The file that OpenSSL would take, else mitmproxy's companion certifi; None where there is neither."""
    for path in (environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile):
        if path and Path(path).is_file() and Path(path).name != _NAME:
            return Path(path)
    try:
        import certifi
    except ImportError:
        return None
    return Path(certifi.where())


def write_bundle(confdir: Path, environ: Mapping[str, str], path: Path | None = None) -> Path:
    """Writes the file and says where it is. The CA is made where there is none.

    Args:
        confdir: mitmproxy's.
        path: by default in the user's state directory, where it stays: a program may outlive us.

    Raises:
        OSError, ValueError: as `kubetunnel.ca.describe`, or the file cannot be written.
    """
    from mitmproxy.options import CONF_BASENAME  # late: it takes half a second

    from kubetunnel.ca import describe

    path = path or default_path(_NAME)
    describe(confdir)
    own = confdir.expanduser() / f"{CONF_BASENAME}-ca-cert.pem"
    usual = usual_authorities(environ)
    content = own.read_bytes().rstrip() + b"\n" + (usual.read_bytes() if usual else b"")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    number, new = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        Path(new).replace(path)
    except BaseException:
        Path(new).unlink()
        raise
    return path
