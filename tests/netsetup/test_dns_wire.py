"""Any bytes at all: nothing but answers and silence, and the server lives on."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import struct

import pytest
from dnslib import DNSRecord
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netsetup.answers import Authority
from netsetup.dns_lookups import Lookups
from netsetup.dns_packing import pack_answer, pack_question
from netsetup.dns_records import Address, Answer, Question, Rcode, Record, RecordType
from netsetup.dns_responder import Responder
from netsetup.dns_server import DnsServer
from netsetup.dns_upstreams import Upstreams
from netsetup.dns_wire import Edns, Query, is_reply, read_addresses, read_query
from tests.netsetup.shop import RANGE, ZONE, Shop, address

NAME = b"\3api\4shop\3svc\7cluster\5local\0"
HEADER = b"\x12\x34\1\0\0\1\0\0\0\0\0\0"
QUERY = HEADER + NAME + b"\0\1\0\1"
OPT = b"\0\0\x29\x10\0\0\0\x80\0\0\0"


def with_additional(*records: bytes) -> bytes:
    return QUERY[:10] + struct.pack("!H", len(records)) + QUERY[12:] + b"".join(records)


class TestReadQuery:
    def test_a_query(self) -> None:
        question = Question(("api", "shop", "svc", "cluster", "local"), 1, 1)
        assert read_query(QUERY) == Query(0x1234, 0x0100, question, QUERY[12:])

    def test_edns(self) -> None:
        query = read_query(with_additional(OPT))
        assert isinstance(query, Query)
        assert query.edns == Edns(4096, 0, dnssec_ok=True)
        assert query.max_udp_bytes == 4096

    @pytest.mark.parametrize(("offered", "meant"), [(0, 512), (1232, 1232), (65535, 4096)])
    def test_sizes(self, offered: int, meant: int) -> None:
        query = read_query(with_additional(OPT[:3] + struct.pack("!H", offered) + OPT[5:]))
        assert isinstance(query, Query)
        assert query.max_udp_bytes == meant

    @pytest.mark.parametrize("packet", [b"", QUERY[:11], QUERY[:2] + b"\x81" + QUERY[3:]], ids=["", "short", "a reply"])
    def test_not_to_be_answered(self, packet: bytes) -> None:
        assert read_query(packet) is None

    @pytest.mark.parametrize(
        "packet",
        [
            HEADER[:5] + b"\0" + HEADER[6:],  # no question
            HEADER[:5] + b"\2" + QUERY[6:] + QUERY[12:],  # two
            HEADER,
            QUERY[:-1],
            QUERY + b"\0",
            HEADER + b"\xc0\x0c\0\1\0\1",  # a pointer to itself
            HEADER + b"\x40" + bytes(70),
            HEADER + b"\3abc" * 64 + b"\0\0\1\0\1",  # 257 octets
            with_additional(OPT, OPT),
            with_additional(b"\1a" + OPT),
            with_additional(OPT[:-2] + b"\0\1"),
        ],
    )
    def test_malformed(self, packet: bytes) -> None:
        assert read_query(packet) is Rcode.FORMERR

    def test_another_opcode(self) -> None:
        assert read_query(QUERY[:2] + b"\x28" + QUERY[3:]) is Rcode.NOTIMP

    @given(st.binary(max_size=80) | st.builds(lambda tail: QUERY[:12] + tail, st.binary(max_size=60)))
    @example(QUERY[:10] + b"\0\1" + QUERY[12:] + b"\xc0")
    def test_any_bytes(self, packet: bytes) -> None:
        found = read_query(packet)
        assert found is None or isinstance(found, Rcode | Query)
        if isinstance(found, Query):
            assert packet[12:].startswith(found.question_bytes)

    @given(st.lists(st.binary(min_size=1, max_size=20), max_size=8), st.integers(0, 65535), st.integers(0, 65535))
    @example([b"x" * 63] * 3 + [b"x" * 61], 1, 1)  # the longest label in the longest name
    def test_what_was_written_is_read(self, labels: list[bytes], type_: int, class_: int) -> None:
        section = b"".join(bytes([len(label)]) + label for label in labels) + struct.pack("!BHH", 0, type_, class_)
        query = read_query(HEADER + section)
        assert isinstance(query, Query)
        texts = tuple(label.decode("latin-1") for label in labels)
        assert query.question == Question(texts, type_, class_)


class TestReplies:
    @given(st.binary(max_size=60))
    def test_any_bytes(self, reply: bytes) -> None:
        assert not is_reply(reply, QUERY) or reply[:2] == QUERY[:2]
        is_reply(QUERY[:2] + b"\x80\0\0\1" + reply, QUERY)

    def test_the_case_of_letters_may_change_but_not_the_type(self) -> None:
        reply = QUERY[:2] + b"\x81\x80" + QUERY[4:]
        assert is_reply(reply.replace(b"api", b"API"), QUERY)
        # type 65 is the letter A, type 97 the letter a
        typed = HEADER + NAME + b"\0\x41\0\1"
        assert not is_reply(reply[:-4] + b"\0\x61\0\1", typed)

    @given(st.binary(max_size=200))
    @example(b"\xc0\x0c" * 60)
    def test_addresses_of_any_bytes(self, rest: bytes) -> None:
        found = read_addresses(QUERY[:6] + b"\0\3" + bytes(4) + QUERY[12:] + rest)
        assert found is None or len(found) <= 3

    def test_addresses(self) -> None:
        alias = b"\xc0\x0c\0\5\0\1\0\0\0\x3c\0\6\3www\xc0\x19"
        packet = QUERY[:6] + b"\0\2" + bytes(4) + QUERY[12:] + alias + b"\xc0\x2a\0\1\0\1\0\0\0\7\0\4\xc0\0\2\1"
        packet = packet.replace(b"\xc0\x2a", bytes([0xC0, 12 + len(NAME) + 4 + 12]))
        assert read_addresses(packet) == (
            Record("api.shop.svc.cluster.local", RecordType.CNAME, 60, "www.cluster.local"),
            Record("www.cluster.local", RecordType.A, 7, address("192.0.2.1")),
        )

    def test_pointers_in_a_circle(self) -> None:
        at = len(QUERY)
        itself = struct.pack("!H", 0xC000 | at) + b"\0\1\0\1\0\0\0\1\0\0"
        assert read_addresses(QUERY[:6] + b"\0\1" + bytes(4) + QUERY[12:] + itself) is None

    def test_pointers_to_pointers_do_not_take_long(self) -> None:
        # each points to the one before: followed for every record it would take millions of steps
        chain = b"".join(struct.pack("!H", 0xC000 | (12 + 2 * i)) for i in range(5000))
        records = (struct.pack("!H", 0xC000 | (12 + 9998)) + b"\0\1\0\1\0\0\0\1\0\0") * 1000
        packet = QUERY[:4] + b"\0\1" + struct.pack("!HHH", 1000, 0, 0) + b"\0\0\1\0\1" + chain + records
        assert read_addresses(packet) is None


class TestPacking:
    def test_a_question_of_our_own(self) -> None:
        parsed = DNSRecord.parse(pack_question(("www", "example", "com"), 28))
        assert (str(parsed.q.qname), parsed.q.qtype, parsed.header.rd, len(parsed.ar)) == ("www.example.com.", 28, 1, 1)

    def test_names_are_compressed(self) -> None:
        query = read_query(QUERY)
        assert isinstance(query, Query)
        owner = "api.shop.svc.cluster.local"
        packet = pack_answer(query, Answer(records=(Record(owner, RecordType.A, 5, address("10.8.0.1")),)), tcp=False)
        assert packet[len(QUERY) :] == b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4\x0a\x08\0\1"

    @given(
        st.lists(st.ip_addresses(), max_size=80, unique=True),
        st.booleans(),
        st.sampled_from([QUERY, with_additional(OPT)]),
    )
    def test_never_more_than_the_client_takes(self, addresses: list[Address], tcp: bool, packet: bytes) -> None:
        query = read_query(packet)
        assert isinstance(query, Query)
        types = {4: RecordType.A, 6: RecordType.AAAA}
        records = tuple(Record("api.shop.svc.cluster.local", types[each.version], 5, each) for each in addresses)
        reply = pack_answer(query, Answer(records=records), tcp=tcp)
        parsed = DNSRecord.parse(reply)
        assert tcp or len(reply) <= query.max_udp_bytes
        assert len(parsed.rr) == (0 if parsed.header.tc else len(records))


def fuzzed_packets() -> st.SearchStrategy[bytes]:
    whole = st.sampled_from([QUERY, with_additional(OPT), HEADER + b"\x017\x010\x018\x0210\7in-addr\4arpa\0\0\x0c\0\1"])

    def mutated(packet: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
        changed = bytearray(packet)
        for at, value in changes:
            changed[at % len(changed)] = value
        return bytes(changed[: len(changed) - cut])

    change = st.tuples(st.integers(0, 200), st.integers(0, 255))
    return st.binary(max_size=100) | st.builds(
        mutated, whole, st.lists(change, max_size=6), st.sampled_from([0, 0, 0, 1, 7])
    )


class Defects(logging.Handler):
    """What the supervision point has caught."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


