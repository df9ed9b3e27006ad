"""The bytes of an upgraded port-forward as the node sees them: after the API server, with its faults on the way.

No read or write here has a timeout: the runtimes have none but their idle timeout of four hours, and a client that
stalls for ever is one of the cases to simulate. A connection ends with its client, or when its task is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from kubetunnel.sim.faults import Faults, Upgraded

READ_BYTES = 1 << 16
_library_logger = logging.getLogger(f"{__name__}.websockets")
_library_logger.setLevel(logging.WARNING)  # it has a line for every frame and every orderly end

DATA_OPCODES = (Opcode.BINARY, Opcode.TEXT, Opcode.CONT)


class Wire(Protocol):
    """A byte stream in both directions. Both methods raise OSError when the client is gone."""

    async def read(self) -> bytes:
        """The next bytes, b"" at the client's end."""

    async def write(self, data: bytes) -> None:
        """Send, at the client's speed."""


class RawWire:
    """The upgraded connection itself: SPDY, or WebSocket v4, which the API server passes through untouched."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: Faults, connection: Upgraded
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._faults = faults
        self._connection = connection

    async def read(self) -> bytes:
        data = await self._reader.read(READ_BYTES)
        if latency_s := self._faults.at(self._connection.pod).latency_s:
            await asyncio.sleep(latency_s)
        await self._faults.pass_connection(self._connection)
        return data

    async def write(self, data: bytes) -> None:
        await self._faults.pass_connection(self._connection)
        self._writer.write(data)
        await self._writer.drain()


class TunnelWire:
    """One byte stream in a WebSocket's binary messages (KEP-4006); where a message begins means nothing."""

    def __init__(self, raw: Wire) -> None:
        self._frames = Frames(raw)

    async def read(self) -> bytes:
        while frames := await self._frames.read():
            if any(frame.opcode is Opcode.TEXT for frame in frames):
                await self._frames.close()
                return b""
            if data := b"".join(bytes(frame.data) for frame in frames):
                return data
        return b""

    async def write(self, data: bytes) -> None:
        await self._frames.write_binary(data)


class Frames:
    """WebSocket frames (RFC 6455 5) on a wire, the server's side. Pings and the closing handshake are answered here."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._protocol = ServerProtocol(state=State.OPEN, max_size=None, logger=_library_logger)

    async def read(self) -> list[Frame]:
        """The data frames that came next, fragments as they are; none at the end."""
        while True:
            data = await self._wire.read()
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
            events = self._protocol.events_received()
            await self._flush()
            frames = [e for e in events if isinstance(e, Frame) and e.opcode in DATA_OPCODES]
            if frames or not data or self._protocol.close_expected():
                return frames

    async def write_binary(self, data: bytes) -> None:
        """Send one binary message."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_binary(data)
            await self._flush()

    async def write_text(self, data: bytes) -> None:
        """Send one text message."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_text(data)
            await self._flush()

    async def close(self) -> None:
        """Send a close frame; nothing is sent after it."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(CloseCode.NORMAL_CLOSURE)
            await self._flush()

    async def _flush(self) -> None:
        if data := b"".join(self._protocol.data_to_send()):
            await self._wire.write(data)
