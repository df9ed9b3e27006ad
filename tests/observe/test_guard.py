"""Who may ask what, and what is a request for the tunnel itself."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address

import pytest
from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.test import tutils

from kubetunnel.core.settings import Settings
from kubetunnel.core.vips import Address
from kubetunnel.observe.guard import Guard
from kubetunnel.observe.replies import Refused
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.own_names import OwnNames
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.virtual_destinations import VirtualDestinations
from tests.proxy.playbook import make_context

TOKEN = "t0ken"
ORIGIN = "http://localhost:8080"


def client(peer: str = "127.0.0.1", here: str = "127.0.0.1") -> Client:
    return Client(peername=(peer, 40000), sockname=(here, 8080), timestamp_start=1.0)


def request(method: str = "GET", **headers: str) -> http.Request:
    made = tutils.treq(method=method.encode(), host="", port=0, scheme=b"http", headers=http.Headers())
    made.headers["host"] = "localhost:8080"
    for name, value in headers.items():
        made.headers[name.replace("_", "-")] = value
    return made


def verdict(made: http.Request, *, peer: str = "127.0.0.1", is_public: bool = False, guard: Guard | None = None) -> str:
    try:
        (guard or Guard(TOKEN)).check(client(peer), made, is_public=is_public)
    except Refused as refused:
        return refused.reason
    return "ok"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "ok"),
        ({"origin": ORIGIN}, "ok"),
        ({"origin": "HTTP://LOCALHOST:8080"}, "ok"),
        ({"origin": "http://localhost:3000"}, "ForeignOrigin"),
        ({"origin": "https://localhost:8080"}, "ForeignOrigin"),
        ({"origin": "http://evil.example"}, "ForeignOrigin"),
        ({"origin": "null"}, "ForeignOrigin"),
        ({"sec_fetch_site": "cross-site"}, "ForeignOrigin"),
        ({"sec_fetch_site": "same-site"}, "ForeignOrigin"),  # another port of localhost
        ({"sec_fetch_site": "same-origin"}, "ok"),
    ],
)
def test_reading(headers: dict[str, str], expected: str) -> None:
    assert verdict(request(**headers)) == expected


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH", "BREW"])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x_kube_tunnel_token": TOKEN, "origin": ORIGIN}, "ok"),
        ({"x_kube_tunnel_token": TOKEN}, "OriginMissing"),
        ({"origin": ORIGIN}, "TokenMissing"),
        ({"x_kube_tunnel_token": "T0KEN", "origin": ORIGIN}, "TokenWrong"),
        ({"x_kube_tunnel_token": "", "origin": ORIGIN}, "TokenMissing"),
        ({"x_kube_tunnel_token": "t\u00f6ken", "origin": ORIGIN}, "TokenWrong"),
        ({"x_kube_tunnel_token": TOKEN, "origin": "http://evil.example"}, "ForeignOrigin"),
    ],
)
def test_changing(method: str, headers: dict[str, str], expected: str) -> None:
    assert verdict(request(method, **headers)) == expected


def test_a_token_that_is_no_text() -> None:
    made = request("POST", origin=ORIGIN)
    made.headers.fields += ((b"x-kube-tunnel-token", b"t\xff"),)
    assert verdict(made) == "TokenWrong"


def test_a_token_of_its_own_for_each_start() -> None:
    assert Guard().token != Guard().token
    assert len(Guard().token) >= 32


@pytest.mark.parametrize("peer", ["10.0.0.9", "192.168.1.5", "fe80::1%eth0", "2001:db8::1"])
def test_other_machines_see_what_monitoring_needs(peer: str) -> None:
    assert verdict(request(), peer=peer) == "TokenMissing"
    assert verdict(request(), peer=peer, is_public=True) == "ok"
    assert not Guard(TOKEN).shows_all(client(peer), request())
    assert Guard(TOKEN).shows_all(client(peer), request(x_kube_tunnel_token=TOKEN))
    assert verdict(request(x_kube_tunnel_token=TOKEN), peer=peer) == "ok"
    assert verdict(request(), peer=peer, guard=Guard(TOKEN, open_to_others=True)) == "ok"
    assert verdict(request("POST", origin=ORIGIN), peer=peer, guard=Guard(TOKEN, open_to_others=True)) != "ok"


def test_the_proxys_credentials_are_asked_for_but_by_probes() -> None:
    guard = Guard(TOKEN, permits=lambda made: made.headers.get("authorization") == "Basic x")
    assert verdict(request(), guard=guard) == "Unauthenticated"
    assert verdict(request(authorization="Basic x"), guard=guard) == "ok"
    guard.check(client(), request(), is_public=True, is_probe=True)
    assert not guard.shows_all(client(), request())
    assert guard.shows_all(client(), request(authorization="Basic x"))


class Book:
    """Virtual IPs in 127.64.0.0/16 and 10.8.0.0/24, two of them somebody's."""

    def name_of(self, address: Address) -> str | None:
        known = (ip_address("127.64.0.1"), ip_address("10.8.0.7"))
        return "api.shop.svc.cluster.local" if address in known else None

    def covers(self, address: Address) -> bool:
        return isinstance(address, IPv4Address) and str(address).startswith(("127.64.", "10.8.0."))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LocalHost.:8080", True),
        ("localhost:9000", True),
        ("kube-tunnel.internal", True),
        ("127.0.0.1:8080", True),
        ("127.1.2.3", True),
        ("[::1]:8080", True),
        ("10.9.0.2", True),  # where the connection came to
        ("10.9.0.3", False),
        ("169.254.169.254", False),
        ("127.64.0.1", False),  # a virtual IP
        ("127.64.0.2", False),  # nobody's, which has a refusal of its own
        ("api.shop", False),
        ("localhost.evil.example", False),
        ("evil.example", False),
        ("localtest.me", False),  # resolves to 127.0.0.1
        ("", False),
        ("localhost:x", False),
        ("user@localhost", False),
        ("[::1", False),
    ],
)
@pytest.mark.parametrize("path", ["/health", "/"])
def test_own_names(host: str, expected: bool, path: str) -> None:
    assert is_own(request(), host) == expected


def is_own(made: http.Request, host: str = "localhost", *, destination: bool = False, sni: str | None = None) -> bool:
    settings = Settings()
    virtual = VirtualDestinations()
    virtual.configure(Book())
    names = OwnNames(Router(settings, Clusters(settings)), virtual)
    context = make_context()
    context.client.sockname = ("10.9.0.2", 8080)
    context.client.sni = sni
    if destination:
        context.server.address = ("api.shop.svc.cluster.local", 80)
    made.headers["host"] = host
    return names.has(context, made)


def test_a_destination_that_is_known_is_no_own_name() -> None:
    assert not is_own(request(), destination=True)
    assert not is_own(request(), sni="api.shop.svc.cluster.local")
    assert is_own(request(), sni="localhost")
    assert not is_own(request("CONNECT"))


def test_a_proxy_request_for_another_port_is_none_of_ours() -> None:
    made = tutils.treq(host="localhost", port=3000, scheme=b"http", authority=b"localhost:3000")
    assert not is_own(made, "localhost:3000")
    made = tutils.treq(host="localhost", port=8080, scheme=b"http", authority=b"localhost:8080")
    assert is_own(made, "localhost:8080")
