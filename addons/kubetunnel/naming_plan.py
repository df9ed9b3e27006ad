"""Which names resolve and how, as the settings and what `netsetup up` made of the machine want it. Opens nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from kubetunnel.core.names import TUNNEL_NAME
from kubetunnel.core.settings import Settings
from kubetunnel.core.vips import Address, Network
from kubetunnel.redirection import LOOPBACK, LOOPBACK_IPV6, Redirection, dns_port
from netsetup.resolvers import DNS_PORT, system_resolvers
from netsetup.state import State

# of 127.0.0.0/8, which Linux lets any user listen in; away from 127.0.0.x and 127.0.1.1, which distributions use
LOOPBACK_RANGE = ip_network("127.64.0.0/16")

type Resolvers = Callable[[Collection[str]], tuple[tuple[str, int], ...]]


@dataclass(frozen=True, slots=True)
class NamingPlan:
    """What is to be there.

    Attributes:
        ranges, reserved: of the virtual IPs.
        shared: every name's address, in the place of virtual IPs.
        dns_ips: addresses that lead to the DNS server; empty where the machine leads none there.
        proxy_ips: addresses that lead to the tunnel and stand for no name of their own.
        dns: host and port of the DNS server, None for no server; also_dns: another address of it.
        redirection: where the machine leads virtual IPs and port 53 of the DNS address; None where it does not.
        resolv_conf: the file whose first server is to be the address beside it.
    """

    zones: tuple[str, ...]
    ranges: tuple[Network, ...]
    reserved: tuple[Address, ...] = ()
    shared: Address | None = None
    dns_ips: tuple[Address, ...] = ()
    proxy_ips: tuple[Address, ...] = ()
    loopback: bool = False
    dns: tuple[str, int] | None = None
    also_dns: tuple[str, int] | None = None
    redirection: Redirection | None = None
    tcp: bool = True
    ttl_s: int = 5
    resolvers: tuple[tuple[str, int], ...] = ()
    resolv_conf: tuple[Path, str] | None = None
    idle_timeout_s: float = 300.0


def plan_naming(settings: Settings, machine: State | None, resolvers: Resolvers = system_resolvers) -> NamingPlan:
    """What the settings ask for on this machine.

    Args:
        machine: what `netsetup up` did, None where it did not.
        resolvers: gives the system's resolvers but for these, which are ours.
    """
    dns = settings.dns
    reserved: tuple[Address, ...] = ()
    proxy_ips: tuple[Address, ...] = ()
    if settings.network.loopback:
        ranges: tuple[Network, ...] = (LOOPBACK_RANGE,)
    elif machine is not None:
        ranges, reserved, proxy_ips = machine.ranges, (machine.dns_ip, machine.proxy_ip), (machine.proxy_ip,)
    else:
        ranges = tuple(ip_network(text) for text in settings.network.ip_ranges)
    shared = None
    if dns.answer == "shared" or (machine is not None and not machine.redirected and not settings.network.loopback):
        shared = machine.proxy_ip if machine is not None else ip_address("127.0.0.1")
    return NamingPlan(
        (settings.cluster.zone, *(other.zone for other in settings.zones)), ranges, reserved, shared,
        proxy_ips=proxy_ips,
        loopback=settings.network.loopback,
        dns=(dns.ip, dns_port(settings, machine)) if dns.enabled else None,
        also_dns=_also_dns(settings, machine),
        redirection=Redirection.of(machine, ports=not settings.network.loopback) if machine is not None else None,
        dns_ips=(machine.dns_ip,) if machine is not None and not settings.network.loopback else (),
        tcp=dns.tcp,
        ttl_s=round(dns.ttl_s),
        resolvers=_former_resolvers(machine, [dns.ip] if dns_port(settings, machine) == DNS_PORT else [], resolvers),
        resolv_conf=(machine.resolv_conf, str(machine.dns_ip)) if machine and machine.resolv_conf else None,
        idle_timeout_s=settings.pool.idle_timeout_s,
    )  # fmt: skip


def _also_dns(settings: Settings, machine: State | None) -> tuple[str, int] | None:
    """Port 53 of an IPv6 address is redirected to ::1."""
    if machine is None or machine.dns_ip.version == 4 or not settings.dns.enabled or settings.dns.ip != LOOPBACK:
        return None
    return LOOPBACK_IPV6, dns_port(settings, machine)


def _former_resolvers(machine: State | None, ours: list[str], resolvers: Resolvers) -> tuple[tuple[str, int], ...]:
    """`ours`: where port 53 is the DNS server's own; else it may be another's of that address (dnsmasq, unbound)."""
    if machine is None:
        return resolvers(ours)
    # those of the network that the machine is in by now; the state file's where the system names nobody but us
    return resolvers([*ours, str(machine.dns_ip)]) or machine.resolvers


def without_dns(plan: NamingPlan) -> NamingPlan:
    """What names and addresses follow from, without the servers that answer them."""
    return replace(plan, dns=None, also_dns=None, dns_ips=(), tcp=True, ttl_s=0, resolvers=(), redirection=None)


def own_names(plan: NamingPlan) -> dict[Address, str]:
    """What `dig -x` says of the addresses that stand for no name of a cluster."""
    names = dict.fromkeys(plan.dns_ips, f"ns.dns.{plan.zones[0]}")
    return names | dict.fromkeys(plan.proxy_ips, TUNNEL_NAME)


def tunnel_address(plan: NamingPlan, listening: Collection[tuple[str, int]]) -> Address:
    """What the tunnel's own name is answered with: where every port leads to it, else where it listens.

    Args:
        listening: the tunnel's addresses; none while it does not listen yet.
    """
    if plan.redirection is not None and plan.redirection.proxy_port is not None and plan.proxy_ips:
        return plan.proxy_ips[0]
    found = ip_address(next((host for host, _ in listening), LOOPBACK).partition("%")[0])
    if not found.is_unspecified:
        return found
    # it is everywhere: at the address, too, where who asks has reached the DNS server
    asked = ip_address(plan.dns[0]) if plan.dns is not None else found
    if asked.version == found.version and not asked.is_unspecified:
        return asked
    return ip_address(LOOPBACK if found.version == 4 else LOOPBACK_IPV6)
