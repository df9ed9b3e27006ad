"""An upgraded connection that speaks WebSocket v4.channel.k8s.io: one stream, and the pod is dialled at the upgrade.

Each message begins with a channel number: 0 carries data, 1 error texts. The first message of either channel is the
port's number (kubelet's portforward/websocket.go), and is left out here.
"""

from __future__ import annotations

import asyncio

from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.forward.errors import stream_error
from kubetunnel.forward.lane import Lane, UpstreamFacts
from kubetunnel.forward.stream import Bytes, ForwardStream
from kubetunnel.forward.upstream import Owner, Upstream
from kubetunnel.forward.websocket import WebSocketFrames

DATA_CHANNEL, ERROR_CHANNEL = 0, 1
MAX_MESSAGE_BYTES = 64 * 1024
_PORT_BYTES = 2


class ChannelUpstream(Upstream):
    """The upstream of one connection to `port`."""

    one_stream = True

    def __init__(self, facts: UpstreamFacts, owner: Owner, frames: WebSocketFrames, port: int) -> None:
        super().__init__(facts, owner)
        self.port = port
        self._frames = frames
        self._lane: Lane | None = None
        self._early: list[bytes] = []  # came with the answer to the upgrade, when there was no stream yet
        self._port_bytes_left = {DATA_CHANNEL: _PORT_BYTES, ERROR_CHANNEL: _PORT_BYTES}
        self._channel = DATA_CHANNEL
        self._closing = False
        self._begun = False
        self._lost_with: Exception | None = None
        self._liveness.answers = False

    def _open_lane(self, stream: ForwardStream) -> Lane:
        self._lane = Lane(stream, self._loop.time())
        self._loop.call_soon(self._begin)
        return self._lane

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._transport.pause_reading()  # the pod is dialled already, and may speak or refuse before there is a stream

    def eof_received(self) -> None:
        if self._begun:
            super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._begun:
            super().connection_lost(exc)
        else:  # a port that refuses has said so already; the stream that is about to open must hear it
            self.lost = True
            self._lost_with = exc

    def close(self, reason: str) -> None:
        super().close(reason)
        self._begin()

    def abort(self, reason: str) -> None:
        super().abort(reason)
        self._begin()

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        early, self._early = self._early, []
        for data in early:
            self.receive(memoryview(data))
        if self.lost:
            super().connection_lost(self._lost_with)
        elif not self._reading_paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def _queue(self, lane: Lane, data: Bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(view), MAX_MESSAGE_BYTES):
            self._frames.send(b"".join((b"\0", view[start : start + MAX_MESSAGE_BYTES])))

    def _queue_end(self, lane: Lane, *, reset: bool) -> None:
        """There is no such message: the stream ends with its connection, when all that it wrote has left."""
        if not reset:
            self._closing = True
            self.flush()
            self._transport.set_write_buffer_limits(0)
            self._close_when_written()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._close_when_written()

    def _close_when_written(self) -> None:
        if self._closing and not self._transport.get_write_buffer_size():
            self.close("its stream was closed")

    def _take_output(self) -> bytes:
        return self._frames.data_to_send()

    def _queue_ping(self) -> None:
        self._frames.ping()

    def probe(self, stream: ForwardStream) -> None:
        stream.taken()  # the pod was dialled at the upgrade

    def _queue_close(self) -> None:
        self._frames.close()

    def _receive(self, data: memoryview) -> None:
        if not self._begun:
            self._early.append(bytes(data))
            return
        pongs = self._frames.pongs_received
        for payload, starts in self._frames.receive(data):
            view = memoryview(payload)
            if starts and view:
                self._channel, view = view[0], view[1:]
            self._take(self._channel, bytes(view))
        # not every proxy and runtime answers; one that did once is held to it
        self._liveness.answers = self._liveness.answers or self._frames.pongs_received > pongs
        self._heard()
        if self._frames.close_received:
            self.close("the API server closed it")

    def _take(self, channel: int, data: bytes) -> None:
        skipped = min(self._port_bytes_left.get(channel, 0), len(data))
        if skipped:
            self._port_bytes_left[channel] -= skipped
            data = data[skipped:]
        lane = self._lane
        if not data or lane is None:
            return
        if channel == DATA_CHANNEL:
            self._feed(lane, data)
        elif channel == ERROR_CHANNEL:
            self._end_lane(lane, stream_error(data.decode(errors="replace"), lane.stream.target))

    def _ended_error(self, detail: str) -> KubeTunnelError | None:
        # only the connection's own end says that the pod closed; a close frame makes it a good one, but not that of a
        # server or proxy on the way which goes away or has failed
        return None if self._frames.closed_well else super()._ended_error(detail)
