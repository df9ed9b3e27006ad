"""Which ranges and addresses are chosen; what is refused."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsetup.errors import BadWishError, RangeTakenError
from netsetup.found import Found, FoundLink, FoundResolver, claim_on
from netsetup.layout import Wanted, choose_layout, reverse_zones
from tests.netsetup.machines import laptop


def ranges(*prefixes: str) -> Wanted:
    return Wanted(ip_ranges=tuple(map(ip_network, prefixes)))


def tun(address: str) -> FoundLink:
    return FoundLink("tun0", "", (ip_interface(address),))


def test_a_free_machine_gets_the_defaults() -> None:
    layout = choose_layout(Wanted(), laptop())
    assert (str(layout.dns_address), str(layout.proxy_address)) == ("10.8.0.1/24", "10.8.0.2/24")
    assert layout.ranges == (ip_network("10.8.0.0/24"), ip_network("10.9.0.0/24"))
    assert layout.skipped == ()


def test_the_dns_port_is_no_responders_of_mdns() -> None:
    found = replace(laptop(), udp_ports=frozenset({5353, 5354}))
    assert choose_layout(Wanted(), found).dns_port == 5355
    assert choose_layout(Wanted(port=5355), found).dns_port == 5356
    assert choose_layout(Wanted(dns_port=5400), replace(found, udp_ports=frozenset({5400}))).dns_port == 5400  # a wish


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (laptop(tun("10.8.0.6/24")), "10.8.0.0/24 is taken by the address 10.8.0.6/24 of tun0"),
        (laptop(tun("10.8.0.6/32")), "10.8.0.0/24 is taken by the address 10.8.0.6/32 of tun0"),
        (laptop(tun("10.8.3.6/16")), "10.8.0.0/24 is taken by the address 10.8.3.6/16 of tun0"),
        (laptop(routes=("10.8.0.0/15",)), "10.8.0.0/24 is taken by the route 10.8.0.0/15 to tun0"),
        (laptop(routes=("10.8.0.128/25",)), "10.8.0.0/24 is taken by the route 10.8.0.128/25 to tun0"),
        (
            laptop(resolver=FoundResolver("resolv.conf", ("fe80::1%wlan0", "10.8.0.53"))),
            "10.8.0.0/24 is taken by the nameserver 10.8.0.53",
        ),
    ],
)
def test_a_taken_range_is_passed_over(found: Found, why: str) -> None:
    layout = choose_layout(ranges("10.8.0.0/24", "10.80.0.0/16"), found)
    assert str(layout.dns_address) == "10.80.0.1/16"
    assert layout.skipped == (why,)


@pytest.mark.parametrize(
    "routes",
    [
        ("0.0.0.0/1", "128.0.0.0/1"),  # OpenVPN's redirect-gateway
        ("10.80.0.0/24",),  # begins with the same characters
        ("10.7.0.0/16", "10.10.0.0/16"),
        ("2000::/3", "fd00::/8"),
    ],
)
def test_what_does_not_lie_in_the_ranges_takes_nothing(routes: tuple[str, ...]) -> None:
    assert choose_layout(Wanted(), laptop(routes=routes)).skipped == ()


def test_no_range_is_free() -> None:
    with pytest.raises(RangeTakenError) as refusal:
        choose_layout(Wanted(), laptop(tun("10.9.0.5/24"), routes=("10.0.0.0/8",)))
    assert "10.8.0.0/24 is taken by the route 10.0.0.0/8 to tun0; 10.9.0.0/24 is taken by the " in str(refusal.value)
    assert "--ip-ranges" in str(refusal.value)


def test_addresses_of_ones_own() -> None:
    layout = choose_layout(Wanted(dns_ip=ip_address("10.9.0.1")), laptop())
    assert (str(layout.dns_address), str(layout.proxy_address)) == ("10.9.0.1/24", "10.8.0.1/24")
    layout = choose_layout(Wanted(proxy_ip=ip_address("10.8.0.1")), laptop())
    assert (str(layout.dns_address), str(layout.proxy_address)) == ("10.8.0.2/24", "10.8.0.1/24")
    layout = choose_layout(Wanted(proxy_ip=ip_address("172.31.0.9")), laptop())
    assert str(layout.proxy_address) == "172.31.0.9/32"
    with pytest.raises(RangeTakenError, match=r"10\.8\.0\.1 lies in the route 10\.8\.0\.0/16"):
        choose_layout(Wanted(dns_ip=ip_address("10.8.0.1")), laptop(routes=("10.8.0.0/16",)))


def test_ipv6() -> None:
    layout = choose_layout(ranges("fd00:8::/64", "fd00:9::/64"), laptop(routes=("fd00:8::/48",)))
    assert (str(layout.dns_address), str(layout.proxy_address)) == ("fd00:9::1/64", "fd00:9::2/64")


def test_the_first_and_the_last_port_are_ports() -> None:
    assert choose_layout(Wanted(port=1, dns_port=65535), laptop()).dns_port == 65535


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (ranges(), "no range"),
        (ranges("10.8.0.0/30"), "no room"),
        (ranges("10.8.0.0/24", "10.8.0.0/16"), "overlap"),
        (ranges("10.8.0.0/24", "fd00:8::/64"), "all IPv4 or all IPv6"),
        (ranges("127.0.0.0/8"), "not for hosts"),
        (ranges("224.0.0.0/8"), "not for hosts"),
        (ranges("0.0.0.0/0"), "not for hosts"),
        (Wanted(dns_ip=ip_address("10.8.0.0")), "the first or the last"),
        (Wanted(proxy_ip=ip_address("10.8.0.255")), "the first or the last"),
        (Wanted(dns_ip=ip_address("fd00::1")), "another IP version"),
        (Wanted(dns_ip=ip_address("127.0.0.1")), "cannot be a link's"),
        (Wanted(dns_ip=ip_address("10.8.0.9"), proxy_ip=ip_address("10.8.0.9")), "the same"),
        (Wanted(port=0), "not within"),
        (Wanted(dns_port=65536), "not within"),
        (Wanted(port=5353), "both have port"),
        (Wanted(zones=()), "no zone"),
        (Wanted(zones=("../../etc/passwd",)), "not a DNS zone"),
        (Wanted(zones=("--help",)), "not a DNS zone"),
        (Wanted(dns_link="a/b"), "not a link's name"),
        (Wanted(dns_link="-x"), "not a link's name"),
        (Wanted(dns_link="kube-dns-of-the-shop"), "not a link's name"),
        (Wanted(dns_link="kube-proxy0"), "same name"),
    ],
)
def test_wishes_that_make_no_sense(wanted: Wanted, why: str) -> None:
    with pytest.raises(BadWishError, match=why):
        choose_layout(wanted, laptop())


prefixes = st.builds(
    lambda address, length: ip_network((address, length), strict=False),
    st.integers(min_value=0x0A000000, max_value=0x0A0FFFFF),
    st.integers(min_value=8, max_value=29),
)


@given(st.lists(prefixes, min_size=1, max_size=4), st.lists(prefixes, max_size=4))
def test_nothing_of_somebody_else_is_ever_taken(wanted: list[IPv4Network], taken: list[IPv4Network]) -> None:
    found = laptop(routes=tuple(map(str, taken)))
    try:
        layout = choose_layout(Wanted(ip_ranges=tuple(wanted)), found)
    except BadWishError:
        assert any(a.overlaps(b) for i, a in enumerate(wanted) for b in wanted[i + 1 :])
        return
    except RangeTakenError:
        assert all(any(a.overlaps(b) for b in taken) for a in wanted)
        return
    assert not any(a.overlaps(b) for a in layout.ranges for b in taken)
    assert layout.dns_address.ip != layout.proxy_address.ip
    for address in (layout.dns_address, layout.proxy_address):
        assert address.network == layout.ranges[0]
        assert address.ip not in (layout.ranges[0][0], layout.ranges[0][-1])
    assert all(claim_on(each, found) is None for each in layout.ranges)


@pytest.mark.parametrize(
    ("prefix", "zones"),
    [
        ("10.8.0.0/24", ("0.8.10.in-addr.arpa",)),
        ("10.8.0.0/16", ("8.10.in-addr.arpa",)),
        ("10.0.0.0/8", ("10.in-addr.arpa",)),
        ("172.16.0.0/15", ("16.172.in-addr.arpa", "17.172.in-addr.arpa")),
        ("10.8.0.8/31", ("8.0.8.10.in-addr.arpa", "9.0.8.10.in-addr.arpa")),
        ("fd00:8::/32", ("8.0.0.0.0.0.d.f.ip6.arpa",)),
        ("fd00:8::/31", ("8.0.0.0.0.0.d.f.ip6.arpa", "9.0.0.0.0.0.d.f.ip6.arpa")),
    ],
)
def test_reverse_zones(prefix: str, zones: tuple[str, ...]) -> None:
    assert reverse_zones(ip_network(prefix)) == zones
