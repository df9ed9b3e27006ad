"""Who may ask for a Service at its virtual IP by a name that is not the Service's."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from kubetunnel.core.errors import NotAServiceName
from kubetunnel.core.names import Name, PodAddressName, PodName, ServiceName
from kubetunnel.core.rebinding import check_host

ZONES = ("cluster.local", "prod.local")
API = ServiceName("api", "shop", "cluster.local")
# as browsers send them with a page's own fetch() over http
CHROME = ("Host", "Connection", "User-Agent", "Accept", "Referer", "Accept-Encoding", "Accept-Language")
SECURE_CHROME = ("Host", "Sec-Fetch-Site", "Sec-Fetch-Mode")
WEBSOCKET = ("Host", "Upgrade", "Origin", "Sec-WebSocket-Key")
CURL = ("Host", "User-Agent", "Accept")


def refused(host: str, fields: tuple[str, ...] = CHROME, name: Name = API, own: tuple[str, ...] = ()) -> bool:
    try:
        check_host(host, fields, name, zones=ZONES, own=own)
    except NotAServiceName as e:
        assert "rebinding" in e.detail
        return True
    return False


@pytest.mark.parametrize("fields", [CHROME, SECURE_CHROME, WEBSOCKET, ("ACCEPT-LANGUAGE",)])
def test_a_page_of_a_foreign_name(fields: tuple[str, ...]) -> None:
    assert refused("evil.example", fields)
    assert refused("evil.example:8080", fields)
    assert not refused("api.shop.svc.cluster.local", fields)


@pytest.mark.parametrize("fields", [CURL, (), ("Host", "Cookie", "Authorization", "Sec-WebSocket-Key")])
def test_a_program_may_ask_for_a_virtual_host(fields: tuple[str, ...]) -> None:
    assert not refused("evil.example", fields)


@pytest.mark.parametrize(
    "host",
    [
        "", "api", "api.shop", "api.shop.svc", "API.Shop.SVC.Cluster.Local.", "api.shop.svc.cluster.local:8080",
        "db.other.svc.prod.local", "db-0.db.shop.svc.cluster.local", "10.8.0.9", "10.8.0.9:8080", "[fd00:8::9]:80",
        "localhost:3000", "api.other.svc",
    ],
)  # fmt: skip
def test_names_that_no_page_of_others_can_have(host: str) -> None:
    assert not refused(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.com", "evil.com.", "api.dev", "api.shop.evil.com", "api.shop.svc.evil.com", "evilcluster.local",
        "api.shop.svc.cluster.local.evil.com", "bad host.example", "evil.example:80:80",
    ],
)  # fmt: skip
def test_names_that_they_can_have(host: str) -> None:
    """Also where it looks like the short form of another Service, `api` in the Namespace `dev`."""
    assert refused(host)


def test_pods_have_short_forms_too() -> None:
    pod = PodName("db-0", ServiceName("db", "shop", "cluster.local"))
    assert not refused("db-0.db.shop", name=pod)
    assert refused("db-0.db.other", name=pod)
    by_address = PodAddressName(IPv4Address("10.244.0.16"), "shop", "cluster.local")
    assert not refused("10-244-0-16.shop.pod.cluster.local", name=by_address)
    assert refused("10-244-0-16.shop.pod", name=by_address)


def test_hosts_that_the_user_vouches_for() -> None:
    own = ("shop.example", "*.Staging.example")
    assert not refused("shop.example", own=own)
    assert not refused("a.b.staging.example:8080", own=own)
    for other in ("www.shop.example", "staging.example", "evilstaging.example"):
        assert refused(other, own=own)
