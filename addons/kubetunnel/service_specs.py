"""What the option `kube_services` says: one Service each, `NAME.NAMESPACE[:PORT] key=value …`, as in a shell's words.

kube_services:                      (in mitmproxy's config.yaml; or --set 'kube_services=…' several times)
  - api.shop:8443 app_protocol=https ca_file=~/shop-ca.pem
  - "*.legacy app_protocol=http"
  - vault.infra passthrough=true
"""

from __future__ import annotations

import shlex
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from kubetunnel.core.health import parse_check
from kubetunnel.core.settings import ServiceSettings
from kubetunnel.core.spoken import APP_PROTOCOLS

_KEYS = tuple(field.name for field in fields(ServiceSettings))[2:]
_BOOLEANS = {"true": True, "false": False}


def parse_services(specs: Sequence[str]) -> tuple[ServiceSettings, ...]:
    """Raises ValueError that names the entry, the key, the value and what is allowed."""
    return tuple(map(_parse, specs))


def spec_of(entry: Mapping[str, Any]) -> str:
    """The spec that says the same as an entry of a YAML file. Raises ValueError."""
    values = {str(key): value for key, value in entry.items()}
    service, port = values.pop("service", None), values.pop("port", None)
    if not isinstance(service, str):
        raise ValueError(f"{dict(entry)!r} has no service: NAME.NAMESPACE")  # noqa: TRY004 - a user's mistake
    words = [service if port is None else f"{service}:{port}"]
    for key, value in values.items():
        words.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    return shlex.join(words)


def _parse(spec: str) -> ServiceSettings:
    try:
        name, *pairs = shlex.split(spec)
    except ValueError as e:
        raise ValueError(f"{spec!r} is not NAME.NAMESPACE[:PORT] key=value …: {e}") from e
    service, colon, port = name.partition(":")
    if service.count(".") != 1 and service != "*":
        raise ValueError(f"{name!r} is not NAME.NAMESPACE[:PORT], with * for any characters")
    if colon and not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"{name!r}: {port!r} is not a port, 1 to 65535")
    values = dict(_value(name, pair) for pair in pairs)
    return ServiceSettings(service, int(port) if port else None, **values)  # type: ignore[arg-type]


def _value(name: str, pair: str) -> tuple[str, str | bool]:
    key, _, value = pair.partition("=")
    if key not in _KEYS:
        raise ValueError(f"{name}: {key!r} is none of {', '.join(_KEYS)}")
    if key == "passthrough":
        if value not in _BOOLEANS:
            raise ValueError(f"{name}: passthrough={value!r} is neither true nor false")
        return key, _BOOLEANS[value]
    if key == "app_protocol":
        if value not in APP_PROTOCOLS:
            raise ValueError(f"{name}: app_protocol={value!r} is none of {', '.join(APP_PROTOCOLS)}")
        return key, value
    if key == "health":
        try:
            parse_check(value)
        except ValueError as e:
            raise ValueError(f"{name}: health={e}") from e
        return key, value
    path = Path(value).expanduser()
    if not path.is_file():
        raise ValueError(f"{name}: {key}={value!r} is no file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if key == "ca_file":
            context.load_verify_locations(path)
        else:
            context.load_cert_chain(path, password="")
    except (OSError, ValueError) as e:  # ssl.SSLError is an OSError
        wanted = "certificates in PEM" if key == "ca_file" else "a certificate and its key in PEM, without a password"
        raise ValueError(f"{name}: {key}={value!r} does not have {wanted}: {e}") from e
    return key, str(path)
