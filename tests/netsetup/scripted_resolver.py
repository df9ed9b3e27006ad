"""A resolver on loopback that answers as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from dnslib import CNAME, QTYPE, RR, TXT, A, DNSRecord

type Script = Callable[[bytes, tuple[str, int]], list[bytes]]


def honest(packet: bytes, client: tuple[str, int]) -> list[bytes]:
    """192.0.2.1 for everything; `alias.…` is an alias, `large.…` has 3,000 octets of text."""
    query = DNSRecord.parse(packet)
    reply = query.reply()
    name = str(query.q.qname)
    if query.q.qtype == QTYPE.TXT and name.startswith("large."):
        reply.add_answer(*(RR(name, QTYPE.TXT, ttl=60, rdata=TXT("x" * 250)) for _ in range(12)))
    elif name.startswith("alias."):
        reply.add_answer(RR(name, QTYPE.CNAME, ttl=60, rdata=CNAME("target.example.com")))
        reply.add_answer(RR("target.example.com", QTYPE.A, ttl=3, rdata=A("192.0.2.2")))
    elif name.startswith("nothing."):
        reply.header.rcode = 3
    elif query.q.qtype == QTYPE.A:
        reply.add_answer(RR(name, QTYPE.A, ttl=60, rdata=A("192.0.2.1")))
    return [bytes(reply.pack())]


def truncating(packet: bytes, client: tuple[str, int]) -> list[bytes]:
    """As `honest`, but nothing above 512 octets by UDP."""
    (reply,) = honest(packet, client)
    if len(reply) <= 512 or client == ("tcp", 0):
        return [reply]
    return [reply[:2] + bytes([reply[2] | 2]) + reply[3:6] + bytes(6) + packet[12 : packet.index(b"\0", 12) + 5]]


def silent(packet: bytes, client: tuple[str, int]) -> list[bytes]:
    return []


def failing(packet: bytes, client: tuple[str, int]) -> list[bytes]:
    reply = DNSRecord.parse(packet).reply()
    reply.header.rcode = 2
    return [bytes(reply.pack())]


class ScriptedResolver(asyncio.DatagramProtocol):
    """Listens on UDP, and with `tcp` on TCP too. `packets` are the queries that came, `clients` by whom."""

    def __init__(self, script: Script = honest, *, tcp: bool = False) -> None:
        self.script = script
        self.packets: list[bytes] = []
        self.clients: list[tuple[str, int]] = []
        self.address = ("127.0.0.1", 0)
        self.asked = asyncio.Event()
        self._tcp = tcp
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=self.address)
        self.address = self._transport.get_extra_info("sockname")
        if self._tcp:
            self._servers.append(await asyncio.start_server(self._serve, *self.address))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._transport.abort()
        for server in self._servers:
            server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.packets.append(data)
        self.clients.append(addr)
        self.asked.set()
        for reply in self.script(data, addr):
            self._transport.sendto(reply, addr)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        packet = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        self.packets.append(packet)
        self.clients.append(("tcp", 0))
        for reply in self.script(packet, ("tcp", 0)):
            writer.write(len(reply).to_bytes(2) + reply)
        writer.close()
        await writer.wait_closed()
