"""Which addresses and ranges the tunnel's network gets on this machine: what is wanted, where it is free. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_interface, ip_network

from kubetunnel.core.names import zone_is_valid
from netsetup.errors import BadWishError, RangeTakenError
from netsetup.found import Found, Interface, Network, claim_on

type Address = IPv4Address | IPv6Address

DEFAULT_RANGES: tuple[Network, ...] = (IPv4Network("10.8.0.0/24"), IPv4Network("10.9.0.0/24"))
DEFAULT_DNS_PORT = 5353
MIN_HOST_BITS = 3  # both links' addresses and some virtual IPs
MAX_LINK_NAME_CHARS = 15  # IFNAMSIZ of linux/if.h, less its end
MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asks for.

    Attributes:
        ip_ranges: prefixes for virtual IPs, all IPv4 or all IPv6; those that are free are used, the first of them
            for the links' own addresses too.
        dns_ip, proxy_ip: None for the first and the second address of the first free range.
        zones: the clusters' DNS zones.
        port: the tunnel's port; dns_port: the DNS server's. Both on loopback.
        dns_link, proxy_link: names of the links.
        forwarded: redirect also what this machine forwards for containers and other machines. The tunnel must then
            listen on the addresses where that comes in.
        search: the Namespace of which short names resolve, `api` and `api.shop`, where the resolver has a search list.
        user: who runs the tunnel; kept for display.
    """

    ip_ranges: tuple[Network, ...] = DEFAULT_RANGES
    dns_ip: Address | None = None
    proxy_ip: Address | None = None
    zones: tuple[str, ...] = ("cluster.local",)
    port: int = 8080
    dns_port: int = DEFAULT_DNS_PORT
    dns_link: str = "kube-dns0"
    proxy_link: str = "kube-proxy0"
    forwarded: bool = False
    search: str | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """What it is going to be.

    Attributes:
        dns_address, proxy_address: the links' addresses, with their prefix lengths.
        ranges: the prefixes for virtual IPs.
        skipped: why each other prefix that was wanted is not among them, in words.
        dns_port: the DNS server's: where none but the default is wanted, one that no responder of mDNS has.
    """

    dns_address: Interface
    proxy_address: Interface
    ranges: tuple[Network, ...]
    skipped: tuple[str, ...] = ()
    dns_port: int = DEFAULT_DNS_PORT


def choose_layout(wanted: Wanted, found: Found) -> Layout:
    """Picks the ranges that are nobody's, and the addresses.

    Raises:
        BadWishError: the wanted contradicts itself.
        RangeTakenError: no range is free, or an address that was asked for is not.
    """
    _check(wanted)
    claims = {prefix: claim_on(prefix, found) for prefix in wanted.ip_ranges}
    free = tuple(prefix for prefix, claim in claims.items() if claim is None)
    skipped = tuple(f"{prefix} is taken by {claim}" for prefix, claim in claims.items() if claim)
    if not free:
        raise RangeTakenError(
            f"No range is free: {'; '.join(skipped)}. Name another with --ip-ranges.",
            command="ip address; ip route show table all",
        )
    taken = {wanted.dns_ip, wanted.proxy_ip} - {None}
    hosts = (address for address in free[0].hosts() if address not in taken)
    dns_ip = _own_address(wanted.dns_ip, free, found) or next(hosts)
    proxy_ip = _own_address(wanted.proxy_ip, free, found) or next(hosts)
    return Layout(
        _with_prefix(dns_ip, free), _with_prefix(proxy_ip, free), free, skipped, _choose_dns_port(wanted, found)
    )


