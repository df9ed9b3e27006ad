"""Connections out of CMD's network: on to the tunnel by SOCKS5 (RFC 1928), which resolves the name itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 30.0  # the tunnel refuses earlier
_READ_BYTES = 256 * 1024
_GREETING = bytes([5, 1, 0])  # version, one method: no authentication
_CONNECT, _NAME = 1, 3
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: the close is a reset (tcp(7))


type Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
type Connect = Callable[[], Awaitable[Streams]]


async def relay(client: Streams, connect: Connect, what: str) -> None:
    """Serves an accepted connection until its end; where there is nothing to connect it to, it is reset.

    Args:
        connect: where it goes. Raises OSError, RefusedError.
        what: the destination, for the log.
    """
    reader, writer = client
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            upstream = await connect()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, RefusedError) as e:
        logger.info("A connection to %s is reset: %s", what, e)
        _reset(writer)
        return
    except asyncio.CancelledError:
        _reset(writer)
        raise
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(reader, upstream[1]))
            group.create_task(_pump(upstream[0], writer))
    except* OSError as errors:
        logger.debug("A connection to %s was cut: %s", what, errors.exceptions[0])
        _reset(writer)
    finally:
        for each in (writer, upstream[1]):
            each.close()
    for each in (writer, upstream[1]):
        with contextlib.suppress(OSError):  # it was cut, as told above
            await each.wait_closed()


class RefusedError(Exception):
    """The tunnel's reply code is not 0."""


async def connect_through(tunnel: tuple[str, int], name: str, port: int) -> Streams:
    """A connection to a name's port. Raises OSError, RefusedError, IncompleteReadError."""
    reader, writer = await asyncio.open_connection(*tunnel)
    try:
        host = name.encode("ascii")
        writer.write(_GREETING)
        writer.write(bytes([5, _CONNECT, 0, _NAME, len(host)]) + host + struct.pack("!H", port))
        await reader.readexactly(2)
        reply = await reader.readexactly(4)
        _check(reply[1])
        await reader.readexactly({1: 4, 4: 16}[reply[3]] + 2)  # BND.ADDR and BND.PORT
    except BaseException:
        writer.transport.abort()
        raise
    return reader, writer


def _check(reply: int) -> None:
    if reply != 0:
        raise RefusedError(f"the tunnel refuses it (SOCKS5 reply {reply})")


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_READ_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    accepted: socket.socket | None = writer.get_extra_info("socket")
    if accepted is not None and not writer.transport.is_closing():
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
