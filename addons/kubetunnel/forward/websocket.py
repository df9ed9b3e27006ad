"""WebSocket frames of a port-forward, client side (RFC 6455), after the upgrade.

The frames are the `websockets` package's: its mask is C. Compression is never offered: what is forwarded is compressed
or encrypted already, or goes over loopback.
"""

from __future__ import annotations

import logging

from websockets.frames import Opcode
from websockets.protocol import Protocol, Side, State

# servers send 32 KiB at a time; the limit only keeps a broken peer from our memory
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

# at DEBUG the package would log the beginning of every frame, and what is forwarded is nobody's business
_NO_LOG = logging.Logger("kubetunnel.forward.websocket frames", logging.CRITICAL)  # noqa: LOG001 - no child of the root, whose level would count


class WebSocketError(Exception):
    """The peer broke RFC 6455."""


class WebSocketFrames:
    """Frames in and out. As with the SPDY codec, whatever speaks only queues."""

    def __init__(self) -> None:
        self._protocol = Protocol(Side.CLIENT, state=State.OPEN, max_size=MAX_MESSAGE_BYTES, logger=_NO_LOG)
        self._pings = 0
        self.close_received = False
        self.pongs_received = 0

    def receive(self, data: bytes | bytearray | memoryview) -> list[tuple[bytes | bytearray | memoryview, bool]]:
        """The payloads of the data frames in `data`, each with whether it begins a message. Raises WebSocketError."""
        self._protocol.receive_data(data)  # type: ignore[arg-type]  # it only appends to a bytearray
        payloads: list[tuple[bytes | bytearray | memoryview, bool]] = []
        for frame in self._protocol.events_received():
            opcode = getattr(frame, "opcode", None)
            if opcode is Opcode.CONT and not frame.data:  # type: ignore[union-attr]
                continue  # Go's server ends each message with one
            if opcode in (Opcode.BINARY, Opcode.TEXT, Opcode.CONT):
                payloads.append((frame.data, opcode is not Opcode.CONT))  # type: ignore[union-attr]
            elif opcode is Opcode.CLOSE:
                self.close_received = True
            elif opcode is Opcode.PONG:
                self.pongs_received += 1
        if self._protocol.parser_exc is not None:
            raise WebSocketError(str(self._protocol.parser_exc)) from self._protocol.parser_exc
        return payloads

    def send(self, data: bytes) -> None:
        """Queue one binary message in one frame: servers of v4.channel take every frame for a message."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_binary(data)

    def ping(self) -> None:
        if self._protocol.state is State.OPEN:
            self._pings += 1
            self._protocol.send_ping(self._pings.to_bytes(4, "big"))

    def close(self) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1000)

    def data_to_send(self) -> bytes:
        return b"".join(self._protocol.data_to_send())
