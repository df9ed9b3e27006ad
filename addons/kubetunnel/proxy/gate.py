"""The hooks of mitmproxy, for routing: what a connection speaks, where a request goes, what of its bodies is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

from mitmproxy import ctx, exceptions, http
from mitmproxy.connection import Client, Server
from mitmproxy.proxy import layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import ClientTLSLayer, ServerTLSLayer
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
from mitmproxy.proxy.layers.tls import parse_client_hello
from mitmproxy.proxy.mode_specs import RegularMode, ReverseMode, TransparentMode
from mitmproxy.utils import human

from kubetunnel.core.catalog import ServicePort
from kubetunnel.core.errors import KubeTunnelError, NotAServiceName, OutsideName
from kubetunnel.core.first_bytes import Protocol
from kubetunnel.core.names import PodName, ServiceName
from kubetunnel.core.ports import PortRequest
from kubetunnel.core.spoken import Http, spoken_at
from kubetunnel.proxy import bodies
from kubetunnel.proxy.connection import KubeConnection
from kubetunnel.proxy.explained import own_failure
from kubetunnel.proxy.first_bytes import FirstBytesLayer
from kubetunnel.proxy.http.layer import NO_HOST, KubeHttpLayer
from kubetunnel.proxy.limits import Limits
from kubetunnel.proxy.mode import KubeMode
from kubetunnel.proxy.outside import send_outside
from kubetunnel.proxy.own_names import OwnNames
from kubetunnel.proxy.raw.layer import RawLayer
from kubetunnel.proxy.raw.relays import Relays
from kubetunnel.proxy.refusals import refusal
from kubetunnel.proxy.refused import RefusedLayer
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.socks5 import Socks5Layer
from kubetunnel.proxy.upstreams import Upstreams, port_request
from kubetunnel.proxy.web_pages import WebPages

logger = logging.getLogger(__name__)

_PORT_HEADERS = ("X-Original-Port", "X-Forwarded-Port")
_MAX_PORT = 65535
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Gate:
    """Routes what comes in at the listening port; the first of our addons to see a flow."""

    name = "kubetunnel_gate"

    def __init__(self, router: Router, upstreams: Upstreams, relays: Relays, is_ending: Callable[[], bool]) -> None:
        self._router = router
        self._limits = Limits(lambda: router.settings)
        self._is_ending = is_ending
        self._upstreams = upstreams
        self._relays = relays
        self._virtual = upstreams.virtual
        self._own_names = OwnNames(router, upstreams.virtual)
        self._pages = WebPages(router, upstreams.virtual)

    def client_connected(self, client: Client) -> None:
        handler = ctx.master.addons.get("proxyserver").connections.get(client.id)
        if handler is not None:
            self._upstreams.attach(handler)
            self._relays.attach(handler)
            if isinstance(client.proxy_mode, KubeMode):
                accepted = handler.transports[client].writer.get_extra_info("socket")
                handler.layer.context.server.address = self._virtual.arrived(client, accepted)

    async def next_layer(self, data: layer.NextLayer) -> None:
        if data.layer:
            return
        if not isinstance(data.context.client.proxy_mode, KubeMode):
            self._as_mitmproxy_but_with_our_http(data)
            return
        if not isinstance(data, FirstBytesLayer):
            data.layer = FirstBytesLayer(data.context)  # inside of TLS that ends here
            return
        match data.protocol:
            case Protocol.SOCKS5:
                data.layer = Socks5Layer(data.context, self._upstreams, self._relays)
            case Protocol.TLS:
                data.layer = self._tls_layer(data)
            case Protocol.HTTP1 if self._is_for_a_proxy(data):
                data.layer = self._raw_layer(data.context)
            case Protocol.HTTP1:
                data.layer = self._http_layer(data.context)
            case Protocol.HTTP2:
                await self._settle_http2(data.context)
                data.layer = self._http_layer(data.context)
            case _:
                data.layer = self._raw_layer(data.context)

    def _is_for_a_proxy(self, data: FirstBytesLayer) -> bool:
        """CONNECT at a virtual IP: the Service itself is a proxy, and what follows is not HTTP."""
        return self._virtual.is_certain(data.context.client) and data.data_client().startswith(b"CONNECT ")

    def _raw_layer(self, context: Context) -> layer.Layer:
        if error := self._upstreams.take_open_error(context.server):
            return RefusedLayer(context, error, self._relays)
        return RawLayer(context, self._upstreams, self._relays)

    def _as_mitmproxy_but_with_our_http(self, data: layer.NextLayer) -> None:
        """In mitmproxy's own modes it decides what comes next; HTTP is ours there too, with the same refusals."""
        if not isinstance(data.context.client.proxy_mode, RegularMode | ReverseMode | TransparentMode):
            return
        ctx.master.addons.get("nextlayer").next_layer(data)
        above: Any = data
        name = "layer"
        while (found := getattr(above, name, None)) is not None:
            if type(found) is HttpLayer:
                found.context.layers.remove(found)
                setattr(above, name, self._http_layer(found.context, found.mode))
                return
            above, name = found, "child_layer"

    def _http_layer(self, context: Context, mode: HTTPMode | None = None) -> layer.Layer:
        mode = mode or (HTTPMode.transparent if context.server.address else HTTPMode.regular)
        return KubeHttpLayer(
            context,
            mode,
            self._upstreams,
            self._limits,
            self._upstreams.readers,
            self._relays.reset,
            lanes=self._upstreams.lanes,
            is_own=self._is_own if isinstance(context.client.proxy_mode, KubeMode) else None,
            is_ending=self._is_ending,
        )

    def _is_own(self, context: Context, request: http.Request) -> bool:
        self._pages.note_form(request)
        return self._own_names.has(context, request)

    async def _settle_http2(self, context: Context) -> None:
        """HTTP/2 with prior knowledge; also to the pod, where CONNECT or SOCKS5 opened it before this was known."""
        context.client.alpn = b"h2"
        opened = self._upstreams.opened(context.server)
        if opened is not None and context.server.connected and not context.server.tls:
            try:
                version = await self._router.http_version(opened.destination, client_http2=True)
            except KubeTunnelError as e:
                logger.info("%s:%d is spoken to in HTTP/1.1: %s", *opened.destination.address, e)
            else:
                context.server.alpn = b"h2" if version is Http.HTTP2 else None

    def _tls_layer(self, data: FirstBytesLayer) -> layer.Layer:
        context = data.context
        if context.server.address is None and (destination := self._destination_by_sni(data)):
            context.server = Server(address=destination)
            self._pages.note_sni(context.client)
            if self._virtual.port(context.client) is not None:
                return KubeConnection(context)
        if self._passes_through(context.server):
            return self._raw_layer(context)
        opened = self._upstreams.opened(context.server)
        server = context.server
        outside = self._upstreams.outside.to(context.client, server.address) if server.connected else None
        if (opened is not None and opened.destination.spoken.tls) or (outside is not None and outside.tls is not False):
            # end to end but for us: what the client offers is offered to the pod
            server_tls = ServerTLSLayer(context)
            server_tls.child_layer = ClientTLSLayer(context)
            return server_tls
        return ClientTLSLayer(context)

    def _passes_through(self, server: Server) -> bool:
        """Whether the TLS of this destination is not terminated; also where it could not be opened."""
        if (opened := self._upstreams.opened(server)) is not None:
            return opened.destination.settings.passthrough
        name = self._router.known_name(server.address[0]) if server.address else None
        if server.address is None or not isinstance(name, ServiceName | PodName):
            return False
        service = name if isinstance(name, ServiceName) else name.service
        return self._router.settings.of_service(service.service, service.namespace, server.address[1]).passthrough

    def _destination_by_sni(self, data: FirstBytesLayer) -> tuple[str, int] | None:
        """Where the SNI tells the destination before TLS ends here: the port was asked for at the shared address, or it
        is that of a Service whose TLS passes through."""
        asked_for = self._virtual.port(data.context.client)
        services = self._router.settings.services
        if asked_for is None and not any(entry.passthrough for entry in services):
            return None
        try:
            hello = parse_client_hello(data.data_client())
        except ValueError:
            return None
        if hello is None:
            raise exceptions.AddonHalt  # not whole yet; asked again with the next bytes
        name = self._router.known_name(hello.sni) if hello.sni else None
        if not isinstance(name, ServiceName | PodName):
            return None
        if asked_for is not None:
            return str(name), asked_for
        service = name if isinstance(name, ServiceName) else name.service
        for entry in services:  # the SNI names no port, so the entry does
            port = entry.port or _DEFAULT_PORTS["https"]
            if entry.fits(service.service, service.namespace, port):
                return (str(name), port) if entry.passthrough else None
        return None

    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        if not flow.live or flow.response or flow.error or flow.is_replay:
            return  # read from a file, or settled already
        in_kube_mode = isinstance(flow.client_conn.proxy_mode, KubeMode)
        host = flow.request.pretty_host
        if not in_kube_mode and not self._router.owns(host) and not self._virtual.is_a_names(host):
            return
        replays = bool(ctx.options.server_replay)
        try:
            self._pages.check(flow)
            await (self._route_by_name if replays else self._route)(flow)
        except KubeTunnelError as e:
            logger.debug("%s is refused: %s", flow.request.method, e)
            flow.response = refusal(e, flow.request)
        except Exception as e:  # supervision point: mitmproxy would log it and let the request go on
            logger.exception("Routing a request failed.")
            flow.response = refusal(own_failure(e), flow.request)
        if not replays:
            bodies.stream_request(flow)

    async def _route(self, flow: http.HTTPFlow) -> None:
        """Sets host, port and scheme to the Service's. Raises what the name, the cluster or the port is refused for."""
        request = flow.request
        if error := self._upstreams.take_open_error(flow.server_conn):
            raise error  # of a destination that was to be opened before there was a request
        if outside := self._upstreams.outside.to(flow.client_conn, flow.server_conn.address):
            send_outside(flow, outside)
            return
        host, port = self._requested(flow)
        name = await self._router.parse(self._virtual.host(host))
        # `.data`: the Host header stays as the client wrote it
        request.data.host, request.data.port = str(name), port.number
        try:
            destination = await self._router.find(name, port)
        except OutsideName as e:
            self._upstreams.outside.let(flow.client_conn, e)
            flow.metadata["kube"] = self._router.asked_for(name, port.number)
            send_outside(flow, e)
            return
        except KubeTunnelError:
            flow.metadata["kube"] = self._router.asked_for(name, port.number)
            raise
        self._upstreams.settle(flow.client_conn, destination)
        request.data.host, request.data.port = destination.address
        request.data.scheme = b"https" if destination.spoken.tls else b"http"
        flow.metadata["kube"] = self._router.asked_for(name, destination.port)

    async def _route_by_name(self, flow: http.HTTPFlow) -> None:
        """For `server_replay`: host, port and scheme as `_route` sets them, as far as the name alone tells."""
        request = flow.request
        host, asked_for = self._requested(flow)
        name, port = await self._router.parse(self._virtual.host(host)), asked_for.number
        flow.metadata["kube"] = {"service": str(name), "port": port}
        request.data.host, request.data.port = str(name), port
        if isinstance(name, ServiceName):
            settings = self._router.settings.of_service(name.service, name.namespace, port)
            if spoken_at(ServicePort(port, app_protocol=settings.app_protocol)).tls:
                request.data.scheme = b"https"

    def _requested(self, flow: http.HTTPFlow) -> tuple[str, PortRequest]:
        """Host and port that the client wants: a destination's, then by the SNI, then by `:authority` or Host."""
        request = flow.request
        address = flow.server_conn.address
        if address and isinstance(flow.client_conn.proxy_mode, KubeMode):
            return address[0], port_request(address[1])
        if request.host == NO_HOST:
            here = human.format_address(flow.client_conn.sockname)
            raise NotAServiceName(
                "The request has no Host header, so it names no Service. HTTP/1.1 asks for one (RFC 9110 section 7.2).",
                command=f"curl -H 'Host: SERVICE.NAMESPACE.svc.{self._router.settings.cluster.zone}' http://{here}/",
            )
        host, port = self._router.split_authority(request.host_header or request.authority or request.host)
        sni = flow.client_conn.sni
        if sni and self._router.known_name(sni):
            host = sni
        if (asked_for := self._virtual.port(flow.client_conn)) is not None:
            return host, port_request(asked_for)
        if (forwarded := self._forwarded_port(flow)) is not None:
            is_default = forwarded in _DEFAULT_PORTS.values()
            return host, PortRequest(forwarded, explicit=not is_default, scheme=request.scheme)
        explicit = port is not None
        return host, PortRequest(port or _DEFAULT_PORTS[request.scheme], explicit=explicit, scheme=request.scheme)

    def _forwarded_port(self, flow: http.HTTPFlow) -> int | None:
        """The port that a proxy before us says its client asked for, where it may be believed."""
        client = flow.client_conn
        if not self._router.settings.http.trust_port_headers or not ip_address(client.peername[0]).is_loopback:
            return None
        for name in _PORT_HEADERS:
            value = flow.request.headers.get(name)
            if value is None:
                continue
            digits = value.lstrip("0")
            # the length first: int() refuses thousands of digits with an error of its own
            if not (value.isascii() and value.isdigit() and 1 <= len(digits) <= 5 and int(digits) <= _MAX_PORT):
                raise NotAServiceName(f"{name} is {value[:20]!r}, which is no port: 1 to {_MAX_PORT}.")
            return int(value)
        return None

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        self._pages.refuse_again(flow)
        is_here = flow.response is not None and flow.response.raw_content is not None  # an addon's, or recorded
        if flow.live and "kube" in flow.metadata and not is_here:
            bodies.stream_response(flow)

    def request(self, flow: http.HTTPFlow) -> None:
        bodies.keep_copy(flow.request)

    def response(self, flow: http.HTTPFlow) -> None:
        if flow.response:
            bodies.keep_copy(flow.response)

    def error(self, flow: http.HTTPFlow) -> None:
        bodies.drop_copy(flow.request)
        bodies.drop_copy(flow.response)
