"""Many connections through the tunnel at once, some of them in trouble: these hurt nobody else."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from functools import partial

import pytest

from tests.proxy.loopback import socks5_request
from tests.tunnel import Tunnel

pytestmark = pytest.mark.alone

NAME = "echo.demo.svc.cluster.local"
EXCHANGES = 10
GRANTED = 0

type Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Crowd:
    """200 clients of one Service: 20 that stop reading, 20 that the pod resets, 10 refused, 150 that are fine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.open: list[asyncio.StreamWriter] = []
        self.took_s: list[float] = []  # each exchange of the 150

    async def run(self) -> None:
        kinds: list[Callable[[], Coroutine[None, None, None]]] = [self._stop, self._reset] * 20 + [self._refuse] * 10
        kinds += [self._raw, self._http] * 75
        random.Random(4).shuffle(kinds)
        async with asyncio.TaskGroup() as group:
            for kind in kinds:
                group.create_task(kind())
                await asyncio.sleep(0.01)  # as they come: a hundred a second

    async def _connect(self, *, limit: int = 65536) -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=limit)
        self.open.append(writer)
        return reader, writer

    async def _socks5(self, port: int) -> tuple[Streams, int]:
        """Gives the reply's code as well."""
        reader, writer = await self._connect(limit=1024)  # of what nobody reads, little is taken from the socket
        writer.write(b"\x05\x01\x00" + socks5_request(NAME, port))
        reply = await reader.readexactly(2 + 10)
        return (reader, writer), reply[3]

    async def _stop(self) -> None:
        (reader, _), reply = await self._socks5(9004)
        assert reply == GRANTED
        assert await reader.readexactly(1)

    async def _reset(self) -> None:
        (reader, writer), reply = await self._socks5(9002)
        assert reply == GRANTED
        writer.write(b"x")
        with pytest.raises(ConnectionError):
            await reader.readexactly(1)

    async def _refuse(self) -> None:
        (reader, writer), reply = await self._socks5(9999)
        if reply == GRANTED:  # a runtime may tell only afterwards
            writer.write(b"x")
            with pytest.raises(ConnectionError):
                await reader.readexactly(1)

    async def _raw(self) -> None:
        streams, reply = await self._socks5(7)
        assert reply == GRANTED
        await self._exchange(partial(self._echo, *streams))

    async def _http(self) -> None:
        await self._exchange(partial(self._get, *await self._connect()))

    async def _exchange(self, once: Callable[[], Coroutine[None, None, None]]) -> None:
        for _ in range(EXCHANGES):
            started = time.monotonic()
            await once()
            self.took_s.append(time.monotonic() - started)
            await asyncio.sleep(0.05)

    @staticmethod
    async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00echo")
        assert await reader.readexactly(5) == b"\x00echo"

    @staticmethod
    async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"GET /hostname HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        await reader.readline()


async def test_of_200_clients_50_in_trouble_hurt_nobody(tunnel: Tunnel) -> None:
    crowd = Crowd(tunnel.port)
    try:
        async with asyncio.timeout(60):
            await crowd.run()  # raises what any of them failed with
    finally:
        for writer in crowd.open:
            writer.transport.abort()
    assert len(crowd.took_s) == 150 * EXCHANGES
