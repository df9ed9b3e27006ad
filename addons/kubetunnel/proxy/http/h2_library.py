"""The h2 library's connection with what mitmproxy's HTTP/2 layers need: a send buffer, and GOAWAY that ends nothing.

The library takes a GOAWAY for the end of the connection, whereas the streams up to the one that it names go on
(RFC 9113 section 6.8); and it raises where a peer's flow control does not allow all data at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, Event, RemoteSettingsChanged, StreamReset, WindowUpdated
from h2.settings import SettingCodes
from hpack.hpack import Decoder
from hpack.struct import HeaderTuple
from hyperframe.frame import Frame, GoAwayFrame

# what a peer may send on a stream before we take it: the default of Go's client
STREAM_WINDOW_BYTES = 4 << 20
_CONNECTION_WINDOW_BYTES = 2**31 - 1  # the streams' windows are the limit

type Fields = list[tuple[bytes, bytes]]


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
        # HTTP/1 ones may come in capitals
        waiting.trailers, waiting.ends = [(name.lower(), value) for name, value in trailers], True
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

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        # replaces the library's method, which closes its state machine
        event = ConnectionTerminated()
        event.error_code, event.last_stream_id = frame.error_code, frame.last_stream_id
        event.additional_data = frame.additional_data or None
        return [], [event]

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
        ends_here = is_last and waiting.ends and not waiting.trailers
        if frame or ends_here:
            super().send_data(stream_id, frame, end_stream=ends_here)
        if is_last:
            if waiting.trailers:
                self.send_headers(stream_id, waiting.trailers, end_stream=True)
            del self._waiting[stream_id]
        return not is_last


def _split(data: bytearray, size: int) -> tuple[bytes, bytearray]:
    if size == len(data):
        return bytes(data), bytearray()
    first = bytes(data[:size])
    del data[:size]
    return first, data
