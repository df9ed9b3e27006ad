"""The h2 library's connection with what mitmproxy's HTTP/2 layers need: a send buffer, and GOAWAY that ends nothing.

The library takes a GOAWAY for the end of the connection, whereas the streams up to the one that it names go on
(RFC 9113 section 6.8); and it raises where a peer's flow control does not allow all data at once. Of malformed messages
it takes some for the end of the connection and lets others pass; here they end their stream (section 8.1.1), since in
HTTP/1 the next message on a shared connection would be read as a part of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import InvalidBodyLengthError
from h2.settings import SettingCodes
from h2.stream import StreamClosedBy
from h2.utilities import CONNECTION_HEADERS
from hpack.hpack import Decoder
from hpack.struct import HeaderTuple
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, WindowUpdateFrame

# what a peer may send on a stream before we take it: the default of Go's client
STREAM_WINDOW_BYTES = 4 << 20
_MAX_STREAM_ID = 2**31 - 1  # RFC 9113 section 5.1.1
_CONNECTION_WINDOW_BYTES = 2**31 - 1  # the streams' windows are the limit

type Fields = list[tuple[bytes, bytes]]

# a request line of HTTP/1 has its words between spaces; what is beyond ASCII some clients do not encode
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_PATH = re.compile(rb"[^\x00-\x20\x7f]+")


def is_connect(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether this is the head of a CONNECT request."""
    return (b":method", b"CONNECT") in ((name, value) for name, value in fields)


class _Decoder(Decoder):
    """Completes a CONNECT's head, which has neither scheme nor path (RFC 9113 section 8.5), while the library asks
    for them and ends the connection."""

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        fields = list(super().decode(data, raw=raw))
        if is_connect(fields):
            known = {name for name, _ in fields}
            missing = [name for name in (b":scheme", b":path") if name not in known]
            fields[:0] = [HeaderTuple(name, b"*") for name in missing]
        return fields


@dataclass(slots=True)
class _Waiting:
    """What the peer does not take yet of one stream."""

    data: bytearray = field(default_factory=bytearray)
    taken_bytes: int = 0
    trailers: Fields | None = None
    ends: bool = False