def reverse_zones(prefix: Network) -> tuple[str, ...]:
    """The reverse zones that a prefix consists of: of whole octets (RFC 1035 3.5), in IPv6 digits (RFC 3596 2.5)."""
    bits = 8 if prefix.version == 4 else 4
    length = -(-prefix.prefixlen // bits) * bits
    superfluous = (prefix.max_prefixlen - length) // bits
    parts = prefix.subnets(new_prefix=length)
    return tuple(".".join(part[0].reverse_pointer.split(".")[superfluous:]) for part in parts)


def _choose_dns_port(wanted: Wanted, found: Found) -> int:
    if wanted.dns_port != DEFAULT_DNS_PORT:
        return wanted.dns_port
    taken = found.udp_ports | {wanted.port}
    return next((port for port in range(DEFAULT_DNS_PORT, MAX_PORT + 1) if port not in taken), DEFAULT_DNS_PORT)


def _own_address(asked: Address | None, free: tuple[Network, ...], found: Found) -> Address | None:
    if asked is None or any(asked in prefix for prefix in free):
        return asked
    if claim := claim_on(ip_network(asked), found):
        raise RangeTakenError(f"The address {asked} lies in {claim}.", command="ip address; ip route show table all")
    return asked


def _with_prefix(address: Address, free: tuple[Network, ...]) -> Interface:
    length = next((prefix.prefixlen for prefix in free if address in prefix), address.max_prefixlen)
    return ip_interface(f"{address}/{length}")


def _check(wanted: Wanted) -> None:
    problems = [*_range_problems(wanted), *_address_problems(wanted), *_name_problems(wanted)]
    for what, port in (("port", wanted.port), ("DNS port", wanted.dns_port)):
        if not 1 <= port <= MAX_PORT:
            problems.append(f"The {what} {port} is not within 1-{MAX_PORT}.")
    if wanted.port == wanted.dns_port:
        problems.append(f"The tunnel and the DNS server cannot both have port {wanted.port}.")
    if problems:
        raise BadWishError(problems[0])


def _range_problems(wanted: Wanted) -> list[str]:
    ranges = wanted.ip_ranges
    if not ranges:
        return ["There is no range for virtual IPs."]
    problems = [
        f"The range {prefix} has no room: at least {1 << MIN_HOST_BITS} addresses are needed."
        for prefix in ranges
        if prefix.max_prefixlen - prefix.prefixlen < MIN_HOST_BITS
    ]
    problems += [
        f"The range {prefix} is not for hosts of your own."
        for prefix in ranges
        if prefix.is_loopback or prefix.is_multicast or prefix.is_link_local or prefix.prefixlen == 0
    ]
    if len({prefix.version for prefix in ranges}) > 1:
        return [*problems, "The ranges are to be all IPv4 or all IPv6."]
    pairs = ((a, b) for i, a in enumerate(ranges) for b in ranges[i + 1 :])
    return problems + [f"The ranges {a} and {b} overlap." for a, b in pairs if a.overlaps(b)]


def _address_problems(wanted: Wanted) -> list[str]:
    problems = []
    for address in (wanted.dns_ip, wanted.proxy_ip):
        if address is None:
            continue
        if any(address.version != prefix.version for prefix in wanted.ip_ranges):
            problems.append(f"The address {address} is of another IP version than the ranges.")
        if address.is_loopback or address.is_multicast or address.is_unspecified:
            problems.append(f"The address {address} cannot be a link's.")
        # a /24's .0 and .255 are the network's
        edges = (prefix for prefix in wanted.ip_ranges if address in (prefix[0], prefix[-1]))
        problems += [f"The address {address} is the first or the last of {prefix}, so no host's." for prefix in edges]
    if wanted.dns_ip is not None and wanted.dns_ip == wanted.proxy_ip:
        problems.append(f"The DNS address and the proxy's are the same, {wanted.dns_ip}.")
    return problems


def link_name_is_valid(name: str) -> bool:
    """What Linux takes (dev_valid_name), without what a shell or a path would read otherwise."""
    return re.fullmatch(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{MAX_LINK_NAME_CHARS - 1}}}", name) is not None


def _name_problems(wanted: Wanted) -> list[str]:
    problems = [f"{zone!r} is not a DNS zone." for zone in wanted.zones if not zone_is_valid(zone)]
    if not wanted.zones:
        problems.append("There is no zone.")
    if wanted.search is not None and ("." in wanted.search or not zone_is_valid(wanted.search)):
        problems.append(f"{wanted.search!r} is not a Namespace to search in.")
    problems += [
        f"{name!r} is not a link's name: 1-{MAX_LINK_NAME_CHARS} letters, digits, '.', '_', '-'."
        for name in (wanted.dns_link, wanted.proxy_link)
        if not link_name_is_valid(name)
    ]
    if wanted.dns_link == wanted.proxy_link:
        problems.append(f"The two links have the same name, {wanted.dns_link}.")
    return problems
