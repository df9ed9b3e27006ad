"""The streams of one upgraded connection: what the three protocols share.

An upstream spreads backpressure over its streams, counts, and sees to it that one stream's trouble stays its own. What
its bytes mean is its subclass's business (`spdy_upstream`, `channel_upstream`); when it is opened, reused and closed,
the pool's.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import KubeTunnelError, UpstreamReset
from kubetunnel.forward.lane import BULK_BYTES, UPLOAD_BYTES, Lane, UpstreamFacts
from kubetunnel.forward.liveness import UPLOAD_DEATH_S
from kubetunnel.forward.neighbours import any_heavy, anyone_waits, stopped
from kubetunnel.forward.stream import Bytes, ForwardStream
from kubetunnel.forward.upgraded import UpgradedConnection, logger

STOPPED_S = 2.0  # then a neighbour that waits gets its answer at the cost of the stopped stream
QUIET_S = 1.0  # of an upstream on which nothing came for so long a ping asks, with the next bytes, whether it lives
LINGER_BYTES = 256 * 1024  # of an abandoned stream, before its upstream is closed to stop the download
LINGER_S = 5.0  # the runtimes end a stream 1 s after our FIN, once the pod has taken what came before it


class Owner(Protocol):
    """Who is told of an upstream's changes: the pool."""

    def stream_ended(self, upstream: Upstream) -> None: ...
    def upstream_changed(self, upstream: Upstream) -> None: ...
    def upstream_silent(self, upstream: Upstream) -> None: ...
    def upstream_lost(self, upstream: Upstream, reason: str) -> None: ...


