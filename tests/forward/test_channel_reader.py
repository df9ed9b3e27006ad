"""The reader of v4.channel.k8s.io, fed with frames cut anywhere and with nonsense."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import ConnectionRefused, UpstreamProtocol, UpstreamReset
from kubetunnel.forward.channel_upstream import ChannelUpstream
from kubetunnel.forward.errors import StreamFailed
from kubetunnel.forward.lane import UpstreamFacts
from kubetunnel.forward.upstream import Upstream
from kubetunnel.forward.websocket import WebSocketFrames

TARGET = PodPort("demo", "echo", 80)
PORT_NUMBERS = [b"\0\x50\0", b"\1\x50\0"]


class Wire(asyncio.Transport):
    """The connection to an API server: takes what is written, and is told what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.aborted

    def close(self) -> None:
        self.aborted = True

    def abort(self) -> None:
        self.aborted = True


class Nobody:
    """An owner that does nothing."""

    def stream_ended(self, upstream: Upstream) -> None: ...
    def upstream_changed(self, upstream: Upstream) -> None: ...
    def upstream_silent(self, upstream: Upstream) -> None: ...
    def upstream_lost(self, upstream: Upstream, reason: str) -> None: ...


class Client(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = b""
        self.error: Exception | None = None

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc


async def read(pieces: list[bytes]) -> Client:
    """What a stream's protocol gets when these bytes come, and then the end of the connection."""
    facts = UpstreamFacts(1, "demo", "echo", "v4.channel.k8s.io", 0.0)
    upstream = ChannelUpstream(facts, Nobody(), WebSocketFrames(), 80)
    wire = Wire()
    upstream.connection_made(wire)
    client = Client()
    upstream.open_stream(TARGET, lambda: client)
    await asyncio.sleep(0)
    for piece in pieces:
        upstream.receive(memoryview(piece))
        if wire.aborted:
            break
    upstream.connection_lost(None)
    for _ in range(3):
        await asyncio.sleep(0)
    return client


def wire_of(messages: list[bytes]) -> bytes:
    return b"".join(Frame(Opcode.BINARY, message).serialize(mask=False) for message in messages)


def cut(data: bytes, piece: int) -> list[bytes]:
    return [data[start : start + piece] for start in range(0, len(data), piece)]


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6), st.integers(1, 400))
def test_data_comes_whole_and_in_order(chunks: list[bytes], piece: int) -> None:
    data = wire_of([*PORT_NUMBERS, *(b"\0" + chunk for chunk in chunks)])
    assert asyncio.run(read(cut(data, piece))).received == b"".join(chunks)


def test_an_error_text_cut_at_every_byte_is_read_whole() -> None:
    data = wire_of([*PORT_NUMBERS, b"\0early", b"\1failed to connect: connection refused"])
    for position in range(len(data)):
        client = asyncio.run(read([data[:position], data[position:]]))
        assert client.received == b"early"
        assert isinstance(client.error, StreamFailed)
        assert type(client.error.error) is ConnectionRefused


@given(st.binary(max_size=300), st.integers(1, 60))
def test_any_bytes_end_in_a_declared_failure(data: bytes, piece: int) -> None:
    client = asyncio.run(read(cut(data, piece)))
    assert client.error is None or isinstance(client.error, StreamFailed)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), st.integers(0, 1000), st.integers(1, 255))
def test_a_flipped_byte_ends_in_a_declared_failure(messages: list[bytes], at: int, change: int) -> None:
    data = bytearray(wire_of([*PORT_NUMBERS, *messages]))
    data[at % len(data)] ^= change
    client = asyncio.run(read(cut(bytes(data), 7)))
    assert client.error is None or isinstance(client.error, StreamFailed)


def test_nonsense_is_told_as_the_servers_fault() -> None:
    client = asyncio.run(read([wire_of(PORT_NUMBERS), b"\xff\xff"]))
    assert isinstance(client.error, StreamFailed)
    assert type(client.error.error) is UpstreamProtocol


@pytest.mark.parametrize("status", [b"", b"\x03\xe8"])
def test_a_normal_close_is_the_pods_good_end(status: bytes) -> None:
    client = asyncio.run(read([wire_of([*PORT_NUMBERS, b"\0all"]), Frame(Opcode.CLOSE, status).serialize(mask=False)]))
    assert client.received == b"all"
    assert client.error is None


@pytest.mark.parametrize("status", [1001, 1011, 1012])
def test_a_server_that_closes_for_its_own_sake_has_cut_the_stream(status: int) -> None:
    close = Frame(Opcode.CLOSE, status.to_bytes(2)).serialize(mask=False)
    client = asyncio.run(read([wire_of([*PORT_NUMBERS, b"\0a part"]), close]))
    assert client.received == b"a part"
    assert isinstance(client.error, StreamFailed)
    assert type(client.error.error) is UpstreamReset
