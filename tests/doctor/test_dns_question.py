"""One question to a DNS server: ours, somebody else's, nobody; and to the system."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

import pytest

from kubetunnel.core.catalog import Endpoint, ServiceState
from kubetunnel.core.errors import ServiceNotFound
from kubetunnel.doctor.dns_question import dns_server_answers, resolve
from kubetunnel.doctor.ports import check_dns_port
from kubetunnel.doctor.verdict import Level
from netsetup.answers import Addressed
from netsetup.dns_server import DnsServer

ZONE = "cluster.local"


class NoNames:
    """A cluster without Services."""

    zones = (ZONE,)

    async def service(self, name: object) -> ServiceState:
        raise ServiceNotFound(f"{name}: no such Service.")

    async def pod(self, name: object) -> Endpoint:
        raise ServiceNotFound(f"{name}: no such Pod.")

    async def address_of(self, name: Addressed, state: ServiceState | None) -> IPv4Address:
        raise AssertionError("nothing is found")

    def name_of(self, address: object) -> str | None:
        return None


async def test_our_own_server() -> None:
    server = DnsServer(NoNames(), host="127.0.0.1", port=0)
    await server.start()
    try:
        port = server.addresses[0][1]
        assert await asyncio.to_thread(dns_server_answers, "127.0.0.1", port, ZONE)
        assert not await asyncio.to_thread(dns_server_answers, "127.0.0.1", port, "other.local")
        found = await asyncio.to_thread(check_dns_port, port, ZONE)
        assert (found.level, "ours" in found.found) == (Level.OK, True)
    finally:
        await server.aclose()
    assert not await asyncio.to_thread(dns_server_answers, "127.0.0.1", port, ZONE)


class Strange(asyncio.DatagramProtocol):
    """Sends back what it is told to, made of the question."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        flags, answers = {"mdns": (0x8400, 0), "refused": (0x8405, 1), "forwarder": (0x8180, 1)}.get(self.form, (0, 0))
        head = flags.to_bytes(2) + (1).to_bytes(2) + answers.to_bytes(2) + bytes(4)
        reply = {"echo": data, "short": data[:5], "other id": b"\0\0\x84\0" + data[4:]}.get(self.form, data[:2] + head)
        assert self.transport is not None
        self.transport.sendto(reply, addr)


@pytest.mark.parametrize("form", ["echo", "short", "other id", "mdns", "refused", "forwarder"])
async def test_somebody_elses(form: str) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Strange(form), local_addr=("127.0.0.1", 0))
    try:
        port = transport.get_extra_info("sockname")[1]
        assert not await asyncio.to_thread(dns_server_answers, "127.0.0.1", port, ZONE, timeout_s=2)
    finally:
        transport.close()


def test_the_system() -> None:
    assert resolve("localhost") == ("127.0.0.1",)
    assert resolve("nobody.invalid", timeout_s=0.01) == ()
