"""One question to a DNS server: ours, somebody else's, nobody; and to the system."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv6Address

import pytest

from kubetunnel.core.catalog import Endpoint, ServiceState
from kubetunnel.core.errors import ServiceNotFound
from kubetunnel.doctor.dns_path import check_dns_path
from kubetunnel.doctor.dns_question import dns_server_answers, resolve
from kubetunnel.doctor.ports import asked_at, check_dns_port
from kubetunnel.doctor.verdict import Level
from netsetup.answers import Addressed
from netsetup.dns_server import DnsPortUnavailable, DnsServer
from netsetup.state import State

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


# with virtual IPs of IPv6 its own name has an address of IPv6 alone
@pytest.mark.parametrize("known_at", [(), (IPv6Address("fd00:8::1"),)])
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.7", "::1", "0.0.0.0"])
async def test_our_own_server(host: str, known_at: tuple[IPv6Address, ...]) -> None:
    server = DnsServer(NoNames(), host=host, port=0, known_at=known_at)
    try:
        await server.start()
    except DnsPortUnavailable as error:
        pytest.skip(f"no {host} here: {error}")
    try:
        port = server.addresses[0][1]
        asked = asked_at(host)
        assert await asyncio.to_thread(dns_server_answers, asked, port, ZONE)
        assert not await asyncio.to_thread(dns_server_answers, asked, port, "other.local")
        found = await asyncio.to_thread(check_dns_port, host, port, ZONE)
        shown = f"[{host}]" if ":" in host else host
        assert (found.level, found.found) == (Level.OK, f"a DNS server of ours answers at {shown}:{port}")
        path = await asyncio.to_thread(check_dns_path, ZONE, (host, port), None)
        assert (path.level, "the DNS server runs, but" in path.found) == (Level.WARN, True)
    finally:
        await server.aclose()
    assert not await asyncio.to_thread(dns_server_answers, asked, port, ZONE)


async def test_where_nothing_is_redirected_the_servers_own_port_is_enough() -> None:
    server = DnsServer(NoNames(), host="127.0.0.1", port=0)
    await server.start()
    try:
        address = IPv4Address("10.8.0.1")
        # macOS: resolver(5) names the port
        machine = State(address, address, (), (ZONE,), 8080, server.addresses[0][1], (), redirected=False, user=None)
        found = await asyncio.to_thread(check_dns_path, ZONE, server.addresses[0], machine)
        assert "does not ask us" in found.found  # the rest is well, though port 53 of 10.8.0.1 leads nowhere
    finally:
        await server.aclose()


class Strange(asyncio.DatagramProtocol):
    """Sends back what it is told to, made of the question."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        flags, answers = {"mdns": (0x8400, 0), "refused": (0x8405, 1), "forwarder": (0x8180, 1)}.get(
            self.form, (0x8400, 1)
        )
        said = flags.to_bytes(2) + (1).to_bytes(2) + answers.to_bytes(2) + bytes(4) + data[12:]
        other_id = bytes([data[0] ^ 1, data[1]])
        reply = {"echo": data, "short": data[:5], "other id": other_id + said}.get(self.form, data[:2] + said)
        assert self.transport is not None
        self.transport.sendto(reply, addr)


@pytest.mark.parametrize("form", ["echo", "short", "other id", "mdns", "refused", "forwarder", "ours"])
async def test_somebody_elses(form: str) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Strange(form), local_addr=("127.0.0.1", 0))
    try:
        port = transport.get_extra_info("sockname")[1]
        answers = await asyncio.to_thread(dns_server_answers, "127.0.0.1", port, ZONE, timeout_s=2)
        assert answers == (form == "ours")
    finally:
        transport.close()


async def test_a_server_at_another_address_than_the_machine_leads_to() -> None:
    """Nothing is redirected here, so the machine leads to 127.0.0.1."""
    server = DnsServer(NoNames(), host="127.0.0.7", port=0)
    await server.start()
    try:
        address = IPv4Address("10.8.0.1")
        machine = State(address, address, (), (ZONE,), 8080, server.addresses[0][1], (), redirected=False, user=None)
        found = await asyncio.to_thread(check_dns_path, ZONE, server.addresses[0], machine)
        assert (found.level, found.mend) == (Level.FAIL, "kube-tunnel --dns-ip 127.0.0.1")
    finally:
        await server.aclose()


def test_an_address_that_is_not_this_machines() -> None:
    found = check_dns_port("192.0.2.1", 5353, ZONE)
    assert (found.level, found.mend) == (Level.WARN, "kube-tunnel --dns-ip 127.0.0.1")
    assert "192.0.2.1 is no address of this machine" in found.found


def test_the_system() -> None:
    assert "127.0.0.1" in resolve("localhost")
    assert resolve("nobody.invalid", timeout_s=0.01) == ()
