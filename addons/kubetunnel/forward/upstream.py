"""One upgraded connection to the API server: what the three protocols share.

An upstream owns its asyncio transport: it batches writes (one a turn of the event loop), spreads backpressure over its
streams, and counts. What its bytes mean is its subclass's business (`spdy_upstream`, `channel_upstream`); when it is
opened, reused and closed, the pool's.
"""

from __future__ import annotations

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import KubeTunnelError, UpstreamProtocol, UpstreamReset
from kubetunnel.forward.lane import Lane, Owner, UpstreamFacts
from kubetunnel.forward.liveness import Liveness
from kubetunnel.forward.spdy import SpdyError
from kubetunnel.forward.stream import Bytes, ForwardStream
from kubetunnel.forward.websocket import WebSocketError

logger = logging.getLogger(__name__)

READ_BUFFER_BYTES = 256 * 1024  # asyncio's own TLS read size
WRITE_BUFFER_BYTES = 256 * 1024  # one batch and what TCP holds keep 300 MB/s going; more is only latency
BATCH_BYTES = 64 * 1024  # written at once, not at the end of the turn: a fast writer must meet the backpressure
HELD_BYTES = 1024 * 1024  # for a stream that does not read, before a shared upstream stops for its sake
UPLOAD_BYTES = 64 * 1024  # sockets between us and a pod hold at least this much without the pod reading
LINGER_BYTES = 256 * 1024  # of an abandoned stream, before its upstream is closed to stop the download
LINGER_S = 5.0  # the runtimes end a stream 1 s after our FIN


