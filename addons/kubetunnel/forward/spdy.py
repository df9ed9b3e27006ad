"""SPDY/3.1 frames and streams, as the Kubernetes port-forward speaks them. Sans-I/O: bytes in, events out.

Sources: SPDY/3 draft 2.2 (frames), 2.3 (streams), 2.6 (control frames), and the habits of the servers' library: no flow
control (SETTINGS and WINDOW_UPDATE are ignored), priority 0 throughout. Python has no SPDY library to build on.
Both roles are here: a client forwards ports, the simulated cluster serves them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kubetunnel.forward.spdy_events import (
    DataReceived,
    DataSeen,
    Event,
    GoAwayReceived,
    HeadersReceived,
    PingAcknowledged,
    SpdyError,
    StreamOpened,
    StreamReplied,
    StreamReset,
)
from kubetunnel.forward.spdy_headers import HeaderBlockError, HeaderCompressor, HeaderDecompressor, Headers

__all__ = [
    "CANCEL",
    "REFUSED_STREAM",
    "DataReceived",
    "DataSeen",
    "Event",
    "GoAwayReceived",
    "HeadersReceived",
    "PingAcknowledged",
    "SpdyConnection",
    "SpdyError",
    "StreamOpened",
    "StreamReplied",
    "StreamReset",
]

MAX_CONTROL_BYTES: Final = 64 * 1024  # a control frame's body; data frames are handed on piece by piece, at any length
MAX_DATA_FRAME_BYTES: Final = 64 * 1024  # of ours: larger frames gain nothing, and delay the other streams
MAX_STREAM_ID: Final = 0x7FFFFFFF

# RST_STREAM status codes (draft 2.6.3)
REFUSED_STREAM: Final = 3
CANCEL: Final = 5

_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _PING, _GOAWAY, _HEADERS = 1, 2, 3, 6, 7, 8
_FIXED_BYTES = {_SYN_STREAM: 10, _SYN_REPLY: 4, _RST_STREAM: 8, _PING: 4, _GOAWAY: 8, _HEADERS: 4}
_WITH_HEADERS = frozenset({_SYN_STREAM, _SYN_REPLY, _HEADERS})
_VERSION = 3
_CONTROL_BIT = 0x80  # of a frame's first byte
_FLAG_FIN, _FLAG_UNIDIRECTIONAL = 0x01, 0x02

_HEAD = struct.Struct(">II")
_U32 = struct.Struct(">I")
_SYN_BODY = struct.Struct(">IIH")  # stream, associated stream, priority and slot


@dataclass(slots=True)
class _Stream:
    sending: bool
    receiving: bool


class SpdyConnection:
    """One SPDY connection, without its transport.

    Every method that speaks only queues: fetch the bytes with `data_to_send()` and write them. Frames on streams that
    are closed already are dropped (the draft wants that after a reset). Misuse by the caller raises ValueError.

    Args:
        client: our role; it decides which stream and ping ids are ours.
        views: received data comes as DataSeen, not as DataReceived.
    """

    def __init__(self, *, client: bool, views: bool = False) -> None:
        self._views = views
        self._parity = 1 if client else 0
        self._next_stream_id = 1 if client else 2
        self._next_ping_id = 1 if client else 2
        self._last_peer_stream_id = 0
        self._streams: dict[int, _Stream] = {}
        self._pings: set[int] = set()
        self._goaway = False
        self._deflate = HeaderCompressor()
        self._inflate = HeaderDecompressor()
        self._out: list[bytes | memoryview] = []
        self._frame = bytearray()  # a frame's head, or a whole control frame, as far as it came
        self._frame_bytes = _HEAD.size
        self._data_stream_id = 0
        self._data_left = 0
        self._data_fin = False
        self._events: list[Event] = []
        self._violation: str | None = None

    @property
    def can_open(self) -> bool:
        """False after a GOAWAY from the peer, or when the stream ids are used up."""
        return not self._goaway and self._next_stream_id <= MAX_STREAM_ID

    def can_send(self, stream_id: int) -> bool:
        """Whether the stream is there and our direction of it open."""
        stream = self._streams.get(stream_id)
        return stream is not None and stream.sending

    def open_stream(self, headers: Iterable[tuple[str, str]], *, fin: bool = False) -> int:
        """Queue a SYN_STREAM and return the stream's id. `fin`: we send nothing on it."""
        if not self.can_open:
            raise ValueError("no stream can be opened any more")
        block = self._deflate.compress(headers)
        stream_id = self._next_stream_id
        self._next_stream_id += 2
        self._streams[stream_id] = _Stream(sending=not fin, receiving=True)
        self._control(_SYN_STREAM, _FLAG_FIN if fin else 0, _SYN_BODY.pack(stream_id, 0, 0) + block)
        return stream_id

    def reply(self, stream_id: int, headers: Iterable[tuple[str, str]] = (), *, fin: bool = False) -> None:
        """Queue a SYN_REPLY for a stream of the peer's."""
        self._sendable(stream_id)
        body = _U32.pack(stream_id) + self._deflate.compress(headers)
        self._control(_SYN_REPLY, _FLAG_FIN if fin else 0, body)
        if fin:
            self._finish_sending(stream_id)

    def send_data(
        self, stream_id: int, data: bytes | bytearray | memoryview, *, fin: bool = False, copy: bool = True
    ) -> None:
        """Queue bytes, in frames of at most MAX_DATA_FRAME_BYTES; with `fin` the last we send.

        Without `copy` the data must stay what it is until `data_to_send` has fetched it.
        """
        self._sendable(stream_id)
        view = memoryview(data)
        if copy and not isinstance(view.obj, bytes):
            view = memoryview(bytes(view))
        if not view and not fin:
            return
        for start in range(0, max(len(view), 1), MAX_DATA_FRAME_BYTES):
            piece = view[start : start + MAX_DATA_FRAME_BYTES]
            flags = _FLAG_FIN if fin and start + len(piece) == len(view) else 0
            self._out += (_HEAD.pack(stream_id, flags << 24 | len(piece)), piece)
        if fin:
            self._finish_sending(stream_id)

    def reset(self, stream_id: int, status: int = CANCEL) -> None:
        """Queue a RST_STREAM where the stream is still there; what the peer sends on it after that is dropped."""
        if self._streams.pop(stream_id, None) is not None:
            self._control(_RST_STREAM, 0, _HEAD.pack(stream_id, status))

    def ping(self) -> int:
        """Queue a PING and return its id, which the PingAcknowledged event brings back."""
        ping_id = self._next_ping_id
        self._next_ping_id = ping_id + 2 if ping_id + 2 <= MAX_STREAM_ID else 2 - self._parity
        self._pings.add(ping_id)
        self._control(_PING, 0, _U32.pack(ping_id))
        return ping_id

    def goaway(self, last_stream_id: int | None = None, status: int = 0) -> None:
        """Queue a GOAWAY; by default the last stream id is the last that the peer opened."""
        last = self._last_peer_stream_id if last_stream_id is None else last_stream_id
        self._control(_GOAWAY, 0, _HEAD.pack(last, status))

    def data_to_send(self) -> bytes:
        """Everything queued since the last call, b"" where there is nothing."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """What the peer's bytes mean; they may be cut anywhere. Raises SpdyError, from then on at every call."""
        if self._violation is not None:
            raise SpdyError(self._violation)
        view = memoryview(data)
        position, end = 0, len(view)
        try:
            while position < end:
                if self._data_left:
                    count = min(self._data_left, end - position)
                    self._take_data(view[position : position + count])
                elif not self._frame and end - position >= _HEAD.size and view[position] < _CONTROL_BIT:
                    first, second = _HEAD.unpack_from(view, position)
                    self._start_data(first, second >> 24, second & 0xFFFFFF)
                    count = _HEAD.size
                else:
                    count = min(self._frame_bytes - len(self._frame), end - position)
                    self._frame += view[position : position + count]
                    if len(self._frame) == self._frame_bytes:
                        self._take_frame()
                position += count
        except (SpdyError, HeaderBlockError) as error:
            self._violation = str(error)
            raise SpdyError(self._violation, tuple(self._take_events())) from error
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _control(self, kind: int, flags: int, body: bytes) -> None:
        self._out.append(_HEAD.pack((0x8000 | _VERSION) << 16 | kind, flags << 24 | len(body)) + body)

    def _sendable(self, stream_id: int) -> None:
        if not self.can_send(stream_id):
            raise ValueError(f"stream {stream_id} is not open for sending")

    def _finish_sending(self, stream_id: int) -> None:
        stream = self._streams[stream_id]
        stream.sending = False
        if not stream.receiving:
            del self._streams[stream_id]

    def _finish_receiving(self, stream_id: int) -> None:
        stream = self._streams[stream_id]
        stream.receiving = False
        if not stream.sending:
            del self._streams[stream_id]

    def _take_frame(self) -> None:
        first, second = _HEAD.unpack_from(self._frame)
        flags, length = second >> 24, second & 0xFFFFFF
        if not first >> 31:
            self._end_frame()
            self._start_data(first, flags, length)
        elif len(self._frame) == _HEAD.size:
            version, kind = first >> 16 & 0x7FFF, first & 0xFFFF
            fixed = _FIXED_BYTES.get(kind, 0)
            if version != _VERSION:
                raise SpdyError(f"SPDY version {version}")
            if length > MAX_CONTROL_BYTES or length < fixed or (length > fixed > 0 and kind not in _WITH_HEADERS):
                raise SpdyError(f"control frame of type {kind} with {length} bytes")
            self._frame_bytes = _HEAD.size + length
            if not length:
                self._end_frame()
        else:
            body = bytes(self._frame[_HEAD.size :])
            self._end_frame()
            self._take_control(first & 0xFFFF, flags, body)

    def _end_frame(self) -> None:
        self._frame.clear()
        self._frame_bytes = _HEAD.size

    def _start_data(self, stream_id: int, flags: int, length: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            self._check_known(stream_id)
        elif not stream.receiving:
            raise SpdyError(f"data on stream {stream_id} after its end")
        self._data_stream_id, self._data_left, self._data_fin = stream_id, length, bool(flags & _FLAG_FIN)
        if not length and self._data_fin:
            self._take_data(memoryview(b""))

    def _take_data(self, data: memoryview) -> None:
        self._data_left -= len(data)
        stream_id = self._data_stream_id
        if stream_id not in self._streams:
            return
        fin = self._data_fin and not self._data_left
        self._events.append(
            DataSeen(stream_id, data, fin) if self._views else DataReceived(stream_id, bytes(data), fin)
        )
        if fin:
            self._finish_receiving(stream_id)

    def _take_control(self, kind: int, flags: int, body: bytes) -> None:
        fin = bool(flags & _FLAG_FIN)
        if kind == _SYN_STREAM:
            self._take_syn_stream(flags, body)
        elif kind in (_SYN_REPLY, _HEADERS):
            self._take_headers(kind, _stream_id(body), self._inflate.decompress(body[4:]), fin)
        elif kind == _RST_STREAM:
            self._take_reset(_stream_id(body), _U32.unpack_from(body, 4)[0])
        elif kind == _PING:
            self._take_ping(_U32.unpack(body)[0])
        elif kind == _GOAWAY:
            self._goaway = True
            self._events.append(GoAwayReceived(_stream_id(body), _U32.unpack_from(body, 4)[0]))

    def _take_syn_stream(self, flags: int, body: bytes) -> None:
        stream_id = _stream_id(body)
        headers = self._inflate.decompress(body[_SYN_BODY.size :])
        if stream_id & 1 == self._parity or stream_id <= self._last_peer_stream_id:
            raise SpdyError(f"stream id {stream_id} is not the peer's to open")
        self._last_peer_stream_id = stream_id
        fin = bool(flags & _FLAG_FIN)
        sending = not flags & _FLAG_UNIDIRECTIONAL
        if sending or not fin:
            self._streams[stream_id] = _Stream(sending=sending, receiving=not fin)
        self._events.append(StreamOpened(stream_id, headers, fin))

    def _take_headers(self, kind: int, stream_id: int, headers: Headers, fin: bool) -> None:
        self._check_known(stream_id)
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not stream.receiving:
            raise SpdyError(f"headers on stream {stream_id} after its end")
        event = StreamReplied if kind == _SYN_REPLY else HeadersReceived
        self._events.append(event(stream_id, headers, fin))
        if fin:
            self._finish_receiving(stream_id)

    def _take_reset(self, stream_id: int, status: int) -> None:
        self._check_known(stream_id)
        if self._streams.pop(stream_id, None) is not None:
            self._events.append(StreamReset(stream_id, status))

    def _take_ping(self, ping_id: int) -> None:
        if ping_id & 1 != self._parity:
            self._control(_PING, 0, _U32.pack(ping_id))
        elif ping_id in self._pings:  # another of our parity is none of ours: to be ignored (draft 2.6.5)
            self._pings.remove(ping_id)
            self._events.append(PingAcknowledged(ping_id))

    def _check_known(self, stream_id: int) -> None:
        ours = stream_id & 1 == self._parity
        if not stream_id or stream_id >= (self._next_stream_id if ours else self._last_peer_stream_id + 1):
            raise SpdyError(f"a frame on stream {stream_id}, which nobody opened")


def _stream_id(body: bytes) -> int:
    return int(_U32.unpack_from(body)[0]) & MAX_STREAM_ID
