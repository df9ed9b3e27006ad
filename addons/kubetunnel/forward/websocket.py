"""WebSocket frames of a port-forward, client side (RFC 6455), after the upgrade.

Control frames are the `websockets` package's, and so is the mask, which is C. Data frames are made and read here:
that package copies each of them three times. The server's bear no mask (RFC 6455 5.1), so a payload is a view of the
bytes that came, and no frame is ever buffered but a small one that was cut.
Compression is never offered: what is forwarded is compressed or encrypted already, or goes over loopback.
"""

from __future__ import annotations

import logging
import os
import struct

from websockets.frames import CloseCode, Opcode
from websockets.protocol import Protocol, Side, State

try:
    from websockets.speedups import apply_mask
except ImportError:  # a machine that the package has no wheel for: Python is slower, and as good
    from websockets.utils import apply_mask

# larger ones are handed on piece by piece. These are whole: the text of an error channel is a single frame
WHOLE_FRAME_BYTES = 8 * 1024
MAX_CONTROL_BYTES = 125  # RFC 6455 5.5
MASKS_AT_ONCE = 64  # keys; a system call for each would be 3 % of the CPU of an upload

# at DEBUG the package would log the beginning of every frame, and what is forwarded is nobody's business
_NO_LOG = logging.Logger("kubetunnel.forward.websocket frames", logging.CRITICAL)  # noqa: LOG001 - no child of the root, whose level would count

# a frame's first byte (RFC 6455 5.2): FIN, three reserved bits, the opcode
_FIN = 0x80
_CONTINUATIONS = (Opcode.CONT, _FIN | Opcode.CONT)
_BEGINNINGS = (Opcode.BINARY, _FIN | Opcode.BINARY, Opcode.TEXT, _FIN | Opcode.TEXT)
_CONTROLS = (_FIN | Opcode.CLOSE, _FIN | Opcode.PING, _FIN | Opcode.PONG)
_MASKED = 0x80  # of the second byte
_LENGTH_16, _LENGTH_64 = 126, 127
_MASK = struct.Struct("4s")
_HEAD_8, _HEAD_16, _HEAD_64 = struct.Struct("!BB"), struct.Struct("!BBH"), struct.Struct("!BBQ")


class WebSocketError(Exception):
    """The peer broke RFC 6455."""


