"""The tunnel's own names: where its pages are, and no Service (the contract's section 9).

A request is the tunnel's where the user can have meant nothing else: its host is `localhost`, `kube-tunnel.internal`, a
loopback address, or the very address that the connection came to. No other host will do, so that a page of a foreign
site cannot reach the tunnel by a name of that site's that resolves to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from mitmproxy import http
from mitmproxy.proxy.context import Context

from kubetunnel.core.errors import NotAServiceName
from kubetunnel.core.names import TUNNEL_NAME, split_host_port
from kubetunnel.core.vips import Address
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.virtual_destinations import VirtualDestinations

OWN_NAMES = ("localhost", TUNNEL_NAME)


class OwnNames:
    """Tells the tunnel's own requests from those for Services."""

    def __init__(self, router: Router, virtual: VirtualDestinations) -> None:
        self._router = router
        self._virtual = virtual

    def has(self, context: Context, request: http.Request) -> bool:
        """Whether this request of a client connection of the `kube` mode is for the tunnel itself."""
        if context.server.address is not None or request.method == "CONNECT":
            return False  # a virtual IP, or a destination that was asked for by SOCKS5 or CONNECT
        is_proxy_request = bool(request.host) and not request.is_http2
        text = request.host_header or request.authority
        if is_proxy_request:
            text = f"[{request.host}]" if ":" in request.host else request.host
        host = _own_host(text)
        if host is None:
            return False
        client = context.client
        if is_proxy_request and request.port != client.sockname[1] and host != TUNNEL_NAME:
            return False  # another server on this machine, which nobody asked us to be a proxy for
        if isinstance(host, IPv4Address | IPv6Address):
            return self._is_own_address(host, client.sockname[0])
        return not (client.sni and self._router.known_name(client.sni))

    def _is_own_address(self, address: Address, arrived_at: str) -> bool:
        if not (address.is_loopback or str(address) == arrived_at):
            return False
        try:
            return self._virtual.host(str(address)) == str(address)
        except NotAServiceName:
            return False  # a virtual IP that nobody has: refused, with its own words


@lru_cache(maxsize=256)  # each request asks
def _own_host(text: str) -> str | Address | None:
    """One of the own names, or an address; None for what is neither."""
    try:
        host, _ = split_host_port(text)
    except NotAServiceName:
        return None
    host = host.lower().removesuffix(".")
    if host in OWN_NAMES:
        return host
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None