class TestFuzz:
    @settings(max_examples=400)
    @given(packets=st.lists(fuzzed_packets(), min_size=1, max_size=5))
    def test_the_responder(self, packets: list[bytes]) -> None:
        async def run() -> None:
            shop = Shop()
            lookups, upstreams = Lookups(shop), Upstreams([])
            responder = Responder(
                shop, lookups, upstreams, Authority((ZONE,), (RANGE,)), {}, random.Random(1), max_forwarded=9
            )
            for packet in packets:
                for tcp in (False, True):
                    reply = await responder.respond(packet, tcp=tcp)
                    if reply is not None:
                        assert reply[:2] == packet[:2]
                        assert reply[2] & 0x80
                        if packet.isascii():  # else dnslib may not take a label
                            DNSRecord.parse(reply)
            await lookups.aclose()

        defects = Defects()
        logging.getLogger("netsetup.dns_responder").addHandler(defects)
        try:
            asyncio.run(run())
        finally:
            logging.getLogger("netsetup.dns_responder").removeHandler(defects)
        assert defects.seen == []

    async def test_a_live_server_outlives_it(self) -> None:
        server = DnsServer(Shop(), host="127.0.0.1", port=0)
        await server.start()
        loop = asyncio.get_running_loop()
        rng = random.Random(7)
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.setblocking(False)
                await loop.sock_connect(client, server.addresses[0])
                for _ in range(2000):
                    packet = bytearray(with_additional(OPT))
                    for _ in range(rng.randrange(8)):
                        packet[rng.randrange(2, len(packet))] = rng.randrange(256)
                    await loop.sock_sendall(client, b"\0\1" + packet[2 : rng.choice([None, rng.randrange(60)])])
                await loop.sock_sendall(client, b"\xff\xff" + QUERY[2:])
                async with asyncio.timeout(10):
                    while (await loop.sock_recv(client, 65535))[:2] != b"\xff\xff":
                        pass
        finally:
            await server.aclose()
