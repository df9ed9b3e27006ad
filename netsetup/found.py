"""A machine's network as it was found: plain data, for the plan to decide upon. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address

from netsetup.operations import AddAlias, AddLink, EditResolvConf, LinkResolvConf, Operation, SetLinkResolver, WriteFile
from netsetup.resolv_conf import nameservers, restored

type Network = IPv4Network | IPv6Network
type Interface = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class FoundLink:
    name: str
    mac: str
    addresses: tuple[Interface, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundRoute:
    """A route of any table; `link` is None where it leads to none (blackhole)."""

    prefix: Network
    link: str | None


@dataclass(frozen=True, slots=True)
class FoundResolver:
    """Who resolves names here.

    Attributes:
        kind: `systemd-resolved`, `NetworkManager` (its dnsmasq), `resolver-directory` (macOS) or `resolv.conf`.
        servers: the servers that are asked, most wanted first.
        real: the file that /etc/resolv.conf leads to.
        resolv_conf: what it holds, None where there is none.
        files: what the files hold that are beside those that a plan may write.
        directories: those of such files that exist.
        bypass: systemd-resolved's: the text of the link at /etc/resolv.conf that leads to the list of its servers, so
            that programs ask those in its place; None where it leads to resolved itself.
        domain: of the host's own name: searched where the file says nothing of it.
        asks_all_at_once: the C library asks all servers at once, and takes the first answer (musl).
    """

    kind: str
    servers: tuple[str, ...] = ()
    real: str = "/etc/resolv.conf"
    resolv_conf: bytes | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    directories: frozenset[str] = frozenset()
    bypass: str | None = None
    domain: str = ""
    asks_all_at_once: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """Attributes:
    redirector: the program that can redirect, `nft` or `iptables`; None where there is none.
    aliases: whether addresses are put on `lo0` instead of links of their own (macOS).
    udp_ports: those that a program has at every address.
    """

    links: tuple[FoundLink, ...]
    routes: tuple[FoundRoute, ...]
    resolver: FoundResolver
    redirector: str | None = "nft"
    aliases: bool = False
    udp_ports: frozenset[int] = frozenset()


def without(found: Found, done: Sequence[Operation]) -> Found:
    """The machine as it would be found with these steps undone."""
    macs = {(step.name, step.mac) for step in done if isinstance(step, AddLink)}
    ours = {link.name for link in found.links if (link.name, link.mac) in macs}
    aliases = {step.address for step in done if isinstance(step, AddAlias)}
    links = tuple(
        replace(link, addresses=tuple(a for a in link.addresses if str(a.ip) not in aliases))
        for link in found.links
        if link.name not in ours
    )
    routes = tuple(
        route
        for route in found.routes
        if route.link not in ours and not (route.prefix.num_addresses == 1 and str(route.prefix[0]) in aliases)
    )
    resolver = found.resolver
    for step in done:
        resolver = _resolver_without(resolver, step)
    return replace(found, links=links, routes=routes, resolver=resolver)


def _resolver_without(resolver: FoundResolver, step: Operation) -> FoundResolver:
    match step:
        case EditResolvConf() if resolver.resolv_conf is not None:
            content = restored(resolver.resolv_conf, step.wanted, step.before)
            return replace(resolver, resolv_conf=content, servers=nameservers(content))
        case LinkResolvConf():
            return replace(resolver, bypass=step.before)
        case SetLinkResolver():
            # resolved lists the servers of all links
            return replace(resolver, servers=tuple(s for s in resolver.servers if s != step.dns_ip))
        case WriteFile():
            files = {path: held for path, held in resolver.files.items() if path != step.path}
            return replace(resolver, files=files if step.before is None else files | {step.path: step.before})
        case _:
            return resolver


def claim_on(wanted: Network, found: Found) -> str | None:
    """Who has the prefix or a part of it, in words; None where it is free.

    A route for (nearly) everything, such as the default route or a VPN's `0.0.0.0/1`, claims no range of its own.
    A server that names are asked at counts too: taken into a virtual range it could not be reached any more.
    """
    for link in found.links:
        for address in link.addresses:
            if address.version == wanted.version and address.network.overlaps(wanted):
                return f"the address {address} of {link.name}"
    for route in found.routes:
        if route.prefix.version == wanted.version and not _is_catch_all(route.prefix) and route.prefix.overlaps(wanted):
            return f"the route {route.prefix}" + (f" to {route.link}" if route.link else "")
    for server in found.resolver.servers:
        if _lies_in(server, wanted):
            return f"the nameserver {server}"
    return None


# 0.0.0.0/0; 0.0.0.0/1 and 128.0.0.0/1 (OpenVPN's redirect-gateway def1); 2000::/3 (IPv6's global unicast)
CATCH_ALL_BITS = 4


def _is_catch_all(prefix: Network) -> bool:
    return prefix.prefixlen <= CATCH_ALL_BITS


def _lies_in(server: str, prefix: Network) -> bool:
    try:
        return ip_address(server) in prefix
    except ValueError:  # what stands in resolv.conf may be anything
        return False
