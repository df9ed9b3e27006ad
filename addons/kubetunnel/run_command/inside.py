"""What CMD finds in a network of its own: DNS for the cluster's names, and listeners at their addresses.

Each name that is asked for gets an address in 127.0.0.0/8 and a listener for each of its ports, before it is answered;
the connections go to the tunnel. All of 127.0.0.0/8 is in there for us, but for what CMD itself uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterable
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from tempfile import TemporaryDirectory

from kubetunnel.core.errors import NotForwardable
from kubetunnel.core.names import TUNNEL_NAME
from kubetunnel.core.vips import Address
from kubetunnel.dns import ClusterNames
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.run_command.courier import Courier
from kubetunnel.run_command.dns_relay import DatagramRelay
from kubetunnel.run_command.isolation import DNS_ADDRESS
from kubetunnel.run_command.relay import Connect, connect_through, relay
from kubetunnel.virtual_addresses import VirtualAddresses
from netsetup.dns_server import DnsServer

logger = logging.getLogger(__name__)

RANGE = IPv4Network("127.128.0.0/9")  # the lower half is the program's own
MAX_LISTENERS = 512  # half of the usual limit of open files
_LOOPBACK = "127.0.0.1"
_DNS_PORT = 53
_HTTP_PORT = 80


class InsideListeners:
    """Listeners in CMD's network, for `ClusterNames`.

    Args:
        courier: makes the sockets.
        tunnel: where the connections go, by CONNECT; those to TUNNEL_NAME are for itself.
    """

    def __init__(self, courier: Courier, tunnel: tuple[str, int]) -> None:
        self._courier = courier
        self._tunnel = tunnel
        self._servers: dict[tuple[str, int], asyncio.Server] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._opening = asyncio.Lock()

    async def open(self, name: str, address: Address, ports: Iterable[int]) -> None:
        """Listens at `address` for the ports of the name.

        Raises:
            NotForwardable: there are too many listeners, or the address cannot be listened at.
        """
        async with self._opening:
            for port in ports:
                if (name, port) not in self._servers:
                    await self._open(name, address, port)

    def keep(self, service: str, ports: Iterable[int]) -> None:
        """Closes the listeners of a Service and of its Pods for other ports than these; connections go on."""
        kept = set(ports)
        for name, port in list(self._servers):
            if f".{name}".endswith(f".{service}") and port not in kept:
                self._servers.pop((name, port)).close()

    async def aclose(self) -> None:
        """Closes the listeners, and cuts the connections."""
        for server in self._servers.values():
            server.close()
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)

    async def _open(self, name: str, address: Address, port: int) -> None:
        if len(self._servers) >= MAX_LISTENERS:
            raise NotForwardable(f"{name} gets no listener: there are {MAX_LISTENERS} already.")
        try:
            bound = await self._courier.bound("tcp", str(address), port)
        except OSError as e:
            raise NotForwardable(f"{name} port {port} gets no listener at {address}: {e.strerror or e}.") from e
        connect: Connect = partial(connect_through, self._tunnel, name, port)
        if name == TUNNEL_NAME:
            connect = partial(asyncio.open_connection, *self._tunnel)
        self._servers[name, port] = await self.accept(bound, connect, f"{name} port {port}")
        logger.info("%s port %d: listening at %s for the command.", name, port, address)

    async def accept(self, bound: socket.socket, connect: Connect, what: str) -> asyncio.Server:
        """Passes on what is accepted at a socket; `relay` explains the arguments."""
        return await asyncio.start_server(partial(self._serve, connect, what), sock=bound)

    async def _serve(
        self, connect: Connect, what: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        await relay((reader, writer), connect, what)


@contextlib.asynccontextmanager
async def served_inside(courier: Courier, clusters: Clusters, tunnel: tuple[str, int]) -> AsyncIterator[None]:
    """DNS and listeners in CMD's network, for the time of the block, which ends the courier, too.

    Raises:
        OSError: a socket cannot be had there.
    """
    with TemporaryDirectory(prefix="kube-tunnel-run-") as directory:
        addresses = VirtualAddresses([RANGE], path=Path(directory, "addresses.json"))
        listeners = InsideListeners(courier, tunnel)
        names = ClusterNames(clusters, addresses, listeners=listeners)

        async def tunnel_address() -> Address:
            address = await addresses.address_of(TUNNEL_NAME)
            await listeners.open(TUNNEL_NAME, address, [_HTTP_PORT])
            return address

        server = DnsServer(names, host=_LOOPBACK, port=0, ranges=[RANGE], hosts={TUNNEL_NAME: tunnel_address})
        await server.start()
        datagrams = DatagramRelay(server.addresses[0])
        streams: asyncio.Server | None = None
        try:
            await datagrams.start(await courier.bound("udp", DNS_ADDRESS, _DNS_PORT))
            bound = await courier.bound("tcp", DNS_ADDRESS, _DNS_PORT)
            streams = await listeners.accept(bound, partial(asyncio.open_connection, *server.addresses[0]), "DNS")
            yield
        finally:
            if streams is not None:
                streams.close()
            await datagrams.aclose()
            await server.aclose()
            await listeners.aclose()
            await courier.aclose()
