"""The hooks of mitmproxy, for routing: what a connection speaks, where a request goes, what of its bodies is kept."""

from __future__ import annotations

import logging

from mitmproxy import ctx, http
from mitmproxy.connection import Client
from mitmproxy.proxy import layer
from mitmproxy.proxy.layers.http import HTTPMode

from kubetunnel.core.errors import KubeTunnelError, NotAServiceName
from kubetunnel.core.names import split_host_port
from kubetunnel.core.ports import PortRequest
from kubetunnel.proxy import bodies
from kubetunnel.proxy.http_layer import NO_HOST, KubeHttpLayer
from kubetunnel.proxy.mode import KubeMode
from kubetunnel.proxy.refusals import refusal
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.upstreams import Upstreams

logger = logging.getLogger(__name__)

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Gate:
    """Routes what comes in at the listening port; the first of our addons to see a flow."""

    name = "kubetunnel_gate"

    def __init__(self, router: Router, upstreams: Upstreams) -> None:
        self._router = router
        self._upstreams = upstreams

    def client_connected(self, client: Client) -> None:
        handler = ctx.master.addons.get("proxyserver").connections.get(client.id)
        if handler is not None:
            self._upstreams.attach(handler)

    def next_layer(self, data: layer.NextLayer) -> None:
        context = data.context
        if isinstance(context.client.proxy_mode, KubeMode) and not context.layers:
            data.layer = KubeHttpLayer(context, HTTPMode.regular, self._upstreams)

    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        if not flow.live or flow.response or flow.error or flow.is_replay:
            return  # read from a file, or settled already
        in_kube_mode = isinstance(flow.client_conn.proxy_mode, KubeMode)
        if not in_kube_mode and not self._router.owns(flow.request.pretty_host):
            return
        try:
            await self._route(flow)
        except KubeTunnelError as e:
            logger.info("%s %s: %s", flow.request.method, flow.request.pretty_host, e)
            flow.response = refusal(e, flow.request)
        if in_kube_mode or flow.response is None:
            # mitmproxy's own HTTP layer does not take a stream and an answer together
            bodies.stream_request(flow)

    async def _route(self, flow: http.HTTPFlow) -> None:
        """Sets host and port to the Service's. Raises what the name, the cluster or the port are refused for."""
        request = flow.request
        host, port, explicit = _requested(request)
        name = await self._router.parse(host)
        destination = await self._router.find(name, PortRequest(port, explicit=explicit, scheme=request.scheme))
        # `.data`: the Host header stays as the client wrote it
        request.data.host, request.data.port = str(name), destination.port
        flow.metadata["kube"] = {"service": str(name), "port": destination.port}

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        if flow.live and "kube" in flow.metadata:
            bodies.stream_response(flow)

    def request(self, flow: http.HTTPFlow) -> None:
        bodies.keep_copy(flow.request)

    def response(self, flow: http.HTTPFlow) -> None:
        if flow.response:
            bodies.keep_copy(flow.response)


def _requested(request: http.Request) -> tuple[str, int, bool]:
    """Host, port, and whether the client named the port."""
    if request.host == NO_HOST:
        raise NotAServiceName(
            "The request has no Host header, so it names no Service. HTTP/1.1 asks for one (RFC 9110 section 7.2).",
            command="curl -H 'Host: SERVICE.NAMESPACE.svc.cluster.local' http://127.0.0.1:8080/",
        )
    host, port = split_host_port(request.host_header or request.host)
    return host, port or _DEFAULT_PORTS[request.scheme], port is not None
