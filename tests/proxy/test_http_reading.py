"""Readers that can be paused."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from mitmproxy.connection import Server

from kubetunnel.proxy.http import reading as reading_module
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


async def test_what_counts_as_waiting_for_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time within reads, over all of them; neither while the reader is paused, nor while nobody reads."""
    now_s = 100.0
    monkeypatch.setattr(reading_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    readers, server = PausableReaders(), Server(address=("api.shop", 80))
    assert readers.waited_s(server) == 0
    source = asyncio.StreamReader()
    reader = readers.wrap(server, source)
    now_s += 10  # nobody reads
    assert readers.waited_s(server) == 0
    for seconds in (3, 4):
        before_s = readers.waited_s(server)
        reading = asyncio.ensure_future(reader.read(10))
        await asyncio.sleep(0)  # others have their turn first
        await asyncio.sleep(0)
        now_s += seconds
        assert readers.waited_s(server) == before_s + seconds
        source.feed_data(b"abc")
        assert await reading == b"abc"
        now_s += 10
        assert readers.waited_s(server) == before_s + seconds
    readers.pause(server)
    reading = asyncio.ensure_future(reader.read(10))
    await asyncio.sleep(0)
    now_s += 10
    assert readers.waited_s(server) == 7
    readers.resume(server)
    source.feed_data(b"abc")
    assert await reading == b"abc"


async def test_who_takes_long_for_a_piece_lets_others_have_a_turn_and_gets_a_smaller_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr(reading_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    source = asyncio.StreamReader()
    source.feed_data(bytes(300_000))
    reader = PausableReaders().wrap(Server(address=("api.shop", 80)), source)
    turns: list[str] = []

    async def read_after(took_s: float) -> int:
        nonlocal now_s
        now_s += took_s
        asyncio.get_running_loop().call_soon(turns.append, "another's")
        return len(await reader.read(64_000))

    assert await read_after(0.0) == 64_000
    assert await read_after(0.004) == 64_000
    assert not turns, "a wait for each piece would cost what is quick its speed"
    assert await read_after(0.04) == pytest.approx(32_000, abs=9)  # what would have taken 20 ms
    assert len(turns) == 3
    assert await read_after(10.0) == 16 << 10
