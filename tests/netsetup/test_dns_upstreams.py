"""What is not ours: asked of resolvers that are honest, slow, dead, or lie."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack

import pytest
from dnslib import RCODE, DNSRecord

from kubetunnel.core.errors import ClusterUnreachable
from netsetup.dns_server import DnsServer
from netsetup.dns_upstreams import NoUpstreamAnswered, Upstreams
from tests.netsetup.dug import dig
from tests.netsetup.scripted_resolver import ScriptedResolver, failing, honest, silent, truncating
from tests.netsetup.shop import ZONE, Shop, external

type Start = Callable[..., Coroutine[None, None, DnsServer]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts a DNS server with these upstreams."""
    async with AsyncExitStack() as stack:

        async def start(*upstreams: tuple[str, int], shop: Shop | None = None, timeout_s: float = 4.5) -> DnsServer:
            server = DnsServer(
                shop or Shop(), host="127.0.0.1", port=0, upstreams=upstreams, upstream_timeout_s=timeout_s
            )
            await server.start()
            stack.push_async_callback(server.aclose)
            return server

        yield start


def question(name: str = "www.example.com", type_: str = "A", id_: int = 4711) -> bytes:
    query = DNSRecord.question(name, type_)
    query.header.id = id_
    return bytes(query.pack())