class KubeH2Connection(H2Connection):
    """Offers what mitmproxy's `BufferedH2Connection` does, and how much is buffered."""

    def __init__(self, config: H2Configuration) -> None:
        super().__init__(config)
        self.local_settings.initial_window_size = STREAM_WINDOW_BYTES
        # without this the library would go on with the former settings until the peer acknowledges ours
        self.local_settings.acknowledge()
        self._waiting: dict[int, _Waiting] = {}
        limit_bytes = self.decoder.max_header_list_size
        self.decoder = _Decoder()
        self.decoder.max_header_list_size = limit_bytes

    def initiate_connection(self) -> None:
        super().initiate_connection()
        self.increment_flow_control_window(_CONNECTION_WINDOW_BYTES - self.inbound_flow_control_window)

    def buffered_bytes(self, stream_id: int) -> int:
        """How much of this stream the peer does not take yet."""
        waiting = self._waiting.get(stream_id)
        return len(waiting.data) if waiting else 0

    def taken_bytes(self, stream_id: int) -> int:
        """How much of this stream the peer has taken while something of it was buffered all the time."""
        waiting = self._waiting.get(stream_id)
        return waiting.taken_bytes if waiting else 0

    def send_data(
        self, stream_id: int, data: bytes | memoryview, end_stream: bool = False, pad_length: int | None = None
    ) -> None:
        """Sends what may be sent, and keeps the rest until it may."""
        waiting = self._waiting.setdefault(stream_id, _Waiting())
        waiting.data += data
        waiting.ends |= end_stream
        while self._send_frame(stream_id):
            pass

    def send_trailers(self, stream_id: int, trailers: Fields) -> None:
        """Ends the stream with these, after its data."""
        waiting = self._waiting.setdefault(stream_id, _Waiting())
        # HTTP/1 ones may come in capitals, and be about one connection, for which a peer would end this one
        lower = [(name.lower(), value) for name, value in trailers]
        waiting.trailers, waiting.ends = [field for field in lower if field[0] not in CONNECTION_HEADERS], True
        while self._send_frame(stream_id):
            pass

    def end_stream(self, stream_id: int) -> None:
        """Ends the stream after its data; trailers that wait have ended it already."""
        self.send_data(stream_id, b"", end_stream=True)

    def reset_stream(self, stream_id: int, error_code: ErrorCodes | int = 0) -> None:
        self._waiting.pop(stream_id, None)
        super().reset_stream(stream_id, error_code)

    def receive_data(self, data: bytes) -> list[Event]:
        events = super().receive_data(data)
        for event in events:
            if isinstance(event, WindowUpdated):
                self._send_waiting(event.stream_id)
            elif isinstance(event, RemoteSettingsChanged):
                if SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
                    self._send_waiting(0)
            elif isinstance(event, StreamReset):
                self._waiting.pop(event.stream_id, None)
        return [event for event in events if not isinstance(event, WindowUpdated)]

    def ask_to_leave(self) -> None:
        """Tells the peer to open no more streams here; those that it has, or is about to open, go on.

        The first GOAWAY of a graceful end (RFC 9113 section 6.8), which does not end the library's connection.
        """
        self._prepare_for_sending([GoAwayFrame(0, last_stream_id=_MAX_STREAM_ID, error_code=ErrorCodes.NO_ERROR)])

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        # replaces the library's method, which closes its state machine
        event = ConnectionTerminated()
        event.error_code, event.last_stream_id = frame.error_code, frame.last_stream_id
        event.additional_data = frame.additional_data or None
        return [], [event]

    def _receive_headers_frame(self, frame: HeadersFrame) -> tuple[list[Frame], list[Event]]:
        frames, events = super()._receive_headers_frame(frame)
        stream = self.streams[frame.stream_id]
        for event in events:
            if isinstance(event, RequestReceived) and not _fits_a_request_line(event):
                return frames, [self._malformed(frame.stream_id)]
            if isinstance(event, ResponseReceived) and (b":status", b"304") in event.headers:
                stream._expected_content_length = None  # that of another response (RFC 9110 section 8.6)  # noqa: SLF001
        if "END_STREAM" in frame.flags and stream._expected_content_length not in (None, stream._actual_content_length):  # noqa: SLF001
            events = [event for event in events if not isinstance(event, StreamEnded)]
            events.append(self._malformed(frame.stream_id))
        return frames, events

    def _receive_data_frame(self, frame: DataFrame) -> tuple[list[Frame], list[Event]]:
        if self._stream_closed_by(frame.stream_id) is StreamClosedBy.SEND_RST_STREAM:
            return self._drop(frame), []
        try:
            return super()._receive_data_frame(frame)
        except InvalidBodyLengthError:
            self.acknowledge_received_data(frame.flow_controlled_length, frame.stream_id)
            return [], [self._malformed(frame.stream_id)]

    def _drop(self, frame: DataFrame) -> list[Frame]:
        """Takes what was under way when we reset its stream. The library answers each frame with another RST_STREAM."""
        window = self._inbound_flow_control_window_manager
        window.window_consumed(frame.flow_controlled_length)
        increment = window.process_bytes(frame.flow_controlled_length)
        return [WindowUpdateFrame(0, window_increment=increment)] if increment else []

    def _malformed(self, stream_id: int) -> StreamReset:
        if not self.streams[stream_id].closed:
            self.reset_stream(stream_id, ErrorCodes.PROTOCOL_ERROR)
        return StreamReset(stream_id=stream_id, error_code=ErrorCodes.PROTOCOL_ERROR, remote_reset=False)

    def _send_waiting(self, stream_id: int) -> None:
        """Sends of one stream, or (0) of all in turns, so that none starves the others."""
        sent = True
        while sent:
            sent = False
            for waiting_id in [stream_id] if stream_id else list(self._waiting):
                sent |= self._send_frame(waiting_id)

    def _send_frame(self, stream_id: int) -> bool:
        """Sends a frame's worth; False where nothing is left or allowed."""
        waiting = self._waiting.get(stream_id)
        if waiting is None:
            return False
        stream = self.streams.get(stream_id)
        if stream is None or stream.closed:
            del self._waiting[stream_id]
            return False
        # negative after the peer has made its window smaller
        window = max(0, self.local_flow_control_window(stream_id))
        size = min(len(waiting.data), window, self.max_outbound_frame_size)
        is_last = size == len(waiting.data)
        if not size and not is_last:
            return False
        frame, waiting.data = _split(waiting.data, size)
        waiting.taken_bytes += size
        ends_here = is_last and waiting.ends and not waiting.trailers
        if frame or ends_here:
            super().send_data(stream_id, frame, end_stream=ends_here)
        if is_last:
            if waiting.trailers:
                self.send_headers(stream_id, waiting.trailers, end_stream=True)
            del self._waiting[stream_id]
        return not is_last


def _fits_a_request_line(request: RequestReceived) -> bool:
    fields = dict(request.headers)
    return bool(_METHOD.fullmatch(fields.get(b":method", b"")) and _PATH.fullmatch(fields.get(b":path", b"")))


def _split(data: bytearray, size: int) -> tuple[bytes, bytearray]:
    if size == len(data):
        return bytes(data), bytearray()
    first = bytes(data[:size])
    del data[:size]
    return first, data
