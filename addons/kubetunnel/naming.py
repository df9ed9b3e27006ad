"""Names that resolve: the DNS server, the virtual IPs that it answers, and listeners on loopback without root.

What is wanted (`naming_plan`) may change while the tunnel runs, as netsetup comes and goes: then it is all made anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from ipaddress import ip_address

from kubetunnel.core.names import TUNNEL_NAME
from kubetunnel.core.vips import Address
from kubetunnel.dns import ClusterNames
from kubetunnel.doctor.port_owners import owner_of
from kubetunnel.loopback_claim import ClaimedByAnother, LoopbackClaim
from kubetunnel.naming_plan import NamingPlan, own_names, tunnel_address, without_dns
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.loopback import LoopbackListeners
from kubetunnel.proxy.mode import listening_addresses, serve_connection
from kubetunnel.proxy.virtual_destinations import VirtualDestinations
from kubetunnel.resolv_conf_watch import ResolvConfWatch
from kubetunnel.virtual_addresses import VirtualAddresses, default_path
from netsetup.dns_responder import DnsFacts, DnsQuery
from netsetup.dns_server import DnsPortUnavailable, DnsServer

logger = logging.getLogger(__name__)

RETRY_S = 10.0  # for a port that another program has: the tunnel before this one, for one, that is about to end

type Listening = Callable[[], tuple[tuple[str, int], ...]]


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
                if self._plan is None or without_dns(plan) != without_dns(self._plan):
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
            known_at=plan.dns_ips, own=own_names(plan), hosts={TUNNEL_NAME: own_address}, ttl_s=plan.ttl_s,
        )  # fmt: skip
        await server.start()
        at = ip_address(address[0])
        if not at.is_loopback and at not in (*plan.dns_ips, *plan.proxy_ips):
            logger.warning("DNS server on %s: everyone who can reach this address learns what the cluster has.", at)
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
