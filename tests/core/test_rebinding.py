"""Which Hosts of a browser's request may be those of a stranger's page."""

from __future__ import annotations

import pytest

from kubetunnel.core.rebinding import foreign_host

ZONES = ("cluster.local", "Prod.local.")
# as browsers send them with a page's own fetch() over http
CHROME = ("Host", "Connection", "User-Agent", "Accept", "Referer", "Accept-Encoding", "Accept-Language")
SECURE_CHROME = ("Host", "Sec-Fetch-Site", "Sec-Fetch-Mode")
WEBSOCKET = ("Host", "Upgrade", "Origin", "Sec-WebSocket-Key")
CURL = ("Host", "User-Agent", "Accept")


def refused(host: str, fields: tuple[str, ...] = CHROME, own: tuple[str, ...] = ()) -> bool:
    return foreign_host(host, fields, zones=ZONES, own=own) is not None


@pytest.mark.parametrize(
    "fields", [CHROME, SECURE_CHROME, WEBSOCKET, ("ACCEPT-LANGUAGE",), ("Upgrade-Insecure-Requests",), ("Referer",)]
)
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
        "", "api", "api.shop.svc", "API.Shop.SVC.Cluster.Local.", "api.shop.svc.cluster.local:8080",
        "db.other.svc.prod.local", "db-0.db.shop.svc.cluster.local", "10.8.0.9", "10.8.0.9:8080", "[fd00:8::9]:80",
        "localhost:3000", "api.other.svc",
    ],
)  # fmt: skip
def test_names_that_no_page_of_others_can_have(host: str) -> None:
    assert not refused(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.com", "evil.com.", "api.dev", "api.shop", "API.Shop.:8080", "db-0.db.shop",
        "10-244-0-16.shop.pod", "api.shop.evil.com", "api.shop.svc.evil.com", "evilcluster.local",
        "api.shop.svc.cluster.local.evil.com", "bad host.example", "evil.example:80:80",
    ],
)  # fmt: skip
def test_names_that_they_can_have(host: str) -> None:
    """Also where it is the short form of a Service, `api` in the Namespace `dev`."""
    assert refused(host)


def test_the_host_is_told_without_its_port() -> None:
    assert foreign_host("Evil.example.:8080", CHROME, zones=ZONES, own=()) == "evil.example"


def test_hosts_that_the_user_vouches_for() -> None:
    own = ("shop.example", "*.Staging.example", "api.shop")
    assert not refused("api.shop", own=own)
    assert not refused("shop.example", own=own)
    assert not refused("a.b.staging.example:8080", own=own)
    for other in ("www.shop.example", "staging.example", "evilstaging.example"):
        assert refused(other, own=own)
