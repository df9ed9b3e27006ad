"""What a Service's port speaks, as far as the Service says so: TLS or not, HTTP/1.1 or HTTP/2.

Sources: `appProtocol` (core/v1 ServicePort; KEP-3726 for the `kubernetes.io/` values), which wins; then the port's name
in Istio's convention `<protocol>[-<suffix>]`; then the numbers that are customary for HTTPS.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kubetunnel.core.catalog import ServicePort


class Http(Enum):
    """The version of HTTP between us and the pod."""

    HTTP1 = "HTTP/1.1"
    HTTP2 = "HTTP/2"
    NEGOTIATED = "whichever the pod takes"  # by ALPN, or in clear by asking once


@dataclass(frozen=True, slots=True)
class Spoken:
    """What the Service says of a port. `http` None: nothing. `binding`: `appProtocol` said it, so it is not a guess.
    `websocket`: it is WebSocket, which only HTTP/1.1 carries here."""

    tls: bool
    http: Http | None = None
    binding: bool = False
    websocket: bool = False


_APP_PROTOCOLS = {
    "h2c": Spoken(tls=False, http=Http.HTTP2, binding=True),
    "http2": Spoken(tls=False, http=Http.HTTP2, binding=True),
    "http": Spoken(tls=False, http=Http.HTTP1, binding=True),
    "ws": Spoken(tls=False, http=Http.HTTP1, binding=True, websocket=True),
    "wss": Spoken(tls=True, http=Http.HTTP1, binding=True, websocket=True),
    "https": Spoken(tls=True, http=Http.NEGOTIATED, binding=True),
}
# what may stand in `appProtocol`, as far as it is known here (without `kubernetes.io/`)
APP_PROTOCOLS = (*_APP_PROTOCOLS, "grpc", "grpcs")
_TLS_NAMES = ("https", "grpcs", "wss", "tls")
_HTTP2_NAMES = ("grpc", "grpcs", "h2c", "http2")
_TLS_NUMBERS = (443, 8443)


def spoken_at(port: ServicePort) -> Spoken:
    """What this port speaks."""
    app_protocol = (port.app_protocol or "").lower().removeprefix("kubernetes.io/")
    if app_protocol in _APP_PROTOCOLS:
        return _APP_PROTOCOLS[app_protocol]
    # gRPC-Web has a name of its own there, and is HTTP of either version
    words = port.name.lower().replace("grpc-web", "http").split("-")
    tls = port.port in _TLS_NUMBERS or any(word.startswith(_TLS_NAMES) for word in words)
    if app_protocol in ("grpc", "grpcs"):
        return Spoken(tls or app_protocol == "grpcs", Http.HTTP2, binding=True)
    return Spoken(tls, Http.HTTP2 if any(word in _HTTP2_NAMES for word in words) else None)


def choose_http(
    spoken: Spoken, *, client_http2: bool, force_http2: bool = False, disable_fallback: bool = False
) -> Http:
    """The version to speak to the pod.

    Args:
        spoken: what the Service says.
        client_http2: whether the request came as HTTP/2, as gRPC always does.
        force_http2: the user's word, above all but `ws` and `wss`.
        disable_fallback: an HTTP/2 request goes as HTTP/2 or not at all.
    """
    if force_http2 and not spoken.websocket:
        return Http.HTTP2
    if spoken.binding and spoken.http in (Http.HTTP1, Http.HTTP2):
        return spoken.http
    if not client_http2:
        return Http.HTTP1
    if disable_fallback or (spoken.http is Http.HTTP2 and not spoken.tls):  # the name is a guess; with TLS, ALPN tells
        return Http.HTTP2
    return Http.NEGOTIATED
