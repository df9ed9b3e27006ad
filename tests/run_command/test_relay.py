"""A connection of the command's network and the tunnel: both ways, half-closed, refused, cut, cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest

from kubetunnel.run_command import relay as relay_module
from kubetunnel.run_command.relay import RefusedError, Streams, connect_through, relay

type Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
REFUSED = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\nConnection: close\r\n\r\nwhy"


@contextlib.asynccontextmanager
async def listening(behave: Behave) -> AsyncIterator[tuple[str, int]]:
    server = await asyncio.start_server(behave, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()


async def proxy(answer: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    asked = await reader.readuntil(b"\r\n\r\n")
    assert asked.startswith(b"CONNECT api.shop:80 HTTP/1.1\r\nHost: api.shop:80\r\n")
    writer.write(answer)
    if answer == CONNECTED:
        body = await reader.read()  # until the client's half-close
        writer.write(body.upper())
    writer.close()


@contextlib.asynccontextmanager
async def relayed(connect: Callable[[], Awaitable[Streams]]) -> AsyncIterator[tuple[Streams, list[asyncio.Task[None]]]]:
    """A client whose connection is relayed; and the tasks that do it."""
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(relay((reader, writer), connect, "api.shop port 80"))
        tasks.append(task)
        await asyncio.wait([task])

    async with listening(serve) as address:
        reader, writer = await asyncio.open_connection(*address)
        try:
            yield (reader, writer), tasks
        finally:
            writer.transport.abort()
            await asyncio.wait(tasks, timeout=5)


async def test_both_ways_with_a_half_close() -> None:
    async with (
        listening(partial(proxy, CONNECTED)) as tunnel,
        relayed(partial(connect_through, tunnel, "api.shop", 80)) as ((reader, writer), _),
    ):
        writer.write(b"hello" * 100_000)
        writer.write_eof()
        assert await reader.read() == b"HELLO" * 100_000


@pytest.mark.parametrize("answer", [REFUSED, REFUSED[:20], b""])
@pytest.mark.parametrize("said", [b"SSH-2.0-x\r\n", b"\x00" * 10])
async def test_a_refusal_is_a_reset(answer: bytes, said: bytes) -> None:
    async with (
        listening(partial(proxy, answer)) as tunnel,
        relayed(partial(connect_through, tunnel, "api.shop", 80)) as ((reader, writer), _),
    ):
        writer.write(said)
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_a_refusal_is_a_reset_for_who_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "_LAST_WORDS_S", 0.05)
    async with (
        listening(partial(proxy, REFUSED)) as tunnel,
        relayed(partial(connect_through, tunnel, "api.shop", 80)) as ((reader, _), _),
    ):
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_http_is_told_why_it_is_refused() -> None:
    async with (
        listening(partial(proxy, REFUSED)) as tunnel,
        relayed(partial(connect_through, tunnel, "api.shop", 80)) as ((reader, writer), _),
    ):
        for part in (b"PO", b"ST / HTTP/1.1\r\n", b"Host: api.shop\r\n\r\n" + b"x" * 1_000_000):
            writer.write(part)
            await writer.drain()
        assert await reader.read() == REFUSED


async def test_the_status_is_told() -> None:
    async with listening(partial(proxy, REFUSED)) as tunnel:
        with pytest.raises(RefusedError, match="502 Bad Gateway"):
            await connect_through(tunnel, "api.shop", 80)


async def test_a_tunnel_that_is_gone_is_a_reset() -> None:
    async with listening(partial(proxy, b"")) as tunnel:
        pass
    async with relayed(partial(connect_through, tunnel, "api.shop", 80)) as ((reader, _), _):
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_cancelled_before_it_is_connected() -> None:
    connecting = asyncio.Event()

    async def never() -> Streams:
        connecting.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async with relayed(never) as ((reader, _), tasks):
        await connecting.wait()
        tasks[0].cancel()
        with pytest.raises(ConnectionResetError):
            await reader.read()
    assert tasks[0].cancelled()


async def test_cancelled_in_the_middle() -> None:
    connected = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    async with (
        listening(silent) as upstream,
        relayed(partial(asyncio.open_connection, *upstream)) as ((reader, writer), tasks),
    ):
        writer.write(b"x")
        await connected.wait()
        tasks[0].cancel()
        assert await reader.read() == b""
    assert tasks[0].cancelled()
