"""Answers that are at hand, and for how long."""

from __future__ import annotations

import asyncio
import struct

import pytest
from dnslib import DNSRecord

from netsetup.dns_cache import AnswerCache
from netsetup.dns_packing import pack_answer
from netsetup.dns_records import Answer, Record, RecordType
from netsetup.dns_server import DnsServer
from netsetup.dns_wire import Query, read_query
from tests.netsetup.shop import ZONE, Shop, address

LABEL = ("A", "NOERROR")


def question(name: str = "api.shop.svc.cluster.local", id_: int = 1) -> bytes:
    query = DNSRecord.question(name)
    query.header.id = id_
    return bytes(query.pack())


def answer(packet: bytes, *ttls_s: int) -> bytes:
    query = read_query(packet)
    assert isinstance(query, Query)
    owner = query.question.text
    return pack_answer(
        query,
        Answer(records=tuple(Record(owner, RecordType.A, ttl_s, address("10.8.0.1")) for ttl_s in ttls_s)),
        tcp=True,
    )


def cached(cache: AnswerCache, packet: bytes, now_s: float) -> DNSRecord | None:
    found = cache.get(packet, now_s)
    return DNSRecord.parse(packet[:2] + found.tail) if found else None


def test_the_ttls_count_down() -> None:
    cache = AnswerCache()
    cache.put(question(), answer(question(), 5, 60), LABEL, 100.0, 5)
    for now_s, left in ((100.0, [5, 60]), (100.9, [5, 60]), (101.0, [4, 59]), (104.9, [1, 56])):
        found = cached(cache, question(), now_s)
        assert found is not None
        assert [record.ttl for record in found.rr] == left
    assert cached(cache, question(), 105.0) is None


def test_by_everything_but_the_id() -> None:
    cache = AnswerCache()
    cache.put(question(), answer(question(), 5), LABEL, 0.0, 5)
    assert cached(cache, question(id_=99), 1.0) is not None
    assert cached(cache, question("API.shop.svc.cluster.local"), 1.0) is None
    norec = bytearray(question())
    norec[2] &= 0xFE
    assert cached(cache, bytes(norec), 1.0) is None


def test_bounded() -> None:
    cache = AnswerCache(max_entries=2)
    for number in range(3):
        packet = question(f"n{number}.shop.svc.cluster.local")
        cache.put(packet, answer(packet, 5), LABEL, 0.0, 5)
    assert cached(cache, question("n0.shop.svc.cluster.local"), 1.0) is None
    assert cached(cache, question("n2.shop.svc.cluster.local"), 1.0) is not None


def test_bounded_in_bytes() -> None:
    packets = [question(f"n{number}.shop.svc.cluster.local") for number in range(3)]
    answers = [answer(packet, *[5] * 50) for packet in packets]
    cache = AnswerCache(max_answers_bytes=2 * len(answers[0]))
    for packet, large in [*zip(packets, answers, strict=True), (packets[1], answers[1])]:  # the last replaces itself
        cache.put(packet, large, LABEL, 0.0, 5)
    assert [cached(cache, packet, 4.0) is not None for packet in packets] == [False, True, True]
    cache.put(packets[0], bytes(3 * len(answers[0])), LABEL, 4.0, 5)
    assert [cached(cache, packet, 4.0) for packet in packets] == [None] * 3


@pytest.mark.parametrize("ttl_s", [5, 0])
async def test_in_the_server(ttl_s: int) -> None:
    shop = Shop()
    server = DnsServer(shop, host="127.0.0.1", port=0, ttl_s=ttl_s)
    await server.start()
    try:
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        packet = question(f"api.shop.svc.{ZONE}")
        for _ in range(3):
            writer.write(struct.pack("!H", len(packet)) + packet)
            await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        writer.close()
        await writer.wait_closed()
        assert shop.asked[f"api.shop.svc.{ZONE}"] == (1 if ttl_s else 3)
        assert server.facts().cached == (2 if ttl_s else 0)
    finally:
        await server.aclose()
