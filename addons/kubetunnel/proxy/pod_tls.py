"""TLS between us and the pods: the Service's name as SNI, verified only where the user gave a CA file for it.

Pods mostly have certificates that nobody outside signed, and the way to them is the API server's TLS. mitmproxy's own
settings hold for upstreams that are no pods.
"""

from __future__ import annotations

from typing import Any

from mitmproxy import ctx
from mitmproxy.connection import Server
from mitmproxy.net import tls as net_tls
from mitmproxy.tls import TlsData
from OpenSSL import SSL

from kubetunnel.core.spoken import Http
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.upstreams import Upstreams

_ALPN_OFFERS = {Http.HTTP1: [b"http/1.1"], Http.HTTP2: [b"h2"], Http.NEGOTIATED: [b"h2", b"http/1.1"]}


class PodTls:
    """Makes the TLS connections to pods."""

    name = "kubetunnel_pod_tls"

    def __init__(self, router: Router, upstreams: Upstreams) -> None:
        self._router = router
        self._upstreams = upstreams

    def tls_start_server(self, data: TlsData) -> None:
        server = data.conn
        opened = self._upstreams.opened(server)
        if opened is None or not isinstance(server, Server) or data.ssl_conn is not None:
            return
        destination, client = opened.destination, data.context.client
        settings, name = destination.settings, str(destination.name)
        server.sni = name
        version = self._router.negotiable_http_version(destination, client_http2=client.alpn == b"h2")
        if client.alpn is None and client.alpn_offers and version is not Http.HTTP2:
            server.alpn_offers = tuple(client.alpn_offers)  # is being negotiated; the client gets what the pod takes
        else:
            server.alpn_offers = _ALPN_OFFERS[version]
        context = net_tls.create_proxy_server_context(
            method=net_tls.Method.TLS_CLIENT_METHOD,
            min_version=net_tls.Version[ctx.options.tls_version_server_min],
            max_version=net_tls.Version[ctx.options.tls_version_server_max],
            cipher_list=None,
            ecdh_curve=None,
            verify=net_tls.Verify.VERIFY_PEER if settings.ca_file else net_tls.Verify.VERIFY_NONE,
            ca_path=None,
            ca_pemfile=settings.ca_file,
            client_cert=settings.client_certificate,
            legacy_server_connect=False,
        )
        connection = SSL.Connection(context)
        connection.set_tlsext_host_name(name.encode())
        if settings.ca_file:
            _check_name(connection, name)
        if server.alpn_offers:
            connection.set_alpn_protos(list(server.alpn_offers))
        connection.set_connect_state()
        data.ssl_conn = connection


def _check_name(connection: SSL.Connection, name: str) -> None:
    """The certificate has to be for this name. pyOpenSSL has no public call for it; mitmproxy does it this way, too."""
    library: Any = SSL._lib  # type: ignore[attr-defined]  # noqa: SLF001
    parameters = library.SSL_get0_param(connection._ssl)  # noqa: SLF001
    if library.X509_VERIFY_PARAM_set1_host(parameters, name.encode(), len(name)) != 1:
        raise ValueError(f"OpenSSL takes no name {name!r} to verify")
