"""What an address stands for: a name, every name, or nothing."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_address

import pytest
from mitmproxy.connection import Client

from kubetunnel.core.errors import NotAServiceName
from kubetunnel.core.vips import VirtualIPs
from kubetunnel.proxy.virtual_destinations import VirtualDestinations
from tests.proxy.playbook import make_context

API = "api.shop.svc.cluster.local"
SHARED = ip_address("10.8.0.2")
FREE = "10.8.0.77"

BOOK = VirtualIPs([IPv4Network("10.8.0.0/24")], reserved=[SHARED])
ADDRESS = str(BOOK.address_of(API))


class Accepted:
    """A socket that was accepted at an address, with no redirection."""

    family = 2

    def __init__(self, address: str, port: int) -> None:
        self.name = address, port

    def getsockname(self) -> tuple[str, int]:
        return self.name

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        raise FileNotFoundError(2, "No such file or directory")


@pytest.fixture
def client() -> Client:
    """Connected to port 8080, as far as mitmproxy knows."""
    return make_context().client


@pytest.fixture
def virtual() -> VirtualDestinations:
    virtual = VirtualDestinations()
    virtual.configure(BOOK, shared=[SHARED])
    return virtual


def test_a_virtual_ip_is_its_names(virtual: VirtualDestinations, client: Client) -> None:
    assert virtual.arrived(client, Accepted(ADDRESS, 5432)) == (API, 5432)
    assert client.sockname == (ADDRESS, 5432)
    assert virtual.is_certain(client)
    assert virtual.port(client) is None


def test_a_virtual_ip_that_is_nobodys_is_told_as_it_is(virtual: VirtualDestinations, client: Client) -> None:
    assert FREE != ADDRESS
    assert virtual.arrived(client, Accepted(FREE, 5432)) == (FREE, 5432)
    with pytest.raises(NotAServiceName, match=f"{FREE} is in the range of the virtual IPs"):
        virtual.host(FREE)


def test_the_shared_address_tells_the_port(virtual: VirtualDestinations, client: Client) -> None:
    assert virtual.arrived(client, Accepted(str(SHARED), 5432)) is None
    assert virtual.port(client) == 5432
    assert not virtual.is_certain(client)


def test_the_tunnels_own_port_at_the_shared_address_is_the_plain_one(
    virtual: VirtualDestinations, client: Client
) -> None:
    assert virtual.arrived(client, Accepted(str(SHARED), client.sockname[1])) is None
    assert virtual.port(client) is None


def test_other_addresses_are_nothing_to_us(virtual: VirtualDestinations, client: Client) -> None:
    before = client.sockname
    assert virtual.arrived(client, Accepted("127.0.0.1", 8080)) is None
    assert client.sockname == before
    assert virtual.port(client) is None


def test_without_virtual_ips_no_socket_is_asked(client: Client) -> None:
    class Unasked(Accepted):
        def getsockname(self) -> tuple[str, int]:
            raise AssertionError("asked")

    assert VirtualDestinations().arrived(client, Unasked(ADDRESS, 80)) is None


def test_a_listener_may_stand_in_for_another_port(client: Client) -> None:
    virtual = VirtualDestinations()
    virtual.configure(BOOK, service_port=lambda address, port: port - 10_000 if str(address) == ADDRESS else port)
    assert virtual.arrived(client, Accepted(ADDRESS, 10_080)) == (API, 80)


@pytest.mark.parametrize("host", [API, "api", "10.9.0.1", "::1", "fd00::a", str(SHARED), "", "10.8.0", "1e.f", "[::1]"])
def test_hosts_that_are_no_virtual_ips_stay(virtual: VirtualDestinations, host: str) -> None:
    assert virtual.host(host) == host
    assert not virtual.is_a_names(host)


def test_a_literal_virtual_ip_is_its_name(virtual: VirtualDestinations) -> None:
    assert virtual.host(ADDRESS) == API
    assert virtual.is_a_names(ADDRESS)
    assert virtual.host(f"::ffff:{ADDRESS}") == API
    assert virtual.is_a_names(f"::ffff:{ADDRESS}")
    assert not virtual.is_a_names(FREE), "it may be somebody's in another network"
    assert not VirtualDestinations().is_a_names(ADDRESS)
    assert VirtualDestinations().host(ADDRESS) == ADDRESS
