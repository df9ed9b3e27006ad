"""Opens an upstream, and gives it the layer for what it speaks then."""

from __future__ import annotations

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import RegisterHttpConnection

from kubetunnel.proxy.http.h1_client import KubeHttp1Client
from kubetunnel.proxy.http.h2_client import KubeHttp2Client

NO_HTTP2 = "the pod takes no HTTP/2 by ALPN"


class KubeHttpClient(layer.Layer):
    """Reports with `RegisterHttpConnection`. An upstream that is open already is taken as it is."""

    child_layer: layer.Layer

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        server = self.context.server
        error = None if server.connected else (yield commands.OpenConnection(server))
        if error is None and server.tls and list(server.alpn_offers) == [b"h2"] and server.alpn != b"h2":
            error = NO_HTTP2
            yield commands.CloseConnection(server)
        if error is None:
            client = KubeHttp2Client if server.alpn == b"h2" else KubeHttp1Client
            self.child_layer = client(self.context)
            self._handle_event = self.child_layer.handle_event  # type: ignore[method-assign]
            yield from self.child_layer.handle_event(event)
        yield RegisterHttpConnection(server, error)
