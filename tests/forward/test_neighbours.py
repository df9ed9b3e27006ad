"""Streams that share an upstream: who may, who has to leave, and what a stopped reader costs the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from unittest.mock import Mock

import pytest

from kubetunnel.core.errors import UpstreamReset
from kubetunnel.forward.errors import StreamFailed
from kubetunnel.forward.lane import FIRST_WORD_S, Lane
from kubetunnel.forward.neighbours import CROWD_HELD_BYTES, HELD_BYTES
from kubetunnel.forward.pool import PortForwards
from kubetunnel.forward.upstream import STOPPED_S, Upstream
from tests.forward.apiserver import (
    COUNTED,
    COUNTED_BYTES,
    DEAF,
    ECHO,
    FLOODS,
    REFUSED,
    SPDY,
    TUNNEL,
    V4,
    Access,
    ApiServer,
)
from tests.forward.test_streams import Recorder, failure_of, to, until

type Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def forwards(access: Access) -> AsyncIterator[PortForwards]:
    pool = PortForwards(access, spares=0)
    yield pool
    await pool.aclose()


async def exchange(streams: Streams) -> None:
    reader, writer = streams
    writer.write(b"question")
    assert await reader.readexactly(8) == b"question"


async def lane(forwards: PortForwards) -> Streams:
    streams = await forwards.open_connection(to(ECHO), shared=True)
    await exchange(streams)
    return streams


def is_crowded(streams: Streams) -> bool:
    crowded: bool = streams[1].get_extra_info("crowded")
    return crowded


def only_upstream(forwards: PortForwards) -> Upstream:
    (upstream,) = forwards._of_upstream
    return upstream


@pytest.mark.parametrize("protocol", [TUNNEL, SPDY])
async def test_small_exchanges_share_one_upstream(api: ApiServer, forwards: PortForwards, protocol: str) -> None:
    api.speaks = frozenset({protocol})
    lanes = await asyncio.gather(*(lane(forwards) for _ in range(16)))
    assert api.connections == 1
    assert not any(is_crowded(streams) for streams in lanes)
    _, exclusive = await forwards.open_connection(to(ECHO))
    assert api.connections == 2
    for _, writer in lanes:
        writer.close()
    exclusive.close()


async def test_over_v4_nothing_is_shared(api: ApiServer, forwards: PortForwards) -> None:
    api.speaks = frozenset({V4})
    lanes = await asyncio.gather(*(lane(forwards) for _ in range(3)))
    assert len(api.sessions) == 3
    for _, writer in lanes:
        writer.close()


async def test_neighbours_of_a_bulky_stream_are_told_to_leave_it(api: ApiServer, forwards: PortForwards) -> None:
    neighbour = await lane(forwards)
    bulky = await forwards.open_connection(to(FLOODS), shared=True)
    assert api.connections == 1
    await bulky[0].readexactly(256 * 1024)
    assert is_crowded(neighbour)
    assert not is_crowded(bulky), "it may stay: the others leave"
    await exchange(neighbour)
    moved = await lane(forwards)
    assert api.connections == 2
    assert not is_crowded(moved)
    for _, writer in (neighbour, bulky, moved):
        writer.transport.abort()


async def test_an_upload_is_bulky_too(api: ApiServer, forwards: PortForwards) -> None:
    neighbour = await lane(forwards)
    _, writer = await forwards.open_connection(to(DEAF), shared=True)
    writer.write(bytes(100 * 1024))
    assert is_crowded(neighbour)
    for each in (neighbour[1], writer):
        each.transport.abort()


async def test_who_was_bulky_is_forgiven_in_time(forwards: PortForwards) -> None:
    neighbour, bulky = await lane(forwards), await lane(forwards)
    bulky[1].write(bytes(200 * 1024))
    await bulky[0].readexactly(200 * 1024)
    assert is_crowded(neighbour)
    await exchange(bulky)
    now = asyncio.get_running_loop().time()
    upstream = only_upstream(forwards)
    upstream.look(now + 1)
    upstream.look(now + 9)
    assert is_crowded(neighbour)
    upstream.look(now + 11)
    assert not is_crowded(neighbour)
    for _, writer in (neighbour, bulky):
        writer.close()


async def test_neighbours_of_a_failed_stream_are_told_to_leave(api: ApiServer, forwards: PortForwards) -> None:
    neighbour = await lane(forwards)
    refused = await forwards.open_connection(to(REFUSED), shared=True)
    await failure_of(refused[0])
    assert is_crowded(neighbour)
    await exchange(neighbour)
    refused[1].close()
    neighbour[1].close()


@pytest.mark.parametrize("protocol", [TUNNEL, SPDY])
async def test_exchanges_go_on_beside_a_stopped_reader(api: ApiServer, forwards: PortForwards, protocol: str) -> None:
    api.speaks = frozenset({protocol})
    neighbour = await lane(forwards)
    transport, stopped = await forwards.open(to(FLOODS), lambda: Recorder(pause=True), shared=True)
    upstream = only_upstream(forwards)
    for each in upstream._lanes.values():
        each.heard_at = 0.0  # long ago: the exchange is over
    await until(lambda: upstream._reading_paused)
    assert stopped.transport.held_bytes < 2 * HELD_BYTES, "nobody waits: it stops for it"
    for _ in range(5):
        await exchange(neighbour)
    assert stopped.received == 0
    assert stopped.transport.held_bytes < CROWD_HELD_BYTES + HELD_BYTES
    assert is_crowded(neighbour)
    stopped.pause = False
    transport.resume_reading()
    await until(lambda: stopped.received > CROWD_HELD_BYTES)
    transport.abort()
    neighbour[1].close()


async def test_a_reader_that_stops_pays_where_a_neighbour_waits_in_vain(api: ApiServer, forwards: PortForwards) -> None:
    reader, writer = await forwards.open_connection(to(DEAF), shared=True)
    writer.write(b"a question that takes long")
    transport, stopped = await forwards.open(to(FLOODS), lambda: Recorder(pause=True), shared=True)
    upstream = only_upstream(forwards)
    await until(lambda: stopped.transport.held_bytes >= CROWD_HELD_BYTES)
    assert upstream._reading_paused
    now = asyncio.get_running_loop().time()
    upstream.look(now + STOPPED_S - 0.5)
    assert not stopped.lost.done()
    upstream.look(now + STOPPED_S + 0.5)
    assert not upstream._reading_paused
    assert not upstream.retired
    stopped.pause = False
    transport.resume_reading()
    failure = await stopped.lost
    assert isinstance(failure, StreamFailed)
    assert type(failure.error) is UpstreamReset
    assert "other streams behind them" in str(failure)
    assert not reader.at_eof()
    writer.transport.abort()


async def test_a_server_that_speaks_first_is_heard_beside_a_stopped_reader(
    api: ApiServer, forwards: PortForwards
) -> None:
    silent, _ = await forwards.open(to(DEAF), Recorder, shared=True)
    transport, stopped = await forwards.open(to(FLOODS), lambda: Recorder(pause=True), shared=True)
    upstream = only_upstream(forwards)
    await until(lambda: upstream._reading_paused)
    upstream.look(asyncio.get_running_loop().time() + STOPPED_S + 0.5)
    stopped.pause = False
    transport.resume_reading()
    assert isinstance(await stopped.lost, StreamFailed), "what the other server says first may lie behind its bytes"
    silent.abort()


def test_what_nobody_said_a_word_on_is_waited_for_while_it_is_young() -> None:
    young = Lane(stream=Mock(paused=False), opened_at=1000.0)
    assert young.in_flight(1000.0 + FIRST_WORD_S - 0.1)
    assert not young.in_flight(1000.0 + FIRST_WORD_S)
    young.heard_at = 1000.5
    assert not young.in_flight(1001.0)


async def test_all_who_shared_a_cut_upstream_find_one_new(api: ApiServer, forwards: PortForwards) -> None:
    lanes = [await lane(forwards) for _ in range(4)]
    api.cut()
    failures = await asyncio.gather(*(failure_of(reader) for reader, _ in lanes))
    assert {type(failure.error) for failure in failures} == {UpstreamReset}
    again = await asyncio.gather(*(lane(forwards) for _ in range(4)))
    assert api.connections == 2
    (facts,) = forwards.forwards()
    assert (facts.state, facts.redials, facts.retries) == ("ready", 1, 0)
    for _, writer in (*lanes, *again):
        writer.close()


async def test_what_there_is_to_know(api: ApiServer, forwards: PortForwards) -> None:
    assert forwards.forwards() == []
    echo = await lane(forwards)
    reader, writer = await forwards.open_connection(to(COUNTED))
    assert len(await reader.read()) == COUNTED_BYTES
    await until(writer.is_closing)
    (facts,) = forwards.forwards()
    assert (facts.namespace, facts.pod, facts.state, facts.protocol) == ("shop", "web", "ready", TUNNEL)
    assert (facts.streams, facts.streams_opened, facts.upstreams, facts.dials) == (1, 2, 2, 2)
    assert (facts.bytes_sent, facts.bytes_received) == (8, COUNTED_BYTES + 8)
    assert facts.last_error == ""
    echo[1].close()
    await until(lambda: forwards.forwards()[0].streams == 0)
    assert forwards.forwards()[0].bytes_sent == 8


async def test_a_dial_that_fails_is_a_broken_forward_until_one_succeeds(api: ApiServer, forwards: PortForwards) -> None:
    api.always = dict.fromkeys(("GET", "POST"), (500, b"error dialing backend: no route to host"))
    with pytest.raises(UpstreamReset):
        await forwards.open_connection(to(ECHO))
    (facts,) = forwards.forwards()
    assert facts.state == "broken"
    assert "cannot reach the node" in facts.reason
    assert facts.last_error == facts.reason
    api.always = {}
    echo = await lane(forwards)
    (facts,) = forwards.forwards()
    assert (facts.state, facts.retries, facts.redials) == ("ready", 1, 0)
    assert facts.last_error_at is not None
    echo[1].close()
    forwards.drain("shop", "web")
    assert forwards.forwards()[0].state == "draining"
