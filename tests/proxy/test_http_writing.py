"""A peer that takes nothing more: told as a Timeout, and not where it is only slow, or somebody else's."""

from __future__ import annotations

import asyncio

import pytest

from kubetunnel.core.errors import Timeout
from kubetunnel.forward.errors import StreamFailed
from kubetunnel.proxy.http.writing import TimedWriter

TIMEOUT_S = 0.1


class FullTransport(asyncio.Transport):
    """Whose peer takes `takes` bytes each time that somebody looks at what is left."""

    def __init__(self, protocol: asyncio.StreamReaderProtocol, *, left: int, takes: int) -> None:
        super().__init__()
        self.protocol: asyncio.BaseProtocol = protocol
        self.left, self.takes, self.aborted = left, takes, False

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_write_buffer_size(self) -> int:
        self.left = max(0, self.left - self.takes)
        if not self.left and isinstance(self.protocol, asyncio.StreamReaderProtocol):
            self.protocol.resume_writing()
        return self.left

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted


def full(*, left: int, takes: int) -> tuple[FullTransport, TimedWriter, asyncio.StreamReader]:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport = FullTransport(protocol, left=left, takes=takes)
    protocol.connection_made(transport)
    protocol.pause_writing()
    return transport, TimedWriter(transport, protocol, reader, timeout_s=TIMEOUT_S, peer="api.shop:80"), reader


async def test_a_peer_that_takes_nothing_is_given_up() -> None:
    transport, writer, reader = full(left=1000, takes=0)
    with pytest.raises(StreamFailed) as failed:
        await writer.drain()
    assert isinstance(failed.value.error, Timeout)
    assert "api.shop:80 took nothing of what was sent to it for 0.1 s" in str(failed.value)
    assert transport.aborted
    assert reader.exception() is failed.value


async def test_a_slow_one_is_waited_for() -> None:
    transport, writer, _ = full(left=5, takes=1)
    await writer.drain()
    assert not transport.aborted
    transport.abort()


async def test_where_another_has_the_transport_there_is_no_limit() -> None:
    transport, writer, _ = full(left=1000, takes=0)
    former = transport.protocol
    transport.set_protocol(asyncio.Protocol())
    draining = asyncio.create_task(writer.drain())
    done, _ = await asyncio.wait([draining], timeout=3 * TIMEOUT_S)
    assert not done
    assert isinstance(former, asyncio.StreamReaderProtocol)
    former.resume_writing()
    await draining
    assert not transport.aborted
    transport.abort()
