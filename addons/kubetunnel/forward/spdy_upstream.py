"""An upgraded connection that speaks SPDY/3.1, as it is or tunnelled through WebSocket messages (KEP-4006).

A forwarded connection is two SPDY streams (apimachinery's portforward.k8s.io): an error stream, on which a text says
why the connection failed, and a data stream. The runtime ends both when the connection is over. A text is about its own
connection alone: unlike kubectl we do not give up the others for it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from kubetunnel.core.errors import KubeTunnelError, UpstreamReset
from kubetunnel.forward.errors import pod_is_gone, stream_error
from kubetunnel.forward.lane import Lane, UpstreamFacts
from kubetunnel.forward.spdy import (
    REFUSED_STREAM,
    DataSeen,
    Event,
    GoAwayReceived,
    PingAcknowledged,
    SpdyConnection,
    SpdyError,
    StreamOpened,
    StreamReplied,
    StreamReset,
)
from kubetunnel.forward.stream import Bytes, ForwardStream
from kubetunnel.forward.upgraded import BATCH_BYTES
from kubetunnel.forward.upstream import Owner, Upstream
from kubetunnel.forward.websocket import WebSocketFrames

MAX_ERROR_BYTES = 8 * 1024  # of a text; what comes after it is left out

# containerd ends the data stream first, and writes the error text, if there is one, right after it. How long that takes
# to come here depends on the load: what a ping that was sent later has overtaken is not under way any more
ERROR_GRACE_S = 0.5


@dataclass(slots=True, eq=False)
class _SpdyLane(Lane):
    data_id: int = 0
    error_id: int = 0
    data_ended: bool = False
    error_ended: bool = False
    error_text: bytearray = field(default_factory=bytearray)
    eof_timer: asyncio.TimerHandle | None = None


class SpdyUpstream(Upstream):
    """SPDY/3.1 over the connection, or over WebSocket frames where `frames` is given."""

    def __init__(self, facts: UpstreamFacts, owner: Owner, frames: WebSocketFrames | None = None) -> None:
        super().__init__(facts, owner)
        self._spdy = SpdyConnection(client=True, views=True)
        self._frames = frames
        self._requests = 0
        self._by_id: dict[int, _SpdyLane] = {}
        self._pinged_at: dict[int, float] = {}
        self._half_ended: dict[int, _SpdyLane] = {}  # by the ping that is to tell
        self._probed: dict[int, ForwardStream] = {}  # likewise
        self._pieces: list[memoryview] = []  # of one read, for one stream: handed over at once
        self._pieces_of: _SpdyLane | None = None

    def _open_lane(self, stream: ForwardStream) -> Lane:
        if not self._spdy.can_open:
            raise UpstreamReset(f"The connection to {stream.target} takes no new streams.")
        common = (("port", str(stream.target.port)), ("requestid", str(self._requests)))
        self._requests += 1
        lane = _SpdyLane(stream, self._loop.time())
        lane.error_id = self._spdy.open_stream((("streamtype", "error"), *common))
        self._spdy.send_data(lane.error_id, b"", fin=True)
        lane.data_id = self._spdy.open_stream((("streamtype", "data"), *common))
        self._by_id[lane.error_id] = self._by_id[lane.data_id] = lane
        return lane

    def _queue(self, lane: Lane, data: Bytes) -> None:
        assert isinstance(lane, _SpdyLane)  # noqa: S101  (every lane is made by _open_lane)
        if not self._spdy.can_send(lane.data_id):
            return
        view = memoryview(data)
        whole = len(view) - len(view) % BATCH_BYTES
        for start in range(0, whole, BATCH_BYTES):
            # what is written at once needs no copy; in blocks of this size, because malloc keeps their memory
            self._spdy.send_data(lane.data_id, view[start : start + BATCH_BYTES], copy=False)
            self.flush()
        if whole < len(view):
            self._spdy.send_data(lane.data_id, view[whole:])

    def _queue_end(self, lane: Lane, *, reset: bool) -> None:
        assert isinstance(lane, _SpdyLane)  # noqa: S101
        if reset:
            self._spdy.reset(lane.data_id)
            self._spdy.reset(lane.error_id)
        elif self._spdy.can_send(lane.data_id):
            self._spdy.send_data(lane.data_id, b"", fin=True)

    def _take_output(self) -> bytes:
        output = self._spdy.data_to_send()
        if self._frames is None:
            return output
        if output:
            self._frames.send(output)
        return self._frames.data_to_send()

    def _queue_ping(self) -> None:
        self._ping()

    def probe(self, stream: ForwardStream) -> None:
        self._probed[self._ping()] = stream
        self._schedule(0)

    def _ping(self) -> int:
        ping_id = self._spdy.ping()
        self._pinged_at[ping_id] = self._loop.time()
        return ping_id

    def _queue_close(self) -> None:
        self._spdy.goaway()
        if self._frames is not None:
            self._frames.send(self._spdy.data_to_send())
            self._frames.close()

    def _receive(self, data: memoryview) -> None:
        if self._frames is None:
            self._heard()
            self._receive_spdy(data)
            self._hand_over()
            return
        payloads = self._frames.receive(data)
        if payloads:
            self._heard()  # SPDY alone counts: the API server answers WebSocket pings for a node that is dead
        for payload, _ in payloads:
            self._receive_spdy(payload)
        self._hand_over()
        if self._frames.close_received:
            self.close("the API server closed it")

    def _receive_spdy(self, data: Bytes) -> None:
        try:
            events = self._spdy.receive_data(data)
        except SpdyError as error:
            for event in error.events:
                self._take(event)
            self._hand_over()
            raise
        for event in events:
            self._take(event)

    def _take(self, event: Event) -> None:
        if isinstance(event, DataSeen):
            self._take_data(event.stream_id, event.data)
            if event.fin:
                self._hand_over()
                self._take_fin(event.stream_id)
            return
        self._hand_over()
        match event:
            case StreamReplied(stream_id, _, True):
                self._take_fin(stream_id)
            case StreamReset(stream_id, status):
                self._take_reset(stream_id, status)
            case PingAcknowledged(ping_id):
                self._read_until = self._pinged_at.pop(ping_id)
                self._take_half_end(self._half_ended.pop(ping_id, None))
                if stream := self._probed.pop(ping_id, None):
                    stream.taken()
            case StreamOpened(stream_id):
                self._spdy.reset(stream_id, REFUSED_STREAM)
            case GoAwayReceived(_, status):
                self.drain(f"the runtime is going away (status {status})")
                self._owner.upstream_changed(self)

    def _take_data(self, stream_id: int, data: memoryview) -> None:
        lane = self._by_id.get(stream_id)
        if lane is None or not data:
            return
        if stream_id != lane.data_id:
            lane.error_text += data[: MAX_ERROR_BYTES - len(lane.error_text)]
            return
        if lane is not self._pieces_of:
            self._hand_over()
            self._pieces_of = lane
        self._pieces.append(data)

    def _hand_over(self) -> None:
        """What came for one stream in a row, in one piece: one copy and one write to its socket, not one a frame."""
        lane, self._pieces_of = self._pieces_of, None
        if lane is not None:
            pieces, self._pieces = self._pieces, []
            self._feed(lane, b"".join(pieces))

    def _take_fin(self, stream_id: int) -> None:
        lane = self._by_id.get(stream_id)
        if lane is None:
            return
        if stream_id == lane.data_id:
            lane.data_ended = True
        else:
            lane.error_ended = True
        if lane.error_ended and (lane.error_text or lane.data_ended):
            self._end_lane(lane, self._text_error(lane) if lane.error_text else None)
        elif lane.data_ended and lane.eof_timer is None:
            # a good end or a failure? The error stream tells; where it stays open, the pod has closed only its half
            lane.eof_timer = self._loop.call_later(ERROR_GRACE_S, self._doubt_end, lane)

    def _doubt_end(self, lane: _SpdyLane) -> None:
        self._half_ended[self._ping()] = lane
        self.flush()

    def _take_half_end(self, lane: _SpdyLane | None) -> None:
        """A reset must not look like a good end, and a good end that is one of both streams takes no time at all."""
        if lane is not None and lane.data_id in self._by_id:
            lane.eof_timer = self._loop.call_later(ERROR_GRACE_S, lane.stream.feed_eof)

    def _take_reset(self, stream_id: int, status: int) -> None:
        lane = self._by_id.get(stream_id)
        if lane is None:
            return
        if stream_id == lane.error_id:
            self._take_fin(stream_id)
        elif lane.error_text:
            self._end_lane(lane, self._text_error(lane))
        else:
            self._end_lane(lane, UpstreamReset(f"The runtime reset the connection to {lane.stream.target} ({status})."))

    def _text_error(self, lane: _SpdyLane) -> KubeTunnelError:
        text = lane.error_text.decode(errors="replace")
        if pod_is_gone(text):
            self.drain("the pod behind it is gone")
            self._owner.upstream_changed(self)
        return stream_error(text, lane.stream.target)

    def _end_lane(self, lane: Lane, error: KubeTunnelError | None) -> None:
        assert isinstance(lane, _SpdyLane)  # noqa: S101
        if lane.eof_timer is not None:
            lane.eof_timer.cancel()
        self._by_id.pop(lane.data_id, None)
        self._by_id.pop(lane.error_id, None)
        self._queue_end(lane, reset=False)  # so that both ends forget the stream
        super()._end_lane(lane, error)
