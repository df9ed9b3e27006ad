"""Readers that can be paused."""

from __future__ import annotations

import asyncio

from mitmproxy.connection import Server

from kubetunnel.proxy.http.reading import PausableReaders


async def test_a_paused_reader_reads_nothing_until_it_is_resumed() -> None:
    readers, server = PausableReaders(), Server(address=("api.shop", 80))
    source = asyncio.StreamReader()
    source.feed_data(b"abc")
    reader = readers.wrap(server, source)
    readers.pause(server)
    reading = asyncio.ensure_future(reader.read(10))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not reading.done()
    readers.resume(server)
    assert await reading == b"abc"


def test_other_connections_are_not_concerned() -> None:
    readers = PausableReaders()
    readers.pause(Server(address=("api.shop", 80)))
