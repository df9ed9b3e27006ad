"""Streams over all three protocols: what a client writes and reads, and how each failure reaches it."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import ConnectionRefused, UpstreamReset
from kubetunnel.forward.errors import StreamFailed
from kubetunnel.forward.lane import UpstreamFacts
from kubetunnel.forward.neighbours import HELD_BYTES
from kubetunnel.forward.pool import PortForwards
from kubetunnel.forward.spdy_upstream import ERROR_GRACE_S
from kubetunnel.forward.stream import ForwardStream
from tests.forward.apiserver import (
    ALL,
    COUNTED,
    COUNTED_BYTES,
    DEAF,
    ECHO,
    FLOODS,
    GONE,
    GREETS,
    HALF,
    REFUSED,
    RESETS,
    SPDY,
    TEXTS,
    TUNNEL,
    V4,
    Access,
    ApiServer,
    SpdySession,
)

PROTOCOLS = pytest.mark.parametrize("protocol", [TUNNEL, SPDY, V4])


def to(port: int) -> PodPort:
    return PodPort("shop", "web", port, "10.0.0.9")


def only(api: ApiServer, protocol: str) -> None:
    api.speaks = frozenset({protocol})


async def until(condition: object) -> None:
    """Wait until a callable holds; pytest's timeout ends a wait that never does."""
    assert callable(condition)
    while not condition():  # noqa: ASYNC110  (nobody sets an event for it)
        await asyncio.sleep(0.001)


async def failure_of(reader: asyncio.StreamReader) -> StreamFailed:
    with pytest.raises(StreamFailed) as caught:
        await reader.read()
    return caught.value


class Recorder(asyncio.Protocol):
    """Counts, and stops reading or raises on demand."""

    def __init__(self, *, pause: bool = False, broken: bool = False) -> None:
        self.received = 0
        self.pause = pause
        self.broken = broken
        self.writable = True
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, ForwardStream)
        self.transport = transport
        if self.pause:
            transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        assert not self.pause
        self.received += len(data)
        if self.broken:
            raise RuntimeError("a broken protocol")

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


@PROTOCOLS
@pytest.mark.parametrize("eager", [False, True])
async def test_bytes_arrive_whole_and_in_order(
    api: ApiServer, forwards: PortForwards, protocol: str, eager: bool
) -> None:
    if eager:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    only(api, protocol)
    sent = bytes(range(256)) * 2000
    reader, writer = await forwards.open_connection(to(ECHO))
    writer.write(sent[:10])
    writer.writelines([sent[10:300_000], sent[300_000:]])
    assert await reader.readexactly(len(sent)) == sent
    assert writer.get_extra_info("peername") == ("10.0.0.9", ECHO)
    facts = writer.get_extra_info("upstream")
    assert isinstance(facts, UpstreamFacts)
    assert (facts.protocol, facts.streams) == (protocol, 1)
    writer.close()
    await writer.wait_closed()


@PROTOCOLS
async def test_a_server_that_speaks_first(api: ApiServer, forwards: PortForwards, protocol: str) -> None:
    only(api, protocol)
    reader, writer = await forwards.open_connection(to(GREETS))
    assert await reader.readline() == b"220 ready\r\n"
    writer.close()


@PROTOCOLS
async def test_the_pods_end_is_end_of_file_after_the_last_byte(
    api: ApiServer, forwards: PortForwards, protocol: str
) -> None:
    only(api, protocol)
    reader, writer = await forwards.open_connection(to(COUNTED))
    assert len(await reader.read()) == COUNTED_BYTES
    await until(writer.is_closing)
    assert forwards.open_streams("shop", "web") == 0


@PROTOCOLS
@pytest.mark.parametrize(
    ("port", "expected"), [(REFUSED, ConnectionRefused), (RESETS, UpstreamReset), (GONE, UpstreamReset)]
)
async def test_an_error_text_is_the_streams_failure(
    api: ApiServer, forwards: PortForwards, protocol: str, port: int, expected: type[Exception]
) -> None:
    only(api, protocol)
    reader, writer = await forwards.open_connection(to(port))
    writer.write(b"x")
    failure = await failure_of(reader)
    assert isinstance(failure.error, expected)
    assert "shop/web" in str(failure)
    writer.close()


async def test_an_error_text_costs_one_stream_only(api: ApiServer, access: Access) -> None:
    forwards = PortForwards(access, max_upstreams=1)
    reader, writer = await forwards.open_connection(to(ECHO))
    refused, other = await forwards.open_connection(to(REFUSED))
    assert (await failure_of(refused)).errno
    writer.write(b"alive")
    assert await reader.readexactly(5) == b"alive"
    assert api.connections == 1
    other.close()
    writer.close()
    await forwards.aclose()