class Upstream(UpgradedConnection):
    """One upgraded connection with its streams."""

    def __init__(self, facts: UpstreamFacts, owner: Owner) -> None:
        super().__init__(facts)
        self.draining = False
        self.silent = False  # found dead: it had not ended, and answered nothing
        self.crowded = False  # a stream of it is bulky, or its reader stopped
        self._owner = owner
        self._lanes: dict[ForwardStream, Lane] = {}
        self._writing_paused = False
        self._reading_paused = False
        self._stopped_at = 0.0  # when reading was paused
        self._retire_reason = ""  # it is closed with its last stream

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
    def probe(self, stream: ForwardStream) -> None:
        """See to it that the stream hears when the runtime has read what opens it."""

    # -- the pool's side

    @property
    def stalled(self) -> bool:
        """A new stream would wait behind another's bytes, or for a peer that is perhaps dead."""
        blocked = self._writing_paused or self._reading_paused or self._uploading()
        return blocked or self._liveness.stalled(self._loop.time())

    @property
    def unanswered(self) -> bool:
        """Somebody waits on it, and a live peer would have said something by now."""
        hears = not self._reading_paused and not self._uploading()
        return hears and not self._close_reason and self._liveness.unanswered(self._loop.time())

    def unanswered_since(self, dialled_at: float) -> bool:
        """As `unanswered`, and it was asked before that dial began.

        Whatever the dial comes to is proof then: where all is slow, who was asked first answers first.
        """
        asked_at = self._liveness.asked_at
        return self.unanswered and asked_at is not None and asked_at <= dialled_at

    @property
    def clients(self) -> int:
        """Streams that somebody still uses; a stream that was closed runs on for a moment."""
        return sum(lane.finished_at is None for lane in self._lanes.values())

    def bytes_sent(self) -> int:
        """Payload that its streams sent, as far as it was written."""
        return self.facts.bytes_sent + sum(lane.unheard_bytes for lane in self._lanes.values())

    def bytes_received(self) -> int:
        """Payload that its streams received."""
        return self.facts.bytes_received + sum(lane.heard_bytes for lane in self._lanes.values())

    def open_stream(self, target: PodPort, protocol_factory: Callable[[], asyncio.BaseProtocol]) -> ForwardStream:
        """Open a stream; what opens it and the first bytes that its protocol writes leave in one write.

        Raises UpstreamReset where the upstream was lost meanwhile.
        """
        if self._close_reason:
            raise UpstreamReset(f"The connection to {target} was cut: {self._close_reason}.")
        protocol = protocol_factory()
        self._ask()  # before the lane: it is one of those that came since the silence began (`fail_unheard`)
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
            logger.debug("Upstream %s takes no new streams: %s", self.facts, reason)

    def retire(self, reason: str) -> None:
        """Close it with its last stream: those that were closed have their last bytes under way, for LINGER_S."""
        if self.one_stream or not self._lanes:
            self.close(reason)
        else:
            self.drain(reason)
            self._retire_reason = reason

    def doubt(self) -> None:
        """It may be dead, as others are: no place for a new stream before it has answered."""
        if not self._close_reason:
            self._doubted = True
            self._liveness.doubt(self._loop.time())
            self._ask()
            self._queue_ping()
            self.flush()

    def found_dead(self, how: str) -> None:
        """It had not ended, and nobody is at its other end; or nobody who answers."""
        self.silent = True
        self.fail(UpstreamReset(f"Pod {self.facts.namespace}/{self.facts.pod} {how}."))

    def fail_unheard(self, error: KubeTunnelError) -> None:
        """Nobody answers on new connections either: who has come since it fell silent is told so.

        The others may have theirs back when the network is.
        """
        asked_at = self._liveness.asked_at
        for lane in list(self._lanes.values()):
            if asked_at is not None and lane.opened_at >= asked_at:
                self._end_lane(lane, type(error)(error.detail, command=error.command))

    def look(self, now: float) -> None:
        """Once a second: ping, find death, end what lingers, free neighbours of a stopped stream."""
        if self._close_reason:
            return
        waiting = any(lane.unheard_bytes for lane in self._lanes.values())
        reading = not self._reading_paused
        verdict = self._liveness.look(now, reading=reading, uploading=self._uploading(), waiting=waiting)
        if verdict == "dead":
            self.found_dead("answers no pings: its node may be dead")
        elif verdict == "ping":
            self._queue_ping()
            self.flush()
        for lane in list(self._lanes.values()):
            linger_s = UPLOAD_DEATH_S if lane.unheard_bytes >= UPLOAD_BYTES else LINGER_S
            if lane.finished_at is not None and now - lane.finished_at > linger_s:
                self._cut_lane(lane, "an abandoned stream did not end")
        if self._reading_paused and now - self._stopped_at >= STOPPED_S:
            self._free_neighbours()
        self._weigh(now)

    # -- the streams' side (stream.Carrier)

    def send(self, stream: ForwardStream, data: Bytes) -> None:
        lane = self._lanes.get(stream)
        if lane is None:
            return
        if lane.heard_bytes:  # a new exchange
            self.facts.bytes_received += lane.heard_bytes
            lane.heard_bytes = 0
        lane.unheard_bytes += len(data)
        lane.sent_at = self._loop.time()
        self._queue(lane, data)
        if lane.sent_at - self._liveness.heard_at >= QUIET_S and self._liveness.asked_at is None:
            self._queue_ping()
            self._ask()
        self._schedule(len(data))
        if lane.unheard_bytes >= UPLOAD_BYTES and not lane.heavy:
            self._weigh(lane.sent_at)
        if self._reading_paused:
            self.reading_changed()

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
        """Stop or go on reading the connection: at once for the only stream, at a bound where others wait too."""
        if self.lost:
            return
        if self._stopped_lanes():
            if not self._reading_paused:
                self._reading_paused = True
                self._stopped_at = self._loop.time()
                self._transport.pause_reading()
                self._owner.upstream_changed(self)
        elif self._reading_paused:
            self._reading_paused = False
            self._liveness.heard(self._loop.time())
            self._transport.resume_reading()
            self._owner.upstream_changed(self)

    def write_buffer_bytes(self) -> int:
        return self._batch_bytes + self._transport.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None, low: int | None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def extra_info(self, stream: ForwardStream, name: str) -> Any:
        match name:
            case "upstream":
                return self.facts
            case "crowded":
                ill = self.draining or bool(self._close_reason) or self._liveness.stalled(self._loop.time())
                return ill or any(lane.heavy for lane in self._lanes.values() if lane.stream is not stream)
            case "sockname":
                return self._transport.get_extra_info(name)
        return None

    # -- asyncio's side

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

    def _ended_error(self, detail: str) -> KubeTunnelError | None:
        """What a stream that still ran is told when the connection ends; None where its end is a stream's good end."""
        return UpstreamReset(detail)

    def _feed(self, lane: Lane, data: bytes) -> None:
        if lane.unheard_bytes:
            self.facts.bytes_sent += lane.unheard_bytes
            lane.unheard_bytes = 0
        lane.heard_bytes += len(data)
        lane.heard_at = self._liveness.heard_at
        if lane.finished_at is None:
            lane.stream.feed(data)
            if lane.stream.paused:
                self._weigh(lane.heard_at)
                self.reading_changed()
            elif lane.heard_bytes >= BULK_BYTES and not lane.heavy:
                self._weigh(lane.heard_at)
            return
        lane.finished_bytes += len(data)
        if lane.finished_bytes > LINGER_BYTES:
            self._cut_lane(lane, "an abandoned download went on")

    def _end_lane(self, lane: Lane, error: KubeTunnelError | None) -> None:
        """Forget a stream that is over in both directions, and tell it."""
        if self._lanes.pop(lane.stream, None) is None:
            return
        self.facts.streams -= 1
        self.facts.bytes_sent += lane.unheard_bytes
        self.facts.bytes_received += lane.heard_bytes
        if (error is not None or lane.unheard_bytes) and not self._close_reason:
            # bytes that nobody in the runtime reads any more block one of its five frame workers until the upstream
            # closes (seen with containerd 1.6): a refused port's first frame does, a closed pod connection's second
            self.drain("a stream on it failed" if error else "a stream on it ended with bytes perhaps unread")
            self._owner.upstream_changed(self)
        lane.stream.end(error)
        self.reading_changed()
        self._weigh(self._loop.time())
        self._uncount(lane)
        if self._retire_reason and not self._lanes:
            self.close(self._retire_reason)

    def _end_lanes(self, error: KubeTunnelError | None) -> None:
        cut = f"The port-forward of {self.facts.namespace}/{self.facts.pod} was cut: {self._close_reason}."
        for lane in list(self._lanes.values()):
            self._end_lane(lane, error or self._ended_error(cut))

    def _unanswered(self) -> None:
        if not self.unanswered:
            return
        if self.clients:
            self._doubted = True
            self._owner.upstream_silent(self)
        else:
            self.abort("it answers no more")

    def _answered(self) -> None:
        self._owner.upstream_changed(self)

    def _retired(self, reason: str) -> None:
        self._owner.upstream_lost(self, reason)

    def _cut_lane(self, lane: Lane, reason: str, error: KubeTunnelError | None = None) -> None:
        # a reset does not stop what the runtime sends; the end of the connection does, and costs nobody else here.
        # Its status is never 0: spdystream takes that for a broken frame, and freezes or ends the whole connection
        if len(self._lanes) == 1:
            self._end_lane(lane, error)
            self.abort(reason)
            return
        self._queue_end(lane, reset=True)
        self._schedule(0)
        self._end_lane(lane, error)

    def _stopped_lanes(self) -> list[Lane]:
        return stopped(self._lanes.values(), self._since())

    def _since(self) -> float:
        """Who waited when reading stopped waits still."""
        return self._stopped_at if self._reading_paused else self._loop.time()

    def _free_neighbours(self) -> None:
        if anyone_waits(self._lanes.values(), self._since()):
            for lane in self._stopped_lanes():
                held = f"{lane.stream.held_bytes >> 20} MiB wait for its reader, and other streams behind them"
                error = UpstreamReset(f"The connection to {lane.stream.target} was given up: {held}.")
                self._cut_lane(lane, "a reader stopped", error)

    def _weigh(self, now: float) -> None:
        if self.crowded != any_heavy(self._lanes.values(), now):
            self.crowded = not self.crowded
            self._owner.upstream_changed(self)

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
