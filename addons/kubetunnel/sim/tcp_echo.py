"""The raw TCP programs of a simulated pod: the same as in the real demo's echo.go, ports 9000 to 9007."""

from __future__ import annotations

import asyncio
import hashlib
from typing import cast

from kubetunnel.sim.listener import Serve, reset

PIECE_BYTES = 1 << 16
PATTERN_BYTES = 251 * 256  # a whole number of the pattern's periods


def pattern(count: int, offset: int = 0) -> bytes:
    """The demo's bytes from `offset` on: both ends can check every one of them."""
    period = bytes(i * 31 % 251 for i in range(251))
    start = offset % 251
    return (period * (count // 251 + 2))[start : start + count]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes; pass the client's EOF on."""
    while data := await reader.read(PIECE_BYTES):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def greeter(pod_name: str) -> Serve:
    """The program that speaks first, then echoes."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"220 {pod_name} ready\r\n".encode())
        await echo(reader, writer)

    return greet


async def accept_and_reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reset at once."""
    reset(writer)


async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read to the end, then say how much it was: `bytes sha256 <nil>`, as Go prints it."""
    digest, total = hashlib.sha256(), 0
    while data := await reader.read(PIECE_BYTES):
        digest.update(data)
        total += len(data)
    writer.write(f"{total} {digest.hexdigest()} <nil>\n".encode())
    await writer.drain()


async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send the pattern for as long as the client takes it."""
    data = pattern(PATTERN_BYTES)
    while True:
        writer.write(data)
        await writer.drain()


async def mute(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Never read, never write."""
    cast("asyncio.Transport", writer.transport).pause_reading()
    await asyncio.Event().wait()