async def test_a_dead_pod_behind_an_upstream_is_not_asked_again(api: ApiServer, forwards: PortForwards) -> None:
    reader, writer = await forwards.open_connection(to(GONE))
    assert "not running" in str(await failure_of(reader))
    writer.close()
    reader, writer = await forwards.open_connection(to(ECHO))
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    assert api.connections == 2
    writer.close()


async def test_the_open_waits_for_no_reply(api: ApiServer, forwards: PortForwards) -> None:
    api.hold_replies = True
    reader, writer = await forwards.open_connection(to(ECHO))
    writer.write(b"first bytes")
    assert await reader.readexactly(11) == b"first bytes"
    writer.close()


@PROTOCOLS
async def test_half_close_is_held_back_and_the_answer_arrives(
    api: ApiServer, forwards: PortForwards, protocol: str
) -> None:
    only(api, protocol)
    reader, writer = await forwards.open_connection(to(ECHO))
    writer.write(b"question")
    writer.write_eof()
    with pytest.raises(RuntimeError):
        writer.write(b"more")
    assert await reader.readexactly(8) == b"question"
    assert not api.sessions[0].fins
    writer.close()


async def test_half_close_by_the_pod_leaves_the_other_half(api: ApiServer, forwards: PortForwards) -> None:
    reader, writer = await forwards.open_connection(to(HALF))
    assert await reader.read() == b"half"
    assert not writer.is_closing()
    writer.write(b"still heard")
    await until(lambda: any(11 in session.received.values() for session in api.sessions))
    writer.close()


async def test_a_reset_whose_text_comes_late_is_no_good_end(api: ApiServer, forwards: PortForwards) -> None:
    reader, writer = await forwards.open_connection(to(HALF))
    assert await reader.readexactly(4) == b"half"
    session = api.sessions[0]
    session.released.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3 * ERROR_GRACE_S):
            await reader.read()
    assert isinstance(session, SpdySession)
    session.send(next(iter(session.error_of.values())), TEXTS[RESETS].encode(), fin=True)
    session.released.set()
    await session.flush()
    assert isinstance((await failure_of(reader)).error, UpstreamReset)
    writer.close()


@PROTOCOLS
async def test_a_cut_connection_fails_its_streams(api: ApiServer, forwards: PortForwards, protocol: str) -> None:
    only(api, protocol)
    reader, writer = await forwards.open_connection(to(ECHO))
    writer.write(b"x")
    await reader.readexactly(1)
    api.cut()
    failure = await failure_of(reader)
    assert isinstance(failure.error, UpstreamReset)
    with pytest.raises(OSError):
        await writer.drain()
        await writer.drain()
    reader, writer = await forwards.open_connection(to(ECHO))
    writer.write(b"again")
    assert await reader.readexactly(5) == b"again"
    writer.close()


@pytest.mark.parametrize("protocol", [TUNNEL, SPDY])
async def test_nonsense_from_the_server_fails_the_streams(
    api: ApiServer, forwards: PortForwards, protocol: str
) -> None:
    only(api, protocol)
    reader, writer = await forwards.open_connection(to(ECHO))
    writer.write(b"x")
    await reader.readexactly(1)
    api.sessions[0].writer.write(b"\x80\x09nonsense that is neither SPDY nor WebSocket")
    assert (await failure_of(reader)).error.reason == "UpstreamProtocol"
    writer.close()


@PROTOCOLS
async def test_a_pod_that_does_not_read_pauses_its_writer_alone(
    api: ApiServer, forwards: PortForwards, protocol: str
) -> None:
    only(api, protocol)
    transport, deaf = await forwards.open(to(DEAF), Recorder)
    while deaf.writable:
        transport.write(bytes(64 * 1024))
        await asyncio.sleep(0)
    assert transport.get_write_buffer_size() < 2 * 1024 * 1024
    reader, writer = await forwards.open_connection(to(ECHO))
    writer.write(b"beside it")
    assert await reader.readexactly(9) == b"beside it"
    transport.abort()
    assert await deaf.lost is None
    writer.close()


@PROTOCOLS
async def test_a_paused_reader_gets_nothing_and_holds_little(
    api: ApiServer, forwards: PortForwards, protocol: str
) -> None:
    only(api, protocol)
    transport, paused = await forwards.open(to(FLOODS), lambda: Recorder(pause=True))
    reader, writer = await forwards.open_connection(to(ECHO))
    for _ in range(100):
        writer.write(b"x")
        await reader.readexactly(1)
    assert paused.received == 0
    assert paused.transport.held_bytes <= HELD_BYTES
    paused.pause = False
    transport.resume_reading()
    await until(lambda: paused.received > 4 * HELD_BYTES)
    transport.abort()
    writer.close()


