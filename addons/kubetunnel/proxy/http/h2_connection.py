"""What our HTTP/2 client and server have in common: bodies wait at their source, and finished streams leave no trace.

mitmproxy gives each peer a window of 2 GiB and buffers without limit what the other one does not take.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import h2.events
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestProtocolError, ResponseProtocolError
from mitmproxy.proxy.layers.http._http2 import Http2Connection, StreamState

from kubetunnel.proxy.http.events import Congested, Throttle
from kubetunnel.proxy.http.h2_library import KubeH2Connection

# of one stream, waiting here for its reader; its sender stops above the first and goes on below the second
HIGH_WATER_BYTES = 1 << 20
LOW_WATER_BYTES = 256 << 10


class KubeHttp2Connection(Http2Connection):
    """To be mixed in before mitmproxy's client or server. Stream ids are those of this connection."""

    h2_conn: KubeH2Connection  # type: ignore[assignment]

    def __init__(self, context: Context) -> None:
        super().__init__(context)  # type: ignore[call-arg] # that of the client or server
        self.h2_conn = KubeH2Connection(self.h2_conf)
        self._congested: set[int] = set()
        self._untaken_bytes: dict[int, int] = {}  # of streams that are throttled

    def handle_with_flow_control(
        self, event: events.Event, handle: Callable[[events.Event], layer.CommandGenerator[None]]
    ) -> layer.CommandGenerator[None]:
        """As `handle`, and tells when a stream's buffer is filled, or emptied again."""
        if isinstance(event, Throttle):
            yield from self._throttle(event)
        else:
            yield from handle(event)
        if isinstance(event, HttpEvent) and self._fills(event.stream_id):
            self._congested.add(event.stream_id)
            yield Congested(event.stream_id, self.conn, congested=True)
        for stream_id in list(self._congested):
            if self.h2_conn.buffered_bytes(stream_id) < LOW_WATER_BYTES:
                self._congested.discard(stream_id)
                yield Congested(stream_id, self.conn, congested=False)

    def _fills(self, stream_id: int) -> bool:
        return stream_id not in self._congested and self.h2_conn.buffered_bytes(stream_id) > HIGH_WATER_BYTES

    def handle_h2_event(self, event: h2.events.Event) -> layer.CommandGenerator[bool]:
        if isinstance(event, h2.events.DataReceived):
            return (yield from self._receive_body(event))
        if isinstance(event, h2.events.ConnectionTerminated):
            yield from self.go_away(event)
            return False
        return (yield from super().handle_h2_event(event))

    def _receive_body(self, event: h2.events.DataReceived) -> layer.CommandGenerator[bool]:
        state = self.streams.get(event.stream_id)
        if state is StreamState.EXPECTING_HEADERS:
            yield from self.protocol_error("Received HTTP/2 data frame, expected headers.")
            return True
        if state and event.data:
            yield ReceiveHttp(self.ReceiveData(event.stream_id, event.data))
        if event.stream_id in self._untaken_bytes:
            self._untaken_bytes[event.stream_id] += event.flow_controlled_length
        else:
            self.h2_conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        return False

    def _throttle(self, event: Throttle) -> layer.CommandGenerator[None]:
        if event.paused:
            self._untaken_bytes.setdefault(event.stream_id, 0)
        else:
            yield from self.give_back(event.stream_id)

    def give_back(self, stream_id: int) -> layer.CommandGenerator[None]:
        """Opens the peer's window again, and tells it so: that of the connection is the other streams', too."""
        self._take(stream_id)
        if data := self.h2_conn.data_to_send():
            yield commands.SendData(self.conn, data)

    def _take(self, stream_id: int) -> None:
        if untaken := self._untaken_bytes.pop(stream_id, 0):
            self.h2_conn.acknowledge_received_data(untaken, stream_id)

    def forget_if_closed(self, stream_id: int) -> bool:
        """Drops what is known of a stream that both sides have ended."""
        if self.is_closed(stream_id):
            self.streams.pop(stream_id, None)
        return stream_id not in self.streams

    def close_connection(self, msg: str) -> layer.CommandGenerator[None]:
        self._handle_event = self.done  # type: ignore[method-assign]
        yield commands.CloseConnection(self.conn)
        failed, self.streams = self.streams, {}
        for stream_id, state in failed.items():
            yield ReceiveHttp(self.connection_lost(stream_id, state, msg))

    @abstractmethod
    def go_away(self, event: h2.events.ConnectionTerminated) -> layer.CommandGenerator[None]:
        """The peer takes no new streams."""

    @abstractmethod
    def connection_lost(
        self, stream_id: int, state: StreamState, message: str
    ) -> RequestProtocolError | ResponseProtocolError:
        """What to tell a stream whose connection is gone."""