async def exchange(server: DnsServer, packet: bytes) -> bytes:
    """By UDP, byte for byte."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        await loop.sock_connect(client, server.addresses[0])
        await loop.sock_sendall(client, packet)
        async with asyncio.timeout(10):
            return await loop.sock_recv(client, 65535)


async def dead_port() -> tuple[str, int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        address: tuple[str, int] = probe.getsockname()
        return address


class TestForwarding:
    async def test_as_it_came_but_for_the_id(self, start: Start) -> None:
        async with ScriptedResolver() as resolver:
            server = await start(resolver.address)
            # an unknown type, an unknown EDNS option, mixed case
            packet = question("wWw.Example.COM", "TYPE65280")
            packet = packet[:11] + b"\1" + packet[12:] + bytes.fromhex("0000291000000000000008fde9000401020304")
            reply = await exchange(server, packet)
            assert resolver.packets[0][2:] == packet[2:]
            assert resolver.packets[0][:2] != packet[:2]
            assert reply[:2] == packet[:2]
            assert reply[2:] == honest(packet, ("", 0))[0][2:]

    async def test_ids_and_ports_differ(self, start: Start) -> None:
        async with ScriptedResolver() as resolver:
            server = await start(resolver.address)
            for number in range(8):
                await exchange(server, question(f"n{number}.example.com"))
            assert len({packet[:2] for packet in resolver.packets}) >= 7
            assert len({port for _, port in resolver.clients}) >= 7

    async def test_labels_of_any_octets(self, start: Start) -> None:
        seen = []

        def record(packet: bytes, client: tuple[str, int]) -> list[bytes]:
            seen.append(packet)
            return [packet[:2] + b"\x81\x83" + packet[4:]]

        async with ScriptedResolver(record) as resolver:
            server = await start(resolver.address)
            packet = question()[:12] + b"\3\xff\0.\3com\0\0\1\0\1"
            assert (await exchange(server, packet))[3] & 15 == 3
            assert seen[0][12:] == packet[12:]

    async def test_an_answer_is_not_kept(self, start: Start) -> None:
        async with ScriptedResolver() as resolver:
            server = await start(resolver.address)
            await exchange(server, question())
            await exchange(server, question())
            assert len(resolver.packets) == 2

    async def test_the_same_question_at_the_same_time_is_asked_once(self, start: Start) -> None:
        async with ScriptedResolver(silent) as resolver:
            server = await start(resolver.address)
            one = asyncio.create_task(exchange(server, question(id_=1)))
            two = asyncio.create_task(exchange(server, question(id_=2)))
            async with asyncio.timeout(5):
                while server.facts().forwarded < 2:  # noqa: ASYNC110 - counters bring no event
                    await asyncio.sleep(0.01)
            assert len(resolver.packets) == 1
            resolver.script = honest
            resolver.datagram_received(resolver.packets[0], resolver.clients[0])
            assert (await one)[:2] == b"\0\1"
            assert (await two)[:2] == b"\0\2"

    async def test_names_of_the_cluster_while_the_upstreams_are_silent(self) -> None:
        async with ScriptedResolver(silent) as resolver:
            server = DnsServer(
                Shop(),
                host="127.0.0.1",
                port=0,
                upstreams=[resolver.address],
                max_open_per_client=4,
                upstream_timeout_s=30,
            )
            await server.start()
            asking = [asyncio.create_task(exchange(server, question(f"n{number}.example.com"))) for number in range(3)]
            try:
                async with asyncio.timeout(5):
                    while server.facts().forwarded < 3:  # noqa: ASYNC110 - counters bring no event
                        await asyncio.sleep(0.01)
                refused = DNSRecord.parse(await exchange(server, question("n3.example.com")))
                ours = DNSRecord.parse(await exchange(server, question(f"api.shop.svc.{ZONE}")))
                assert (RCODE[refused.header.rcode], RCODE[ours.header.rcode]) == ("SERVFAIL", "NOERROR")
                assert server.facts().limited == 1
            finally:
                for task in asking:
                    task.cancel()
                await server.aclose()

    async def test_forwarded_while_the_cluster_is_away(self, start: Start) -> None:
        shop = Shop()
        shop.error = ClusterUnreachable("It is off.")
        async with ScriptedResolver() as resolver:
            server = await start(resolver.address, shop=shop)
            assert (await dig(server.addresses[0], f"api.shop.svc.{ZONE}")).status == "SERVFAIL"
            assert (await dig(server.addresses[0], "www.example.com")).data == ["192.0.2.1"]

    async def test_it_counts(self, start: Start) -> None:
        async with ScriptedResolver() as resolver:
            server = await start(resolver.address)
            await exchange(server, question())
            assert server.facts().answers == {("A", "NOERROR"): 1}
            assert server.facts().forwarded == 1


class TestSizes:
    async def test_truncated_then_by_tcp(self, start: Start) -> None:
        async with ScriptedResolver(truncating, tcp=True) as resolver:
            server = await start(resolver.address)
            dug = await dig(server.addresses[0], "large.example.com", "TXT", "+bufsize=512")
            assert len(dug.answer) == 12
            assert resolver.clients[-1] == ("tcp", 0)

    async def test_the_truncated_reply_itself(self, start: Start) -> None:
        async with ScriptedResolver(truncating) as resolver:
            server = await start(resolver.address)
            assert "tc" in (await dig(server.addresses[0], "large.example.com", "TXT", "+noedns", "+ignore")).flags

    async def test_a_resolver_that_sends_more_than_was_asked_for(self, start: Start) -> None:
        async with ScriptedResolver() as resolver:
            server = await start(resolver.address)
            dug = await dig(server.addresses[0], "large.example.com", "TXT", "+noedns", "+ignore")
            assert "tc" in dug.flags
            assert not dug.answer

    async def test_a_large_answer_for_who_takes_it(self, start: Start) -> None:
        async with ScriptedResolver() as resolver:
            server = await start(resolver.address)
            dug = await dig(server.addresses[0], "large.example.com", "TXT", "+bufsize=4096", "+ignore")
            assert len(dug.answer) == 12


class TestTroubles:
    async def test_a_dead_one_is_passed_over(self, start: Start) -> None:
        async with ScriptedResolver() as resolver:
            server = await start(await dead_port(), resolver.address)
            assert (await dig(server.addresses[0], "www.example.com", timeout_s=3)).data == ["192.0.2.1"]

    async def test_a_silent_one_gets_company_and_is_asked_last_then(self) -> None:
        async with ScriptedResolver(silent) as first, ScriptedResolver() as second:
            upstreams = Upstreams([first.address, second.address], next_after_s=0.05)
            assert b"\xc0\x00\x02\x01" in await upstreams.ask(question(), tcp=False)
            assert b"\xc0\x00\x02\x01" in await upstreams.ask(question("other.example.com"), tcp=False)
            assert (len(first.packets), len(second.packets)) == (1, 2)
            await upstreams.aclose()

    async def test_a_slow_one_is_still_heard(self) -> None:
        async with ScriptedResolver(silent) as slow, ScriptedResolver(silent) as other:
            upstreams = Upstreams([slow.address, other.address], next_after_s=0.05)
            asking = asyncio.create_task(upstreams.ask(question(), tcp=False))
            await other.asked.wait()
            slow.script = honest
            slow.datagram_received(slow.packets[0], slow.clients[0])
            assert b"\xc0\x00\x02\x01" in await asking
            await upstreams.aclose()

    async def test_a_lost_datagram_is_sent_again(self) -> None:
        def lossy(packet: bytes, client: tuple[str, int]) -> list[bytes]:
            return honest(packet, client) if len(resolver.packets) > 1 else []

        async with ScriptedResolver(lossy) as resolver:
            upstreams = Upstreams([resolver.address], next_after_s=0.05)
            assert b"\xc0\x00\x02\x01" in await upstreams.ask(question(), tcp=False)
            assert resolver.packets[0][:2] != resolver.packets[1][:2]
            await upstreams.aclose()

    async def test_a_failing_one_is_passed_over(self, start: Start) -> None:
        async with ScriptedResolver(failing) as first, ScriptedResolver() as second:
            server = await start(first.address, second.address)
            assert (await dig(server.addresses[0], "www.example.com")).data == ["192.0.2.1"]

    async def test_a_failing_one_is_not_asked_again(self, start: Start) -> None:
        async with ScriptedResolver(failing) as resolver:
            server = await start(resolver.address)
            assert (await dig(server.addresses[0], "www.example.com")).status == "SERVFAIL"
            assert len(resolver.packets) == 1

    async def test_all_fail(self, start: Start) -> None:
        async with ScriptedResolver(failing) as first, ScriptedResolver(silent) as second:
            server = await start(first.address, second.address, await dead_port(), timeout_s=0.2)
            assert (await dig(server.addresses[0], "www.example.com", timeout_s=3)).status == "SERVFAIL"

    @pytest.mark.parametrize("tcp", [False, True])
    async def test_all_dead(self, start: Start, tcp: bool) -> None:
        server = await start(await dead_port(), timeout_s=0.5)
        words = ["+tcp"] if tcp else []
        assert (await dig(server.addresses[0], "www.example.com", *words, timeout_s=3)).status == "SERVFAIL"

    async def test_liars_are_not_heard(self) -> None:
        def lying(packet: bytes, client: tuple[str, int]) -> list[bytes]:
            (true,) = honest(packet, client)
            false = true.replace(bytes([192, 0, 2, 1]), bytes([6, 6, 6, 6]))
            other_id = bytes([false[0] ^ 1]) + false[1:]
            other_name = false.replace(b"\3www", b"\3wxw")
            other_type = false.replace(b"\3com\0\0\1", b"\3com\0\0\5", 1)
            no_reply = false[:2] + bytes([false[2] & 0x7F]) + false[3:]
            no_question = false[:4] + b"\0\0" + false[6:]
            return [other_id, other_name, other_type, no_reply, no_question, b"", b"\0", false[:11], true]

        async with ScriptedResolver(lying) as resolver:
            upstreams = Upstreams([resolver.address], next_after_s=0.5)
            reply = await upstreams.ask(question(), tcp=False)
            assert bytes([192, 0, 2, 1]) in reply
            await upstreams.aclose()

    async def test_a_refusal_without_the_question_is_heard(self) -> None:
        async with ScriptedResolver(lambda packet, _: [packet[:2] + b"\x80\x01" + bytes(8)]) as resolver:
            upstreams = Upstreams([resolver.address])
            assert (await upstreams.ask(question(), tcp=False))[3] == 1
            await upstreams.aclose()

    async def test_another_sender_is_not_heard(self) -> None:
        def spoofed(packet: bytes, client: tuple[str, int]) -> list[bytes]:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.sendto(honest(packet, client)[0], client)
            return []

        async with ScriptedResolver(spoofed) as resolver:
            upstreams = Upstreams([resolver.address], timeout_s=0.3, next_after_s=0.1)
            with pytest.raises(NoUpstreamAnswered):
                await upstreams.ask(question(), tcp=False)
            await upstreams.aclose()

    async def test_ourselves_among_them(self, start: Start, caplog: pytest.LogCaptureFixture) -> None:
        """A redirection may lead from what looks like another resolver to us."""
        async with ScriptedResolver(silent) as resolver:
            server = await start(resolver.address)

            def back_to_us(packet: bytes, client: tuple[str, int]) -> list[bytes]:
                server.datagram(packet, client)
                return []

            resolver.script = back_to_us
            assert (await dig(server.addresses[0], "www.example.com", timeout_s=3)).status == "SERVFAIL"
            assert len(resolver.packets) <= 2
            assert "back to us" in caplog.text

    async def test_closing_gives_up_what_is_under_way(self) -> None:
        async with ScriptedResolver(silent) as resolver:
            server = DnsServer(Shop(), host="127.0.0.1", port=0, upstreams=[resolver.address])
            await server.start()
            asking = asyncio.create_task(exchange(server, question()))
            await resolver.asked.wait()
            before = asyncio.all_tasks()
            await server.aclose()
            assert (asyncio.all_tasks() & before) <= {asyncio.current_task(), asking}
            asking.cancel()
            await asyncio.wait([asking])


class TestAliases:
    async def test_an_external_name_with_its_addresses(self, start: Start) -> None:
        async with ScriptedResolver() as resolver:
            server = await start(resolver.address)
            name = f"elsewhere.shop.svc.{ZONE}"
            dug = await dig(server.addresses[0], name)
            assert [words[3:] for words in dug.answer] == [["CNAME", "www.example.com."], ["A", "192.0.2.1"]]
            assert (await dig(server.addresses[0], name, "CNAME")).data == ["www.example.com."]
            aaaa = await dig(server.addresses[0], name, "AAAA")
            assert (aaaa.status, aaaa.data) == ("NOERROR", ["www.example.com."])

    async def test_further_aliases(self, start: Start) -> None:
        shop = Shop()
        shop.states["elsewhere"] = external("elsewhere", "alias.example.com")
        async with ScriptedResolver() as resolver:
            server = await start(resolver.address, shop=shop)
            dug = await dig(server.addresses[0], f"elsewhere.shop.svc.{ZONE}")
            assert [" ".join(words[3:]) for words in dug.answer] == [
                "CNAME alias.example.com.",
                "CNAME target.example.com.",
                "A 192.0.2.2",
            ]

    async def test_nothing_at_its_end(self, start: Start) -> None:
        shop = Shop()
        shop.states["gone"] = external("gone", "nothing.example.com")
        async with ScriptedResolver() as resolver:
            server = await start(resolver.address, shop=shop)
            dug = await dig(server.addresses[0], f"gone.shop.svc.{ZONE}")
            assert (dug.status, dug.data) == ("NXDOMAIN", ["nothing.example.com."])

    async def test_no_resolver_answers(self, start: Start) -> None:
        server = await start(await dead_port(), timeout_s=0.3)
        assert (await dig(server.addresses[0], f"elsewhere.shop.svc.{ZONE}", timeout_s=3)).status == "SERVFAIL"
