"""Machines as they may be found, for the plan's tests."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

from netsetup.found import Found, FoundLink, FoundResolver, FoundRoute

LO = FoundLink("lo", "00:00:00:00:00:00", (ip_interface("127.0.0.1/8"), ip_interface("::1/128")))
WLAN = FoundLink("wlan0", "5c:80:b6:00:00:01", (ip_interface("192.168.1.20/24"),))
DEFAULT_ROUTE = FoundRoute(ip_network("0.0.0.0/0"), "wlan0")
RESOLV_CONF = b"nameserver 192.168.1.1\n"


def laptop(
    *links: FoundLink,
    routes: tuple[str, ...] = (),
    resolver: FoundResolver | None = None,
    redirector: str | None = "nft",
    aliases: bool = False,
) -> Found:
    return Found(
        (LO, WLAN, *links),
        (DEFAULT_ROUTE, *(FoundRoute(ip_network(route), "tun0") for route in routes)),
        resolver or FoundResolver("resolv.conf", ("192.168.1.1",), resolv_conf=RESOLV_CONF),
        redirector,
        aliases,
    )
