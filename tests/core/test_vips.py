"""Virtual IPs: stable, distinct, and never those that are somebody else's."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubetunnel.core.vips import Address, NoVirtualIP, VirtualIPs

DEFAULT = (IPv4Network("10.8.0.0/24"), IPv4Network("10.9.0.0/24"))
API = "api.shop.svc.cluster.local"


def test_the_address_of_a_name_is_the_same_on_every_machine() -> None:
    """Literal addresses: another hash would move every Service of everybody at an update."""
    ips = VirtualIPs([IPv4Network("10.64.0.0/14")])
    assert ips.address_of(API) == IPv4Address("10.66.162.65")
    assert ips.address_of("db.shop.svc.cluster.local") == IPv4Address("10.64.111.90")


def test_the_case_of_a_name_does_not_count() -> None:
    ips = VirtualIPs(DEFAULT)
    assert ips.address_of(API.upper()) == ips.address_of(API)
    assert ips.name_of(ips.address_of(API)) == API
    assert dict(ips.assigned) == {API: ips.address_of(API)}


def test_fifty_thousand_names() -> None:
    ips = VirtualIPs([IPv4Network("10.64.0.0/14")])
    names = [f"service-{number}.namespace-{number % 97}.svc.cluster.local" for number in range(50_000)]
    addresses = [ips.address_of(name) for name in names]
    assert len(set(addresses)) == len(names)
    assert [ips.name_of(address) for address in addresses] == names
    again = VirtualIPs([IPv4Network("10.64.0.0/14")], known=ips.assigned)
    assert [again.address_of(name) for name in reversed(names)] == addresses[::-1]


@pytest.mark.parametrize(
    ("ranges", "reserved", "expected"),
    [
        (["10.8.0.0/30"], [], {"10.8.0.1", "10.8.0.2"}),
        (["10.8.0.0/29"], ["10.8.0.1", "10.8.0.2"], {f"10.8.0.{n}" for n in (3, 4, 5, 6)}),
        (["10.8.0.0/31"], [], {"10.8.0.0", "10.8.0.1"}),
        (["10.8.0.7/32"], [], {"10.8.0.7"}),
        (["10.8.0.0/30", "10.9.0.0/30"], [], {"10.8.0.1", "10.8.0.2", "10.9.0.1", "10.9.0.2"}),
        (["10.8.0.0/30", "10.8.0.4/30"], [], {"10.8.0.1", "10.8.0.2", "10.8.0.5", "10.8.0.6"}),  # two networks still
        (["10.8.0.0/30", "10.8.0.0/29", "10.8.0.4/30"], [], {f"10.8.0.{n}" for n in range(1, 7)}),
        (["fd00:8::/126"], [], {"fd00:8::1", "fd00:8::2", "fd00:8::3"}),
        (["fd00:8::/127"], [], {"fd00:8::", "fd00:8::1"}),
        (["fd00:8::/127", "fd00:9::/127"], ["fd00:8::1"], {"fd00:8::", "fd00:9::", "fd00:9::1"}),
    ],
)
def test_every_address_is_used_and_no_other(ranges: list[str], reserved: list[str], expected: set[str]) -> None:
    ips = VirtualIPs([ip_network(each) for each in ranges], reserved=[ip_address(each) for each in reserved])
    found = {str(ips.address_of(f"service-{number}.shop.svc.cluster.local")) for number in range(len(expected))}
    assert found == expected
    with pytest.raises(NoVirtualIP, match=r"all \d+ addresses of .* are taken.*network.ip_ranges") as refused:
        ips.address_of(API)
    assert refused.value.reason == "NotForwardable"
    assert API in str(refused.value)


def test_a_large_ipv6_range_is_not_walked() -> None:
    ips = VirtualIPs([IPv6Network("fd00:8::/64")], reserved=[IPv6Address("fd00:8::1")])
    assert ips.address_of(API) in IPv6Network("fd00:8::/64")
    assert ips.covers(IPv6Address("fd00:8::2"))
    assert not ips.covers(IPv6Address("fd00:8::1"))
    assert not ips.covers(IPv4Address("10.8.0.3"))


def test_what_is_known_stays_where_it_can() -> None:
    known = {
        "Kept.shop.svc.cluster.local": IPv4Address("10.8.0.77"),
        "second.shop.svc.cluster.local": IPv4Address("10.8.0.77"),
        "elsewhere.shop.svc.cluster.local": IPv4Address("10.10.0.5"),
        "reserved.shop.svc.cluster.local": IPv4Address("10.8.0.1"),
        "broadcast.shop.svc.cluster.local": IPv4Address("10.8.0.255"),
        "network.shop.svc.cluster.local": IPv4Address("10.8.0.0"),
    }
    ips = VirtualIPs(DEFAULT, reserved=[IPv4Address("10.8.0.1")], known=known)
    assert dict(ips.assigned) == {"kept.shop.svc.cluster.local": IPv4Address("10.8.0.77")}


def test_what_is_released_is_free() -> None:
    ips = VirtualIPs([IPv4Network("10.8.0.7/32")])
    address = ips.address_of(API)
    ips.release(API.upper())
    ips.release(API)
    assert ips.name_of(address) is None
    assert ips.address_of("db.shop.svc.cluster.local") == address


@pytest.mark.parametrize("ranges", [[], [IPv4Network("10.8.0.0/24"), IPv6Network("fd00:8::/64")]])
def test_there_must_be_a_range_of_one_version(ranges: list[IPv4Network | IPv6Network]) -> None:
    with pytest.raises(ValueError, match="virtual IPs"):
        VirtualIPs(ranges)


names = st.from_regex(r"[a-c]{1,2}\.[a-c]\.svc\.cluster\.local", fullmatch=True)


@given(st.lists(names, max_size=40), st.sets(st.integers(0, 31), max_size=20))
def test_names_and_addresses_stay_one_to_one(asked: list[str], reserved: set[int]) -> None:
    network = IPv4Network("10.8.0.0/27")
    taken: list[Address] = [network[number] for number in reserved]
    ips = VirtualIPs([network], reserved=taken)
    room = len(set(network.hosts()) - set(taken))
    first: dict[str, Address] = {}
    for name in asked:
        if name not in first and len(first) == room:
            with pytest.raises(NoVirtualIP):
                ips.address_of(name)
            continue
        address = ips.address_of(name)
        assert first.setdefault(name, address) == address
        assert address not in taken
    assert len(set(first.values())) == len(first)
    assert dict(ips.assigned) == first
    restarted = VirtualIPs([network], reserved=taken, known=first)
    assert {name: restarted.address_of(name) for name in reversed(list(first))} == first