async def test_on_a_shared_upstream_a_paused_reader_holds_a_bounded_buffer(api: ApiServer, access: Access) -> None:
    forwards = PortForwards(access, max_upstreams=1)
    reader, writer = await forwards.open_connection(to(ECHO))
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    (upstream,) = forwards._of_upstream
    for lane in upstream._lanes.values():
        lane.heard_at = 0.0  # long ago: nobody waits
    transport, paused = await forwards.open(to(FLOODS), lambda: Recorder(pause=True))
    await until(lambda: paused.transport.held_bytes >= HELD_BYTES)
    assert upstream._reading_paused
    assert upstream.stalled
    assert paused.transport.held_bytes < 2 * HELD_BYTES
    transport.abort()
    writer.write(b"free again")
    assert await reader.readexactly(10) == b"free again"
    writer.close()
    await forwards.aclose()


@PROTOCOLS
@pytest.mark.parametrize("how", ["close", "abort"])
async def test_an_abandoned_download_stops(api: ApiServer, forwards: PortForwards, protocol: str, how: str) -> None:
    only(api, protocol)
    transport, recorder = await forwards.open(to(FLOODS), Recorder)
    await until(lambda: recorder.received > 1_000_000)
    getattr(transport, how)()
    assert await recorder.lost is None
    received = recorder.received
    await until(lambda: not api.sessions)
    assert recorder.received == received


async def test_a_paused_reader_still_gets_what_came_before_the_failure(api: ApiServer, access: Access) -> None:
    forwards = PortForwards(access, max_upstreams=1)
    _, writer = await forwards.open_connection(to(ECHO))
    transport, paused = await forwards.open(to(FLOODS), lambda: Recorder(pause=True))
    await until(lambda: paused.transport.held_bytes > 0)
    api.cut()
    await until(lambda: not forwards.upstreams())
    held = paused.transport.held_bytes
    assert not paused.lost.done()
    paused.pause = False
    transport.resume_reading()
    assert isinstance(await paused.lost, StreamFailed)
    assert paused.received == held > 0
    writer.close()
    await forwards.aclose()


async def test_a_protocol_that_raises_loses_its_own_stream(api: ApiServer, access: Access) -> None:
    forwards = PortForwards(access, max_upstreams=1)
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    reader, writer = await forwards.open_connection(to(ECHO))
    transport, broken = await forwards.open(to(ECHO), lambda: Recorder(broken=True))
    transport.write(b"x")
    assert await broken.lost is None
    assert isinstance(told[0]["exception"], RuntimeError)
    writer.write(b"unhurt")
    assert await reader.readexactly(6) == b"unhurt"
    writer.close()
    await forwards.aclose()


async def test_buffered_protocols_work(api: ApiServer, forwards: PortForwards) -> None:
    class Small(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.buffer = bytearray(7)
            self.received = b""
            self.ended = asyncio.get_running_loop().create_future()

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.received += self.buffer[:nbytes]

        def eof_received(self) -> None:
            self.ended.set_result(None)

    transport, protocol = await forwards.open(to(HALF), Small)
    await protocol.ended
    assert protocol.received == b"half"
    await until(transport.is_closing)


@pytest.mark.parametrize("speaks", [ALL, frozenset({SPDY}), frozenset({V4})])
async def test_many_at_once(api: ApiServer, forwards: PortForwards, speaks: frozenset[str]) -> None:
    api.speaks = speaks

    async def one(number: int) -> None:
        reader, writer = await forwards.open_connection(to(ECHO))
        sent = number.to_bytes(2, "big") * 5000
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
        writer.close()
        await writer.wait_closed()

    async with asyncio.TaskGroup() as group:
        for number in range(60):
            group.create_task(one(number))
    if V4 not in speaks or TUNNEL in speaks:
        assert api.connections <= 60


async def test_tls_that_fails_ends_its_stream_and_no_more(api: ApiServer, forwards: PortForwards) -> None:
    context = ssl.create_default_context()
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, facts: told.append(facts))
    _, writer = await forwards.open_connection(to(ECHO))  # our own hello comes back, which is no server's
    stream = writer.transport
    with pytest.raises(ssl.SSLError):
        await writer.start_tls(context, server_hostname="web")
    await until(stream.is_closing)
    assert told == []
