"""DNS over TCP (RFC 7766) and the limits, byte by byte."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from dnslib import RCODE, DNSRecord

from netsetup.dns_server import DnsServer
from netsetup.dns_tcp import TcpListener
from tests.netsetup.shop import ZONE, Shop

SHOP = f"shop.svc.{ZONE}"


@asynccontextmanager
async def served(shop: Shop, **limits: float) -> AsyncIterator[DnsServer]:
    server = DnsServer(shop, host="127.0.0.1", port=0, **limits)  # type: ignore[arg-type]
    await server.start()
    try:
        yield server
    finally:
        await server.aclose()


@asynccontextmanager
async def connected(address: tuple[str, int]) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        async with asyncio.timeout(10):
            yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


def message(name: str, id_: int = 1) -> bytes:
    query = DNSRecord.question(name)
    query.header.id = id_
    packet = bytes(query.pack())
    return len(packet).to_bytes(2) + packet


async def receive(reader: asyncio.StreamReader) -> DNSRecord:
    return DNSRecord.parse(await reader.readexactly(int.from_bytes(await reader.readexactly(2))))


class TestMessages:
    async def test_pipelined_and_answered_as_they_are_ready(self) -> None:
        shop = Shop()
        async with served(shop) as server, connected(server.addresses[0]) as (reader, writer):
            shop.gate.clear()
            writer.write(message(f"api.{SHOP}", 1) + message(f"dns-version.{ZONE}", 2))
            assert (await receive(reader)).header.id == 2
            shop.gate.set()
            assert (await receive(reader)).header.id == 1

    async def test_cut_at_every_byte(self) -> None:
        async with served(Shop()) as server, connected(server.addresses[0]) as (reader, writer):
            for byte in message(f"api.{SHOP}"):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
            assert len((await receive(reader)).rr) == 1

    async def test_half_closed_client_gets_its_answers(self) -> None:
        shop = Shop()
        async with served(shop) as server, connected(server.addresses[0]) as (reader, writer):
            shop.gate.clear()
            writer.write(message(f"api.{SHOP}", 1) + message(f"plain.{SHOP}", 2))
            writer.write_eof()
            asyncio.get_running_loop().call_later(0.05, shop.gate.set)
            assert {(await receive(reader)).header.id, (await receive(reader)).header.id} == {1, 2}
            assert await reader.read() == b""

    async def test_a_message_of_nothing_is_passed_over(self) -> None:
        async with served(Shop()) as server, connected(server.addresses[0]) as (reader, writer):
            writer.write(b"\0\0" + b"\0\3abc" + message(f"api.{SHOP}", 7))
            assert (await receive(reader)).header.id == 7

    async def test_a_message_that_is_malformed(self) -> None:
        async with served(Shop()) as server, connected(server.addresses[0]) as (reader, writer):
            writer.write(b"\0\x0d" + b"\0\7\1\0\0\1\0\0\0\0\0\0\x3f")
            reply = await receive(reader)
            assert (reply.header.id, RCODE[reply.header.rcode]) == (7, "FORMERR")


class TestEnds:
    @pytest.mark.parametrize("sent", [b"", b"\0", message(f"api.{SHOP}")[:20]])
    async def test_a_silent_connection_is_closed(self, sent: bytes) -> None:
        async with (
            served(Shop(), tcp_idle_timeout_s=0.1) as server,
            connected(server.addresses[0]) as (reader, writer),
        ):
            writer.write(sent)
            assert await reader.read() == b""

    async def test_closing_with_open_connections_and_questions(self) -> None:
        shop = Shop()
        shop.gate.clear()
        async with served(shop) as server, connected(server.addresses[0]) as (reader, writer):
            writer.write(message(f"api.{SHOP}"))
            await shop.was_asked.wait()
            await server.aclose()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await reader.readexactly(1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def test_a_client_that_reads_nothing(self) -> None:
        async def large(packet: bytes, client: str) -> bytes:
            return bytes(65000)

        listener = TcpListener(large, idle_timeout_s=0.1)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        await listener.start("127.0.0.1", port)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            writer.write((b"\0\1x") * 2000)
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(10):
                    while True:
                        writer.write(b"\0\1x")
                        await writer.drain()
                        await asyncio.sleep(0.01)
            writer.transport.abort()
            assert not reader.at_eof()
        finally:
            await listener.aclose()

    async def test_too_many_connections(self) -> None:
        async def never(packet: bytes, client: str) -> None:
            return None

        listener = TcpListener(never, max_connections=1)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            address = probe.getsockname()
        await listener.start(*address)
        try:
            async with connected(address) as (_, first), connected(address) as (reader, _):
                with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                    await reader.readexactly(1)
                assert not first.transport.is_closing()
        finally:
            await listener.aclose()


class TestLimits:
    async def test_of_one_client_and_of_all(self) -> None:
        shop = Shop()
        async with (
            served(shop, max_open=3, max_open_per_client=2, patience_s=30) as server,
            connected(server.addresses[0]) as (reader, writer),
        ):
            shop.gate.clear()
            writer.write(b"".join(message(f"n{number}.{SHOP}", number) for number in (1, 2, 3)))
            refused = await receive(reader)
            assert (refused.header.id, RCODE[refused.header.rcode]) == (3, "SERVFAIL")
            assert server.facts().limited == 1
            shop.gate.set()
            assert {(await receive(reader)).header.id, (await receive(reader)).header.id} == {1, 2}
            writer.write(message(f"api.{SHOP}", 4))
            assert RCODE[(await receive(reader)).header.rcode] == "NOERROR"

    async def test_answers_at_hand_are_not_limited(self) -> None:
        shop = Shop()
        async with (
            served(shop, max_open=1, patience_s=30) as server,
            connected(server.addresses[0]) as (reader, writer),
        ):
            writer.write(message(f"api.{SHOP}", 1))
            await receive(reader)
            shop.gate.clear()
            writer.write(message(f"plain.{SHOP}", 2) + message(f"api.{SHOP}", 3))
            reply = await receive(reader)
            assert (reply.header.id, RCODE[reply.header.rcode]) == (3, "NOERROR")
            shop.gate.set()
            assert (await receive(reader)).header.id == 2