class WebSocketFrames:
    """Frames in and out. As with the SPDY codec, whatever speaks only queues."""

    def __init__(self) -> None:
        self._protocol = Protocol(Side.CLIENT, state=State.OPEN, logger=_NO_LOG)
        self._out: list[bytes] = []
        self._masks: list[bytes] = []  # from a strong source of entropy (RFC 6455 5.3), each used once
        self._pings = 0
        self._held = bytearray()  # the head of a frame, or a small frame, as far as it came
        self._left = 0  # of the data frame that is being read
        self._in_message = False  # more frames of the message are to come
        self._begins = False  # the next byte is the first of its message
        self._violation: str | None = None
        self.close_received = False
        self.pongs_received = 0

    @property
    def closed_well(self) -> bool:
        """Whether the peer has closed it since all was said (RFC 6455 7.4.1), and not since something went wrong."""
        close = self._protocol.close_rcvd
        return close is not None and close.code in (CloseCode.NORMAL_CLOSURE, CloseCode.NO_STATUS_RCVD)

    def receive(self, data: bytes | bytearray | memoryview) -> list[tuple[memoryview, bool]]:
        """The payloads in `data`, none of them empty, each with whether it begins a message.

        They are views of `data` and live as long as it does. A frame of up to WHOLE_FRAME_BYTES is never cut.
        Raises WebSocketError, from then on at every call.
        """
        if self._violation is not None:
            raise WebSocketError(self._violation)
        payloads: list[tuple[memoryview, bool]] = []
        view = memoryview(data)
        position, end = 0, len(view)
        while position < end and not self.close_received:
            if self._left:
                count = min(self._left, end - position)
                payloads.append((view[position : position + count], self._begins))
                self._begins = False
                self._left -= count
                position += count
            elif self._held:
                position = self._complete(view, position, payloads)
            else:
                taken = self._take_head(view, position)
                if not taken:
                    self._held += view[position:]
                    break
                position += taken
        return payloads

    def send(self, data: bytes) -> None:
        """Queue one binary message in one frame: servers of v4.channel take every frame for a message."""
        if self._protocol.state is not State.OPEN:
            return
        length = len(data)
        if length < _LENGTH_16:
            head = _HEAD_8.pack(_FIN | Opcode.BINARY, _MASKED | length)
        elif length < 1 << 16:
            head = _HEAD_16.pack(_FIN | Opcode.BINARY, _MASKED | _LENGTH_16, length)
        else:
            head = _HEAD_64.pack(_FIN | Opcode.BINARY, _MASKED | _LENGTH_64, length)
        if not self._masks:
            self._masks = [key for (key,) in _MASK.iter_unpack(os.urandom(MASKS_AT_ONCE * _MASK.size))]
        mask = self._masks.pop()
        self._out += (head, mask, apply_mask(data, mask))

    def ping(self) -> None:
        if self._protocol.state is State.OPEN:
            self._pings += 1
            self._protocol.send_ping(self._pings.to_bytes(4, "big"))
            self._collect()

    def close(self) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1000)
            self._collect()

    def data_to_send(self) -> bytes:
        out = b"".join(self._out)
        self._out.clear()
        return out

    def _collect(self) -> None:
        """What the package has queued comes after what we have."""
        self._out += self._protocol.data_to_send()

    def _complete(self, view: memoryview, position: int, payloads: list[tuple[memoryview, bool]]) -> int:
        """Goes on with a frame whose beginning is held. Returns the new position."""
        count = min(_wanted_bytes(self._held) - len(self._held), len(view) - position)
        self._held += view[position : position + count]
        whole = memoryview(bytes(self._held))
        taken = self._take_head(whole, 0)
        if taken:
            self._held = bytearray()
            if self._left and len(whole) > taken:  # then it is all there
                payloads.append((whole[taken:], self._begins))
                self._left, self._begins = 0, False
        return position + count

    def _take_head(self, view: memoryview, position: int) -> int:
        """Takes the head of a data frame, or a control frame whole. The bytes that took, 0 where some are missing."""
        available = len(view) - position
        if available < 2:
            return 0
        first, length = view[position], view[position + 1]
        head_bytes = 2
        if length == _LENGTH_16:
            head_bytes = 4
            if available < head_bytes:
                return 0
            length = view[position + 2] << 8 | view[position + 3]
        elif length == _LENGTH_64:
            head_bytes = 10
            if available < head_bytes:
                return 0
            length = int.from_bytes(view[position + 2 : position + head_bytes])
        elif length > _LENGTH_64:
            raise self._broken("a masked frame")
        if first in _CONTROLS:
            if length > MAX_CONTROL_BYTES:
                raise self._broken(f"a control frame of {length} bytes")
            if available < head_bytes + length:
                return 0
            self._take_control(bytes(view[position : position + head_bytes + length]))
            return head_bytes + length
        self._check_data(first, length)
        if length <= WHOLE_FRAME_BYTES and available < head_bytes + length:
            return 0
        if first in _BEGINNINGS:
            self._begins = True
        self._in_message = first < _FIN
        self._left = length
        return head_bytes

    def _check_data(self, first: int, length: int) -> None:
        if first in _CONTINUATIONS:
            if not self._in_message:
                raise self._broken("a continuation of no message")
        elif first not in _BEGINNINGS:
            raise self._broken(f"a frame that begins with {first:#04x}")
        elif self._in_message:
            raise self._broken("a message within another")
        if length >> 63:
            raise self._broken("a frame length of 64 bits")

    def _take_control(self, frame: bytes) -> None:
        """The package answers pings and closes, and knows what a close may say."""
        self._protocol.receive_data(frame)
        self._protocol.events_received()
        self._collect()
        if self._protocol.parser_exc is not None:
            raise self._broken(str(self._protocol.parser_exc)) from self._protocol.parser_exc
        opcode = frame[0] & 0x0F
        if opcode == Opcode.CLOSE:
            self.close_received = True
        elif opcode == Opcode.PONG:
            self.pongs_received += 1

    def _broken(self, what: str) -> WebSocketError:
        self._violation = what
        return WebSocketError(what)


def _wanted_bytes(held: bytearray) -> int:
    """How long the frame that begins like this is to be before it can be taken."""
    if len(held) < 2:
        return 2
    code = held[1]
    head_bytes = {_LENGTH_16: 4, _LENGTH_64: 10}.get(code, 2)
    if len(held) < head_bytes:
        return head_bytes
    length = int.from_bytes(held[2:head_bytes]) if head_bytes > 2 else code
    return head_bytes + length if length <= WHOLE_FRAME_BYTES else head_bytes
