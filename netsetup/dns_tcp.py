"""DNS over TCP: messages with their length before them, many on one connection, answered as they become ready.

RFC 7766: 6.2.1.1 (pipelining, any order), 6.2.3 (idle time), 8 (the length field).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

IDLE_TIMEOUT_S = 10.0  # RFC 7766 6.2.3: "on the order of a few seconds" is enough
MAX_CONNECTIONS = 100
MAX_PIPELINED = 32

type Respond = Callable[[bytes, str], Awaitable[bytes | None]]


class TcpListener:
    """Takes connections and answers what comes on them.

    Args:
        respond: packet and client's address in, reply out.
        idle_timeout_s: how long a connection may bring no whole message, or take no reply.
    """

    def __init__(
        self,
        respond: Respond,
        *,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        max_connections: int = MAX_CONNECTIONS,
        max_pipelined: int = MAX_PIPELINED,
    ) -> None:
        self._respond = respond
        self._idle_timeout_s = idle_timeout_s
        self._max_connections = max_connections
        self._max_pipelined = max_pipelined
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> None:
        """Raises OSError where the port cannot be had."""
        self._server = await asyncio.start_server(self._accept, host, port)

    async def aclose(self) -> None:
        """Close the port and all connections."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= self._max_connections:
            logger.debug("DNS: a connection is closed: %d are open", self._max_connections)
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = writer.get_extra_info("peername")[0]
        room = asyncio.Semaphore(self._max_pipelined)
        try:
            async with asyncio.TaskGroup() as answers:
                while (packet := await self._read(reader)) is not None:
                    await room.acquire()
                    answers.create_task(self._answer(packet, client, writer, room))
            writer.close()
            async with asyncio.timeout(self._idle_timeout_s):
                await writer.wait_closed()
        except (OSError, TimeoutError) as error:
            logger.debug("DNS: the connection from %s ends: %s", client, error)
        finally:
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> bytes | None:
        """The next message; None: the client has no more to say, or says nothing."""
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                return await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        except (asyncio.IncompleteReadError, OSError, TimeoutError):
            return None

    async def _answer(self, packet: bytes, client: str, writer: asyncio.StreamWriter, room: asyncio.Semaphore) -> None:
        try:
            reply = await self._respond(packet, client)
            if reply is not None:
                writer.write(len(reply).to_bytes(2) + reply)
                async with asyncio.timeout(self._idle_timeout_s):
                    await writer.drain()
        except (OSError, TimeoutError) as error:
            logger.debug("DNS: %s takes no reply: %s", client, error)
            writer.transport.abort()
        finally:
            room.release()
