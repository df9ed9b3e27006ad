"""What a port speaks, row by row."""

from __future__ import annotations

import pytest

from kubetunnel.core.catalog import ServicePort
from kubetunnel.core.spoken import Http, Spoken, choose_http, spoken_at


@pytest.mark.parametrize(
    ("number", "name", "app_protocol", "tls", "http"),
    [
        (80, "", None, False, None),
        (80, "http", None, False, None),
        (443, "", None, True, None),
        (8443, "", None, True, None),
        (9000, "https", None, True, None),
        (9000, "https-admin", None, True, None),
        (9000, "admin-https", None, True, None),
        (9090, "grpc", None, False, Http.HTTP2),
        (9090, "grpc-web", None, False, None),
        (9443, "grpcs", None, True, Http.HTTP2),
        (9000, "h2c", None, False, Http.HTTP2),
        (80, "http", "kubernetes.io/h2c", False, Http.HTTP2),
        (443, "https", "http", False, Http.HTTP1),
        (80, "", "HTTPS", True, Http.NEGOTIATED),
        (80, "", "grpc", False, Http.HTTP2),
        (443, "", "grpc", True, Http.HTTP2),
        (80, "", "kubernetes.io/ws", False, Http.HTTP1),
        (80, "", "kubernetes.io/wss", True, Http.HTTP1),
        (5432, "", "postgresql", False, None),
    ],
)
def test_what_a_port_speaks(number: int, name: str, app_protocol: str | None, tls: bool, http: Http | None) -> None:
    spoken = spoken_at(ServicePort(port=number, name=name, app_protocol=app_protocol))
    assert (spoken.tls, spoken.http) == (tls, http)


SILENT = Spoken(tls=False)
HINTED = Spoken(tls=False, http=Http.HTTP2)
SAYS_HTTP1 = Spoken(tls=False, http=Http.HTTP1, binding=True)
SAYS_HTTP2 = Spoken(tls=False, http=Http.HTTP2, binding=True)
HINTED_IN_TLS = Spoken(tls=True, http=Http.HTTP2)
SAYS_WEBSOCKET = Spoken(tls=False, http=Http.HTTP1, binding=True, websocket=True)
SAYS_HTTPS = Spoken(tls=True, http=Http.NEGOTIATED, binding=True)


@pytest.mark.parametrize(
    ("spoken", "client_http2", "chosen"),
    [
        (SILENT, False, Http.HTTP1),
        (SILENT, True, Http.NEGOTIATED),
        (HINTED, False, Http.HTTP1),
        (HINTED, True, Http.HTTP2),
        (HINTED_IN_TLS, True, Http.NEGOTIATED),
        (SAYS_HTTP1, True, Http.HTTP1),
        (SAYS_HTTP2, False, Http.HTTP2),
        (SAYS_HTTPS, False, Http.HTTP1),
        (SAYS_HTTPS, True, Http.NEGOTIATED),
    ],
)
def test_which_http_to_speak(spoken: Spoken, client_http2: bool, chosen: Http) -> None:
    assert choose_http(spoken, client_http2=client_http2) is chosen


def test_the_users_switches_win() -> None:
    assert choose_http(SAYS_HTTP1, client_http2=False, force_http2=True) is Http.HTTP2
    assert choose_http(SAYS_WEBSOCKET, client_http2=False, force_http2=True) is Http.HTTP1
    assert choose_http(SILENT, client_http2=True, disable_fallback=True) is Http.HTTP2
