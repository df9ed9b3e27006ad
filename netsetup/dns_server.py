"""The DNS server: sockets, limits and the life of what is under way. What it says is decided in `answers.py`.

RFC 1035 4.2 (UDP and TCP on one port), RFC 5966 (both are a must). It stands on loopback or on an interface of our own.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from kubetunnel.core.errors import KubeTunnelError
from netsetup.answers import TTL_S, Authority, Names
from netsetup.dns_lookups import PATIENCE_S, Lookups
from netsetup.dns_records import Address
from netsetup.dns_responder import DnsFacts, DnsQuery, FindAddress, Responder
from netsetup.dns_tcp import IDLE_TIMEOUT_S, TcpListener
from netsetup.dns_upstreams import TIMEOUT_S, Server, Upstreams
from netsetup.reverse_names import AddressRange

logger = logging.getLogger(__name__)

MAX_OPEN = 200  # each may hold a few sockets, and 1,024 files is a usual limit
MAX_OPEN_PER_CLIENT = 100
_RECEIVE_BUFFER_BYTES = 1 << 20
_PORT_ATTEMPTS = 20


class DnsPortUnavailable(KubeTunnelError):  # noqa: N818 - named as the rest of the tree
    """The DNS server cannot listen where it should."""

    title = "The DNS port cannot be had"


class DnsServer:
    """Answers for the zones of `names` and the reverse names of `ranges`, and passes on the rest.

    Args:
        host: an address of this machine.
        port: for UDP and TCP; 0 for a free one.
        upstreams: the system's resolvers as they were before; ourselves among them are left out. Without any, what is
            not ours is refused.
        ranges: those of the virtual IPs.
        known_at: the addresses of `ns.dns.ZONE`, where these are not `host`.
        own: as of `Authority`.
        hosts: names of this machine's own that are answered, too, and what finds their addresses.
        ttl_s, negative_ttl_s: how long answers may be kept.
        patience_s: how long the cluster may take before SERVFAIL.
        upstream_timeout_s: how long all upstreams together may take.
        tcp_idle_timeout_s: how long a connection may be silent.
        max_open, max_open_per_client: how many questions may wait for an answer; three quarters of the latter for one
            of the upstreams.
    """

    def __init__(
        self,
        names: Names,
        *,
        host: str,
        port: int,
        tcp: bool = True,
        upstreams: Sequence[Server] = (),
        ranges: Sequence[AddressRange] = (),
        known_at: Sequence[Address] = (),
        own: Mapping[Address, str] | None = None,
        hosts: Mapping[str, FindAddress] | None = None,
        ttl_s: int = TTL_S,
        negative_ttl_s: int = TTL_S,
        patience_s: float = PATIENCE_S,
        upstream_timeout_s: float = TIMEOUT_S,
        tcp_idle_timeout_s: float = IDLE_TIMEOUT_S,
        max_open: int = MAX_OPEN,
        max_open_per_client: int = MAX_OPEN_PER_CLIENT,
    ) -> None:
        listening = ip_address(host)
        others = [(address, number) for address, number in upstreams if (address, number) != (host, port)]
        self._host, self._port = host, port
        self._lookups = Lookups(names, patience_s=patience_s, negative_ttl_s=negative_ttl_s)
        self._upstreams = Upstreams(others, timeout_s=upstream_timeout_s)
        known_at = tuple(known_at) or (() if listening.is_unspecified else (listening,))
        hosts = hosts or {}
        authority = Authority(
            names.zones, tuple(ranges), known_at, own or {}, tuple(hosts), ttl_s=ttl_s, negative_ttl_s=negative_ttl_s
        )
        rng = random.Random()  # noqa: S311 - spreads clients over pods, keeps no secret
        self._responder = Responder(
            names, self._lookups, self._upstreams, authority, hosts, rng,
            # all of a machine is one client, and dead upstreams are no reason not to answer for the clusters
            max_forwarded=max_open_per_client * 3 // 4,
        )  # fmt: skip
        self._tcp = TcpListener(self._respond_by_tcp, idle_timeout_s=tcp_idle_timeout_s) if tcp else None
        self._udp: asyncio.DatagramTransport | None = None
        self._datagrams: _Datagrams | None = None
        self._congested = False
        self._loop_told = False
        self._open: Counter[str] = Counter()
        self._max_open, self._max_open_per_client = max_open, max_open_per_client
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def addresses(self) -> tuple[Server, ...]:
        """Where it listens: empty before `start` and after `aclose`."""
        return (self._udp.get_extra_info("sockname")[:2],) if self._udp else ()

    def facts(self) -> DnsFacts:
        """Counters, for metrics."""
        return self._responder.facts()

    def queries(self) -> Sequence[DnsQuery]:
        """The last questions, the oldest first."""
        return self._responder.queries()

    async def start(self) -> None:
        """Listen.

        Raises:
            DnsPortUnavailable
        """
        for attempt in range(_PORT_ATTEMPTS):
            try:
                await self._listen()
            except OSError as error:
                self._close_udp()
                # any free port was asked for, and the one found for UDP is taken for TCP: another
                if self._port == 0 and error.errno == errno.EADDRINUSE and attempt + 1 < _PORT_ATTEMPTS:
                    continue
                raise self._unavailable(error) from error
            break
        host, port = self.addresses[0]
        protocols = "UDP and TCP" if self._tcp else "UDP"
        logger.info("DNS server on %s port %s (%s), upstreams: %d", host, port, protocols, len(self._upstreams.servers))

    async def aclose(self) -> None:
        """Stop listening, and give up what is under way. The port is free afterwards."""
        self._close_udp()
        if self._datagrams is not None:
            await self._datagrams.closed.wait()
        if self._tcp is not None:
            await self._tcp.aclose()
        for task in self._answering:
            task.cancel()
        if self._answering:
            await asyncio.wait(self._answering)
        await self._upstreams.aclose()
        await self._lookups.aclose()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        udp = socket.socket(family, socket.SOCK_DGRAM)
        try:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            self._bind(udp)
            self._udp, self._datagrams = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=udp)
        except BaseException:
            udp.close()
            raise
        if self._tcp is not None:
            await self._tcp.start(self._host, self.addresses[0][1])

    def _bind(self, udp: socket.socket) -> None:
        """Also where mDNS's responders have the port at every address, for they let others in: what is sent to one
        address goes to the socket that is bound to just that one (udp(7), `compute_score` of net/ipv4/udp.c).
        """
        try:
            udp.bind((self._host, self._port))
        except OSError as error:
            # another server of that very address has its port for TCP too, so that is found out
            if error.errno != errno.EADDRINUSE or self._tcp is None:
                raise
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            udp.bind((self._host, self._port))
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # nobody else gets in beside us

    def _close_udp(self) -> None:
        if self._udp is not None:
            self._udp.abort()
            self._udp = None

    def _unavailable(self, error: OSError) -> DnsPortUnavailable:
        taken = " Port 5353 is also that of mDNS (avahi-daemon, browsers)." if self._port == 5353 else ""
        # asyncio's own text repeats address and errno
        reason = os.strerror(error.errno) if error.errno else str(error)
        return DnsPortUnavailable(
            f"The DNS server cannot listen on {self._host} port {self._port}: {reason}.{taken} "
            "Another port: --dns-port.",
            command=f"ss -lunp 'sport = :{self._port}'",
        )

    def datagram(self, packet: bytes, client: tuple[str, int]) -> None:
        """A datagram came."""
        reply = self._responder.at_once(packet, tcp=False)
        if reply is not None:
            self._send(reply, client)
            return
        task = asyncio.create_task(self._answer_datagram(packet, client))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer_datagram(self, packet: bytes, client: tuple[str, int]) -> None:
        if self._upstreams.refuse_own(client[:2]):
            self._tell_loop()
            return
        reply = await self._respond(packet, client[0], tcp=False)
        if reply is not None:
            self._send(reply, client)

    async def _respond_by_tcp(self, packet: bytes, client: str) -> bytes | None:
        return self._responder.at_once(packet, tcp=True) or await self._respond(packet, client, tcp=True)

    async def _respond(self, packet: bytes, client: str, *, tcp: bool) -> bytes | None:
        """Within the limits."""
        if self._open.total() >= self._max_open or self._open[client] >= self._max_open_per_client:
            return self._responder.limit(packet, tcp=tcp)
        self._open[client] += 1
        try:
            return await self._responder.respond(packet, tcp=tcp)
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    def _tell_loop(self) -> None:
        if not self._loop_told:
            self._loop_told = True
            logger.warning("DNS: one of the resolvers given passes our questions back to us")

    def _send(self, reply: bytes, client: tuple[str, int]) -> None:
        # a client that asks again is better than a queue without an end
        if self._udp is not None and not self._congested:
            self._udp.sendto(reply, client)

    def congestion(self, congested: bool) -> None:
        """The socket takes no more for now, or takes more again."""
        self._congested = congested


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self.closed = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()  # the transport closes its socket some time after it was told to, when it has called this

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.datagram(data, addr)

    def pause_writing(self) -> None:
        self._server.congestion(congested=True)

    def resume_writing(self) -> None:
        self._server.congestion(congested=False)

    def error_received(self, exc: Exception) -> None:
        """A client's port is closed by now (ICMP): its reply is nobody's."""
