"""Names that resolve: the DNS server, the virtual IPs that it answers, and listeners on loopback without root.

What is wanted follows from the settings and from what `netsetup up` made of the machine's network, which may come or go
while the tunnel runs; when it changes, all of it is made anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from kubetunnel.core.names import TUNNEL_NAME
from kubetunnel.core.settings import Settings
from kubetunnel.core.vips import Address, Network
from kubetunnel.dns import ClusterNames
from kubetunnel.doctor.port_owners import owner_of
from kubetunnel.loopback_claim import ClaimedByAnother, LoopbackClaim
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.loopback import LoopbackListeners
from kubetunnel.proxy.mode import LOOPBACK, LOOPBACK_IPV6, listening_addresses, serve_connection
from kubetunnel.proxy.virtual_destinations import VirtualDestinations
from kubetunnel.redirection import Redirection, dns_port
from kubetunnel.resolv_conf_watch import ResolvConfWatch
from kubetunnel.virtual_addresses import VirtualAddresses, default_path
from netsetup.dns_responder import DnsFacts, DnsQuery
from netsetup.dns_server import DnsPortUnavailable, DnsServer
from netsetup.resolvers import DNS_PORT, system_resolvers
from netsetup.state import State

logger = logging.getLogger(__name__)

# of 127.0.0.0/8, which Linux lets any user listen in; away from 127.0.0.x and 127.0.1.1, which distributions use
LOOPBACK_RANGE = ip_network("127.64.0.0/16")

RETRY_S = 10.0  # for a port that another program has: the tunnel before this one, for one, that is about to end

type Listening = Callable[[], tuple[tuple[str, int], ...]]
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


def _but_dns(plan: NamingPlan) -> NamingPlan:
    """What names and addresses follow from, without the servers that answer them."""
    return replace(plan, dns=None, also_dns=None, dns_ips=(), tcp=True, ttl_s=0, resolvers=(), redirection=None)


def _own_names(plan: NamingPlan) -> dict[Address, str]:
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


class Naming:
    """Makes what the plan says, and unmakes it.

    Args:
        listening: gives the addresses where the tunnel takes connections by now.
    """

    def __init__(
        self, clusters: Clusters, virtual: VirtualDestinations, listening: Listening = listening_addresses
    ) -> None:
        self._clusters = clusters
        self._virtual = virtual
        self._plan: NamingPlan | None = None
        self._addresses: VirtualAddresses | None = None
        self._names: ClusterNames | None = None
        self._listening = listening
        self._server: DnsServer | None = None
        self._also_server: DnsServer | None = None
        self._told_of_ports = ""
        self._listeners: LoopbackListeners | None = None
        self._claim: LoopbackClaim | None = None
        self._watch: ResolvConfWatch | None = None
        self._changing = asyncio.Lock()
        self._retry_at_s: float | None = None
        self._told = ""

    @property
    def dns_address(self) -> tuple[str, int] | None:
        """Where the DNS server listens; None while there is none."""
        return self._server.addresses[0][:2] if self._server else None

    def dns_facts(self) -> DnsFacts | None:
        """The DNS server's counters; None while there is none."""
        return self._server.facts() if self._server else None

    def dns_queries(self) -> Sequence[DnsQuery]:
        """The DNS server's last questions, the oldest first."""
        return self._server.queries() if self._server else ()

    def assigned(self, name: str) -> str | None:
        """The address that this full name has, where it has one of its own."""
        address = self._addresses.assigned.get(name) if self._addresses else None
        return str(address) if address else None

    async def apply(self, plan: NamingPlan) -> None:
        """Takes up a plan; to be called again and again. What cannot be had is told of in a line, and is tried again
        after RETRY_S; the rest is there.
        """
        async with self._changing:
            if plan != self._plan:
                if self._plan is None or _but_dns(plan) != _but_dns(self._plan):
                    await self._unmake()
                else:  # each renewal of a lease may bring other resolvers: no reason to close connections
                    await self._unmake_dns()
                self._plan = None  # until it is made: an error that nobody expects is no end for good
                await self._make(plan)
                self._plan = plan
            elif self._retry_at_s is not None and asyncio.get_running_loop().time() >= self._retry_at_s:
                await self._make(plan)
            if self._watch is not None:
                self._watch.look()
            self._look_at_ports(plan)

    async def stop_listening(self) -> None:
        """Takes no new connections at loopback addresses; those that are there go on."""
        async with self._changing:
            if self._listeners is not None:
                self._listeners.close()

    async def aclose(self) -> None:
        """Ends server and listeners."""
        async with self._changing:
            await self._unmake()

    async def _make(self, plan: NamingPlan) -> None:
        """What is there already stays."""
        self._retry_at_s = None
        try:
            if self._names is None:
                self._names = self._make_names(plan)
            if plan.dns is not None and self._server is None:
                self._server = await self._dns_server(plan, self._names, plan.dns)
            if plan.also_dns is not None and self._also_server is None:
                self._also_server = await self._dns_server(plan, self._names, plan.also_dns)
            self._told = ""
        except ClaimedByAnother as e:
            self._tell("No names at loopback addresses: %s%s", e)
        except DnsPortUnavailable as e:
            led = plan.redirection.leads_to(plan.dns) if plan.redirection is not None else ""
            owner = owner_of("udp", *plan.dns) or owner_of("tcp", *plan.dns) if plan.dns is not None else None
            self._tell("No DNS server: %s%s", e, f" It is taken by {owner}.{led}" if owner else led)

    async def _dns_server(self, plan: NamingPlan, names: ClusterNames, address: tuple[str, int]) -> DnsServer:
        async def own_address() -> Address:
            return tunnel_address(plan, self._listening())

        server = DnsServer(
            names, host=address[0], port=address[1], tcp=plan.tcp, upstreams=plan.resolvers, ranges=plan.ranges,
            known_at=plan.dns_ips, own=_own_names(plan), hosts={TUNNEL_NAME: own_address}, ttl_s=plan.ttl_s,
        )  # fmt: skip
        await server.start()
        return server

    def _look_at_ports(self, plan: NamingPlan) -> None:
        """Tells, once, of what leads elsewhere than to us."""
        if plan.loopback and plan.dns is None:
            problem = (
                "network.loopback is on, but dns.enabled is not: no name leads to a loopback address. See: "
                "kube-tunnel --loopback --dns"
            )
        elif plan.redirection is None:
            problem = ""
        else:
            problem = plan.redirection.problem(self._listening(), plan.dns)
        if problem and problem != self._told_of_ports:
            logger.warning("%s", problem)
        self._told_of_ports = problem

    def _tell(self, text: str, error: Exception, more: str = "") -> None:
        self._retry_at_s = asyncio.get_running_loop().time() + RETRY_S
        if self._told != str(error):
            self._told = str(error)
            logger.warning(text, error, more)

    def _make_names(self, plan: NamingPlan) -> ClusterNames:
        if plan.loopback:
            self._claim = LoopbackClaim.take(default_path("loopback-addresses.tunnel"))
            self._listeners = LoopbackListeners(serve_connection, idle_timeout_s=plan.idle_timeout_s)
        path = default_path("loopback-addresses.json" if plan.loopback else "virtual-addresses.json")
        addresses = self._addresses = VirtualAddresses(plan.ranges, path=path, reserved=plan.reserved)
        self._virtual.configure(
            addresses,
            shared=plan.proxy_ips,
            service_port=self._listeners.service_port if self._listeners else None,
        )
        self._watch = ResolvConfWatch(*plan.resolv_conf) if plan.resolv_conf else None
        return ClusterNames(self._clusters, addresses, shared=plan.shared, listeners=self._listeners)

    async def _unmake_dns(self) -> None:
        self._retry_at_s = None
        self._told = ""
        servers = (self._server, self._also_server)
        self._server = self._also_server = None
        for server in servers:
            if server is not None:
                await server.aclose()

    async def _unmake(self) -> None:
        await self._unmake_dns()
        names, self._names = self._names, None
        if names is not None:
            names.close()
        self._plan = self._watch = self._addresses = None
        self._virtual.configure(None)
        listeners, self._listeners = self._listeners, None
        if listeners is not None:
            listeners.close()
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.close()
