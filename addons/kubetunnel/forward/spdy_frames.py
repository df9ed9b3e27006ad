"""SPDY/3.1 frames as bytes: what is sent is put together here, what comes is cut apart (SPDY/3 draft 2.2, 2.6).

Which frame may come when, and what it means, is the connection's business (`spdy.py`).
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from typing import Final

from kubetunnel.forward.spdy_events import SpdyError

MAX_CONTROL_BYTES: Final = 64 * 1024  # a control frame's body; data frames are handed on piece by piece, at any length
FLAG_FIN: Final = 0x01

SYN_STREAM, SYN_REPLY, RST_STREAM, PING, GOAWAY, HEADERS = 1, 2, 3, 6, 7, 8
_FIXED_BYTES = {SYN_STREAM: 10, SYN_REPLY: 4, RST_STREAM: 8, PING: 4, GOAWAY: 8, HEADERS: 4}
_WITH_HEADERS = frozenset({SYN_STREAM, SYN_REPLY, HEADERS})
_VERSION = 3
_CONTROL_BIT = 0x80  # of a frame's first byte
_HEAD = struct.Struct(">II")


def control_frame(kind: int, flags: int, body: bytes) -> bytes:
    return _HEAD.pack((0x8000 | _VERSION) << 16 | kind, flags << 24 | len(body)) + body


def data_head(stream_id: int, flags: int, length: int) -> bytes:
    """What stands before `length` bytes of data."""
    return _HEAD.pack(stream_id, flags << 24 | length)


class FrameReader(ABC):
    """Cuts the peer's bytes into frames, for a subclass that knows what they mean."""

    def __init__(self) -> None:
        self._frame = bytearray()  # a frame's head, or a whole control frame, as far as it came
        self._frame_bytes = _HEAD.size
        self._data_left = 0

    @abstractmethod
    def _take_control(self, kind: int, flags: int, body: bytes) -> None:
        """A control frame; the fixed part of its body is there in full."""

    @abstractmethod
    def _start_data(self, stream_id: int, flags: int) -> None:
        """The head of a data frame. Its body follows, if it has one."""

    @abstractmethod
    def _take_data(self, data: memoryview, is_last: bool) -> None:
        """A piece of a data frame's body; an empty body is one empty piece."""

    def _read_frames(self, data: bytes | bytearray | memoryview) -> None:
        """Take these bytes, which may be cut anywhere. Raises SpdyError where they are no frame, for good."""
        view = memoryview(data)
        position, end = 0, len(view)
        while position < end:
            if self._data_left:
                count = min(self._data_left, end - position)
                self._data_left -= count
                self._take_data(view[position : position + count], not self._data_left)
            elif not self._frame and end - position >= _HEAD.size and view[position] < _CONTROL_BIT:
                self._take_data_head(*_HEAD.unpack_from(view, position))
                count = _HEAD.size
            else:
                count = min(self._frame_bytes - len(self._frame), end - position)
                self._frame += view[position : position + count]
                if len(self._frame) == self._frame_bytes:
                    self._take_frame()
            position += count

    def _take_frame(self) -> None:
        first, second = _HEAD.unpack_from(self._frame)
        if not first >> 31:
            self._end_frame()
            self._take_data_head(first, second)
        elif len(self._frame) == _HEAD.size:
            self._frame_bytes = _HEAD.size + _control_length(first, second)
            if self._frame_bytes == _HEAD.size:  # of a type that is none of ours
                self._end_frame()
        else:
            body = bytes(self._frame[_HEAD.size :])
            self._end_frame()
            self._take_control(first & 0xFFFF, second >> 24, body)

    def _take_data_head(self, stream_id: int, second: int) -> None:
        self._start_data(stream_id, second >> 24)
        self._data_left = second & 0xFFFFFF
        if not self._data_left:
            self._take_data(memoryview(b""), True)

    def _end_frame(self) -> None:
        self._frame.clear()
        self._frame_bytes = _HEAD.size


def _control_length(first: int, second: int) -> int:
    version, kind, length = first >> 16 & 0x7FFF, first & 0xFFFF, second & 0xFFFFFF
    fixed = _FIXED_BYTES.get(kind, 0)
    if version != _VERSION:
        raise SpdyError(f"SPDY version {version}")
    if length > MAX_CONTROL_BYTES or length < fixed or (length > fixed > 0 and kind not in _WITH_HEADERS):
        raise SpdyError(f"control frame of type {kind} with {length} bytes")
    return length
