"""SPDY/3.1 streams, as the Kubernetes port-forward speaks them. Sans-I/O: bytes in, events out.

Sources: SPDY/3 draft 2.3 (streams), 2.6 (control frames), and the habits of the servers' library: no flow control
(SETTINGS and WINDOW_UPDATE are ignored), priority 0 throughout. Frames as bytes: `spdy_frames`. Python has no SPDY
library to build on.
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
from kubetunnel.forward.spdy_frames import (
    FLAG_FIN,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SYN_REPLY,
    SYN_STREAM,
    FrameReader,
    control_frame,
    data_head,
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

MAX_DATA_FRAME_BYTES: Final = 64 * 1024  # of ours: larger frames gain nothing, and delay the other streams
MAX_STREAM_ID: Final = 0x7FFFFFFF

# RST_STREAM status codes (draft 2.6.3)
REFUSED_STREAM: Final = 3
CANCEL: Final = 5

_FLAG_UNIDIRECTIONAL = 0x02

_U32 = struct.Struct(">I")
_TWO_U32 = struct.Struct(">II")
_SYN_BODY = struct.Struct(">IIH")  # stream, associated stream, priority and slot


@dataclass(slots=True)
class _Stream:
    sending: bool
    receiving: bool


class SpdyConnection(FrameReader):
    """One SPDY connection, without its transport.

    Every method that speaks only queues: fetch the bytes with `data_to_send()` and write them. Frames on streams that
    are closed already are dropped (the draft wants that after a reset). Misuse by the caller raises ValueError.

    Args:
        client: our role; it decides which stream and ping ids are ours.
        views: received data comes as DataSeen, not as DataReceived.
    """

    def __init__(self, *, client: bool, views: bool = False) -> None:
        super().__init__()
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
        self._data_stream_id = 0
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
        self._control(SYN_STREAM, FLAG_FIN if fin else 0, _SYN_BODY.pack(stream_id, 0, 0) + block)
        return stream_id

    def reply(self, stream_id: int, headers: Iterable[tuple[str, str]] = (), *, fin: bool = False) -> None:
        """Queue a SYN_REPLY for a stream of the peer's."""
        self._sendable(stream_id)
        body = _U32.pack(stream_id) + self._deflate.compress(headers)
        self._control(SYN_REPLY, FLAG_FIN if fin else 0, body)
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
            flags = FLAG_FIN if fin and start + len(piece) == len(view) else 0
            self._out += (data_head(stream_id, flags, len(piece)), piece)
        if fin:
            self._finish_sending(stream_id)

    def reset(self, stream_id: int, status: int = CANCEL) -> None:
        """Queue a RST_STREAM where the stream is still there; what the peer sends on it after that is dropped."""
        if self._streams.pop(stream_id, None) is not None:
            self._control(RST_STREAM, 0, _TWO_U32.pack(stream_id, status))

    def ping(self) -> int:
        """Queue a PING and return its id, which the PingAcknowledged event brings back."""
        ping_id = self._next_ping_id
        self._next_ping_id = ping_id + 2 if ping_id + 2 <= MAX_STREAM_ID else 2 - self._parity
        self._pings.add(ping_id)
        self._control(PING, 0, _U32.pack(ping_id))
        return ping_id

    def goaway(self, last_stream_id: int | None = None, status: int = 0) -> None:
        """Queue a GOAWAY; by default the last stream id is the last that the peer opened."""
        last = self._last_peer_stream_id if last_stream_id is None else last_stream_id
        self._control(GOAWAY, 0, _TWO_U32.pack(last, status))

    def data_to_send(self) -> bytes:
        """Everything queued since the last call, b"" where there is nothing."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """What the peer's bytes mean; they may be cut anywhere. Raises SpdyError, from then on at every call."""
        if self._violation is not None:
            raise SpdyError(self._violation)
        try:
            self._read_frames(data)
        except (SpdyError, HeaderBlockError) as error:
            self._violation = str(error)
            raise SpdyError(self._violation, tuple(self._take_events())) from error
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _control(self, kind: int, flags: int, body: bytes) -> None:
        self._out.append(control_frame(kind, flags, body))

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

    def _start_data(self, stream_id: int, flags: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            self._check_known(stream_id)
        elif not stream.receiving:
            raise SpdyError(f"data on stream {stream_id} after its end")
        self._data_stream_id, self._data_fin = stream_id, bool(flags & FLAG_FIN)

    def _take_data(self, data: memoryview, is_last: bool) -> None:
        stream_id, fin = self._data_stream_id, self._data_fin and is_last
        if stream_id not in self._streams or not (data or fin):
            return
        self._events.append(
            DataSeen(stream_id, data, fin) if self._views else DataReceived(stream_id, bytes(data), fin)
        )
        if fin:
            self._finish_receiving(stream_id)

    def _take_control(self, kind: int, flags: int, body: bytes) -> None:
        fin = bool(flags & FLAG_FIN)
        if kind == SYN_STREAM:
            self._take_syn_stream(flags, body)
        elif kind in (SYN_REPLY, HEADERS):
            self._take_headers(kind, _stream_id(body), self._inflate.decompress(body[4:]), fin)
        elif kind == RST_STREAM:
            self._take_reset(_stream_id(body), _U32.unpack_from(body, 4)[0])
        elif kind == PING:
            self._take_ping(_U32.unpack(body)[0])
        elif kind == GOAWAY:
            self._goaway = True
            self._events.append(GoAwayReceived(_stream_id(body), _U32.unpack_from(body, 4)[0]))

    def _take_syn_stream(self, flags: int, body: bytes) -> None:
        stream_id = _stream_id(body)
        headers = self._inflate.decompress(body[_SYN_BODY.size :])
        if stream_id & 1 == self._parity or stream_id <= self._last_peer_stream_id:
            raise SpdyError(f"stream id {stream_id} is not the peer's to open")
        self._last_peer_stream_id = stream_id
        fin = bool(flags & FLAG_FIN)
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
        event = StreamReplied if kind == SYN_REPLY else HeadersReceived
        self._events.append(event(stream_id, headers, fin))
        if fin:
            self._finish_receiving(stream_id)

    def _take_reset(self, stream_id: int, status: int) -> None:
        self._check_known(stream_id)
        if self._streams.pop(stream_id, None) is not None:
            self._events.append(StreamReset(stream_id, status))

    def _take_ping(self, ping_id: int) -> None:
        if ping_id & 1 != self._parity:
            self._control(PING, 0, _U32.pack(ping_id))
        elif ping_id in self._pings:  # another of our parity is none of ours: to be ignored (draft 2.6.5)
            self._pings.remove(ping_id)
            self._events.append(PingAcknowledged(ping_id))

    def _check_known(self, stream_id: int) -> None:
        ours = stream_id & 1 == self._parity
        if not stream_id or stream_id >= (self._next_stream_id if ours else self._last_peer_stream_id + 1):
            raise SpdyError(f"a frame on stream {stream_id}, which nobody opened")


def _stream_id(body: bytes) -> int:
    return int(_U32.unpack_from(body)[0]) & MAX_STREAM_ID