class Upstream(asyncio.BufferedProtocol, ABC):
    """One upgraded connection."""

    def __init__(self, facts: UpstreamFacts, owner: Owner) -> None:
        self.facts = facts
        self.draining = False
        self.lost = False
        self.closed = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._owner = owner
        self._lanes: dict[ForwardStream, Lane] = {}
        self._buffer = memoryview(bytearray(READ_BUFFER_BYTES))
        self._batch_bytes = 0
        self._flush_handle: asyncio.Handle | None = None
        self._writing_paused = False
        self._reading_paused = False
        self._close_reason = ""
        self._liveness = Liveness(self._loop.time())
        self._read_until = -math.inf  # when the last ping that was answered was sent

    # -- what a protocol is

    @abstractmethod
    def _open_lane(self, stream: ForwardStream) -> Lane:
        """Queue what opens a stream."""

    @abstractmethod
    def _queue(self, lane: Lane, data: Bytes) -> None:
        """Queue bytes of a stream."""

    @abstractmethod
    def _queue_end(self, lane: Lane, *, reset: bool) -> None:
        """Queue the end of a stream, from our side."""

    @abstractmethod
    def _take_output(self) -> bytes:
        """Everything queued, as bytes for the transport."""

    @abstractmethod
    def _receive(self, data: memoryview) -> None:
        """Bytes from the transport. Raises SpdyError, WebSocketError."""

    @abstractmethod
    def _queue_ping(self) -> None: ...

    @abstractmethod
    def _queue_close(self) -> None:
        """Queue the protocol's good-bye."""

    # -- the pool's side

    @property
    def retired(self) -> str:
        """Why it is closed or about to be, "" while it is of use."""
        return self._close_reason

    @property
    def stalled(self) -> bool:
        """A new stream would wait behind another's bytes, or for a peer that is perhaps dead."""
        blocked = self._writing_paused or self._reading_paused or self._uploading()
        return blocked or self._liveness.stalled(self._loop.time())

    def open_stream(self, target: PodPort, protocol_factory: Callable[[], asyncio.BaseProtocol]) -> ForwardStream:
        """Open a stream; what opens it and the first bytes that its protocol writes leave in one write.

        Raises UpstreamReset where the upstream was lost meanwhile.
        """
        if self._close_reason:
            raise UpstreamReset(f"The connection to {target} was cut: {self._close_reason}.")
        protocol = protocol_factory()
        stream = ForwardStream(self, target, self._loop)
        self._lanes[stream] = self._open_lane(stream)
        self.facts.streams += 1
        self.facts.streams_opened += 1
        stream.begin(protocol, writing_paused=self._writing_paused)
        self._schedule(0)
        self.reading_changed()
        return stream

    def drain(self, reason: str) -> None:
        """No new streams from now on."""
        if not self.draining and not self._close_reason:
            self.draining = True
            self.facts.state = "draining"
            logger.info("Upstream %s takes no new streams: %s", self.facts, reason)

    def close(self, reason: str) -> None:
        """Close the connection; streams that still run end with UpstreamReset."""
        if self._retire(reason):
            self._queue_close()
            self.flush()
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Cut the connection at once; streams that still run end with UpstreamReset."""
        self._retire(reason)
        self._transport.abort()

    def look(self, now: float) -> None:
        """Once a second: ping, find death, end what lingers."""
        if self._close_reason:
            return
        verdict = self._liveness.look(now, reading=not self._reading_paused, uploading=self._uploading())
        if verdict == "dead":
            self.fail(
                UpstreamReset(f"Pod {self.facts.namespace}/{self.facts.pod} answers no pings: its node may be dead.")
            )
        elif verdict == "ping":
            self._queue_ping()
            self.flush()
        for lane in list(self._lanes.values()):
            if lane.finished_at is not None and now - lane.finished_at > LINGER_S:
                self._cut_lane(lane, "an abandoned stream did not end")

    # -- the streams' side (stream.Carrier)

    def send(self, stream: ForwardStream, data: Bytes) -> None:
        lane = self._lanes.get(stream)
        if lane is not None:
            lane.unheard_bytes += len(data)
            lane.sent_at = self._loop.time()
            self._queue(lane, data)
            self._schedule(len(data))

    def finish(self, stream: ForwardStream) -> None:
        lane = self._lanes.get(stream)
        if lane is None or lane.finished_at is not None:
            return
        lane.finished_at = self._loop.time()
        if stream.held_bytes and len(self._lanes) == 1:  # as a TCP socket that is closed with bytes unread
            self._cut_lane(lane, "a download was abandoned")
            return
        self._queue_end(lane, reset=False)
        self._schedule(0)
        self.reading_changed()
        if lane.unheard_bytes < UPLOAD_BYTES:
            self._uncount(lane)

    def cut(self, stream: ForwardStream) -> None:
        lane = self._lanes.get(stream)
        if lane is not None:
            self._cut_lane(lane, "a stream was aborted")

    def reading_changed(self) -> None:
        """Stop or go on reading the connection: at once for the only stream, at HELD_BYTES where others wait too."""
        if self.lost:
            return
        limit = 0 if len(self._lanes) == 1 else HELD_BYTES
        blocked = any(stream.paused and stream.held_bytes >= limit for stream in self._lanes)
        if blocked and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        elif self._reading_paused and not blocked:
            self._reading_paused = False
            self._liveness.heard(self._loop.time())
            self._transport.resume_reading()
        else:
            return
        self._owner.upstream_changed(self)

    def write_buffer_bytes(self) -> int:
        return self._batch_bytes + self._transport.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None, low: int | None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def extra_info(self, name: str) -> Any:
        return (
            self.facts if name == "upstream" else self._transport.get_extra_info(name) if name == "sockname" else None
        )

    # -- asyncio's side (BufferedProtocol)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (asyncio's signature is wider than its calls)
        self._transport = transport
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.receive(self._buffer[:nbytes])

    def receive(self, data: memoryview) -> None:
        """Bytes of the connection; the first ones may come with the answer to the upgrade."""
        try:
            self._receive(data)
        except (SpdyError, WebSocketError) as error:
            self.fail(UpstreamProtocol(f"The port-forward of {self.facts.namespace}/{self.facts.pod} broke: {error}."))
        else:
            self.flush()

    def eof_received(self) -> None:
        self._retire("the API server closed it")

    def connection_lost(self, exc: Exception | None) -> None:
        self._retire(str(exc) if exc else "the connection ended")
        self.lost = True
        if self._flush_handle:
            self._flush_handle.cancel()
        pod = f"{self.facts.namespace}/{self.facts.pod}"
        for lane in list(self._lanes.values()):
            self._end_lane(lane, self._ended_error(f"The port-forward of {pod} was cut: {self._close_reason}."))
        self.closed.set_result(None)

    def pause_writing(self) -> None:
        self._writing_paused = True
        for stream in list(self._lanes):
            stream.pause_writing()
        self._owner.upstream_changed(self)

    def resume_writing(self) -> None:
        self._writing_paused = False
        for stream in list(self._lanes):
            stream.resume_writing()
        self._owner.upstream_changed(self)

    # -- for subclasses

    def flush(self) -> None:
        """Write what is queued, in one write."""
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        self._batch_bytes = 0
        output = self._take_output()
        if output and not self.lost:
            self._transport.write(output)

    def fail(self, error: KubeTunnelError) -> None:
        """The connection is of no more use."""
        self._retire(error.detail)
        for lane in list(self._lanes.values()):
            self._end_lane(lane, error)
        self._transport.abort()

    def _retire(self, reason: str) -> bool:
        """Who finds the end of the connection first tells its reason; before any stream ends, so that none opens."""
        if self._close_reason:
            return False
        self._close_reason = reason
        self.facts.state = "closed"
        logger.info("Upstream %s closed after %d streams: %s", self.facts, self.facts.streams_opened, reason)
        self._owner.upstream_lost(self, reason)
        return True

    def _ended_error(self, detail: str) -> KubeTunnelError | None:
        """What a stream that still ran is told when the connection ends; None where its end is a stream's good end."""
        return UpstreamReset(detail)

    def _feed(self, lane: Lane, data: bytes) -> None:
        lane.unheard_bytes = 0
        if lane.finished_at is None:
            lane.stream.feed(data)
            if lane.stream.paused:
                self.reading_changed()
            return
        lane.finished_bytes += len(data)
        if lane.finished_bytes > LINGER_BYTES:
            self._cut_lane(lane, "an abandoned download went on")

    def _end_lane(self, lane: Lane, error: KubeTunnelError | None) -> None:
        """Forget a stream that is over in both directions, and tell it."""
        if self._lanes.pop(lane.stream, None) is None:
            return
        self.facts.streams -= 1
        if (error is not None or lane.unheard_bytes) and not self._close_reason:
            # bytes that nobody in the runtime reads any more block one of its five frame workers until the upstream
            # closes (seen with containerd 1.6): a refused port's first frame does, a closed pod connection's second
            self.drain("a stream on it failed" if error else "a stream on it ended with bytes perhaps unread")
            self._owner.upstream_changed(self)
        lane.stream.end(error)
        self.reading_changed()
        self._uncount(lane)

    def _cut_lane(self, lane: Lane, reason: str) -> None:
        # a reset does not stop what the runtime sends; the end of the connection does, and costs nobody else here
        if len(self._lanes) == 1:
            self._end_lane(lane, None)
            self.abort(reason)
            return
        self._queue_end(lane, reset=True)
        self._schedule(0)
        self._end_lane(lane, None)

    def _uncount(self, lane: Lane) -> None:
        if lane.counted:
            lane.counted = False
            self._owner.stream_ended(self)

    def _uploading(self) -> bool:
        """Whether the runtime's read loop may be stuck behind what the pod does not take.

        It was not when it answered a ping: what was sent before that it has read.
        """
        return any(
            lane.unheard_bytes >= UPLOAD_BYTES and lane.sent_at > self._read_until for lane in self._lanes.values()
        )

    def _heard(self) -> None:
        self._liveness.heard(self._loop.time())

    def _schedule(self, count: int) -> None:
        self._batch_bytes += count
        if self._batch_bytes >= BATCH_BYTES:
            self.flush()
        elif self._flush_handle is None and not self.lost:
            self._flush_handle = self._loop.call_soon(self.flush)
