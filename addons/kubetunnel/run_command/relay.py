"""Connections out of CMD's network: on to the tunnel by CONNECT (RFC 9110 9.3.6), which resolves the name itself.

A refusal of it is a whole HTTP response with the reason: what a client that speaks HTTP is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable

from kubetunnel.core.first_bytes import Protocol, recognise

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 30.0  # the tunnel refuses earlier
_READ_BYTES = 256 * 1024
_HEAD_END = b"\r\n\r\n"
_LAST_WORDS_S = 5.0  # for a client to say what it speaks, and to read why it is refused
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: the close is a reset (tcp(7))


type Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
type Connect = Callable[[], Awaitable[Streams]]


async def relay(client: Streams, connect: Connect, what: str) -> None:
    """Serves an accepted connection until its end. What cannot be connected is reset, but for HTTP, which is told why.

    Args:
        connect: where it goes. Raises OSError, RefusedError.
        what: the destination, for the log.
    """
    reader, writer = client
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            upstream = await connect()
    except RefusedError as refusal:
        logger.info("A connection to %s: %s", what, refusal)
        await _refuse(client, refusal.answer)
        return
    except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError) as e:
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
    """The tunnel does not connect. `answer` is its HTTP response."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(f"the tunnel refuses it: {answer.partition(b'\r\n')[0].decode('latin-1')}")
        self.answer = answer


async def connect_through(tunnel: tuple[str, int], name: str, port: int) -> Streams:
    """A connection to a name's port. Raises OSError, RefusedError, EOFError, LimitOverrunError."""
    reader, writer = await asyncio.open_connection(*tunnel)
    try:
        authority = f"{name}:{port}"
        # with its end: the body of a refusal is what comes until then
        writer.write(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n".encode("ascii"))
        head = await reader.readuntil(_HEAD_END)
        if not head.startswith(b"HTTP/1.1 2"):
            raise RefusedError(head + await reader.read())  # noqa: TRY301
    except BaseException:
        writer.transport.abort()
        raise
    return reader, writer


async def _refuse(client: Streams, answer: bytes) -> None:
    reader, writer = client
    try:
        async with asyncio.timeout(_LAST_WORDS_S):
            said, spoken = b"", None
            while spoken is None and (data := await reader.read(_READ_BYTES)):
                said += data
                spoken = recognise(said, destination_known=True)
            if spoken is Protocol.HTTP1:
                writer.write(answer)
                writer.write_eof()
                while await reader.read(_READ_BYTES):  # a close with bytes unread would be a reset, and the answer lost
                    pass
                writer.close()
                return
    except (OSError, TimeoutError):
        pass  # it has nothing to say, or has gone: it is reset
    _reset(writer)


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
