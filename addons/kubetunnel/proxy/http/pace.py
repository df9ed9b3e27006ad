"""How fast an exchange goes, and how long its two ends may pause: flow control and time limits of the HTTP layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mitmproxy.connection import Client, Connection
from mitmproxy.proxy import layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode
from mitmproxy.proxy.layers.http._base import HttpEvent

from kubetunnel.proxy.http.deadlines import Deadlines
from kubetunnel.proxy.http.events import AwaitResponse, Congested, DeadlinePassed, NothingTaken, Throttle
from kubetunnel.proxy.http.failures import Failures
from kubetunnel.proxy.http.h1_connection import KubeHttp1Connection
from kubetunnel.proxy.http.h2_client import KubeHttp2Client
from kubetunnel.proxy.http.lanes import Lanes
from kubetunnel.proxy.http.own import OwnStream
from kubetunnel.proxy.http.policy import HttpPolicy
from kubetunnel.proxy.http.stream import KubeHttpStream
from kubetunnel.proxy.http.upstream_side import UpstreamSide
from kubetunnel.proxy.refusals import is_grpc


class Reading(Protocol):
    """Stops and resumes the reading of a connection, where a layer cannot: the one part of flow control that is I/O."""

    def pause(self, connection: Connection) -> None:
        """Nothing more is to be read for now."""
        ...

    def resume(self, connection: Connection) -> None:
        """Goes on."""
        ...

    def waited_s(self, connection: Connection) -> float:
        """For how long, in all, we have waited for its bytes: not while it waited for us."""
        ...

    def may_have_departed(self, client: Client) -> bool:
        """Whether a client that sends no more may be gone altogether."""
        ...


@dataclass(slots=True)
class _Silence:
    """How long a response may pause, of the time in which we wait for its upstream.

    `heard_s`: how much of that time there had been when its last piece came. Others may use the same connection.
    """

    allowed_s: float
    heard_s: float = 0.0


class ExchangePace(UpstreamSide):
    """What is here has to do with bodies that wait, and with who waits for them."""

    def __init__(
        self,
        context: Context,
        mode: HTTPMode,
        failures: Failures,
        policy: Callable[[], HttpPolicy],
        lanes: Lanes,
        clock: Callable[[], float],
        reading: Reading | None,
    ) -> None:
        super().__init__(context, mode, failures, policy, lanes, clock)
        self._reading = reading
        self._deadlines: Deadlines[int] = Deadlines()
        self._silences: dict[int, _Silence] = {}  # by stream
        self._sendings: Deadlines[int] = Deadlines()  # requests that pods take slowly
        self._taken_bytes: dict[int, int] = {}  # of those, when it was looked last
        self._throttled: dict[tuple[int, Connection], Connection] = {}  # (stream, to): from

    @abstractmethod
    def receive(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        """Gives the event to its exchange."""

    def end_silences(self) -> layer.CommandGenerator[None]:
        """To be called at a wakeup. Who has said or taken nothing has been waited for long enough."""
        yield from self._end_of_time()
        yield from self._end_of_patience()

    def forget_pace(self, stream_id: int) -> layer.CommandGenerator[None]:
        """The exchange is over."""
        self._deadlines.discard(stream_id)
        self._silences.pop(stream_id, None)
        for throttled, sink in [ends for ends in self._throttled if ends[0] == stream_id]:
            yield from self._unthrottle(throttled, sink)

    def unthrottle_all(self, connection: Connection) -> layer.CommandGenerator[None]:
        """It is closed: nobody waits for it, nor it for anybody."""
        for (stream_id, sink), source in list(self._throttled.items()):
            if connection in (source, sink):
                yield from self._unthrottle(stream_id, sink)

    def set_deadline(self, command: AwaitResponse) -> layer.CommandGenerator[None]:
        """An exchange waits for its response, or for more of it."""
        self._silences.pop(command.stream_id, None)  # of an attempt before
        if command.silence and command.timeout_s is not None:
            self._silences[command.stream_id] = _Silence(command.timeout_s)
            self.note_heard(command.stream_id)
        if command.timeout_s is None:
            self._deadlines.discard(command.stream_id)
        elif self._deadlines.set(command.stream_id, self._clock() + command.timeout_s):
            yield self.wake_in(command.timeout_s)

    def _end_of_time(self) -> layer.CommandGenerator[None]:
        for stream_id in self._deadlines.passed(self._clock()):
            silence = self._silences.get(stream_id)
            left_s = silence.allowed_s - self._silent_s(stream_id) if silence else 0.0
            if silence and left_s > 0:
                # beside a busy stream little of the time is waiting: no look after ever shorter times
                self._deadlines.set(stream_id, self._clock() + max(left_s, silence.allowed_s / 10))
            else:
                yield from self.receive(DeadlinePassed(stream_id))
        yield from self.wake_at(self._deadlines.next_wakeup(self._clock()))

    def note_heard(self, stream_id: int) -> None:
        """A piece of this response has come."""
        if silence := self._silences.get(stream_id):
            silence.heard_s = self._waited_s(stream_id)

    def _silent_s(self, stream_id: int) -> float:
        """For how long the upstream of this response has sent nothing of it.

        It is silent while we wait for it, and not while it waits for us: for a client that reads slowly.
        """
        if (stream_id, self.context.client) in self._throttled:
            return 0.0
        return self._waited_s(stream_id) - self._silences[stream_id].heard_s

    def _waited_s(self, stream_id: int) -> float:
        stream = self.streams.get(stream_id)
        if self._reading is None or not isinstance(stream, KubeHttpStream):
            return self._clock()
        return self._reading.waited_s(stream.flow.server_conn)

    # flow control

    def congestion(self, command: Congested) -> layer.CommandGenerator[None]:
        """More of a body waits here than its reader takes, or no longer."""
        stream: layer.Layer | None = self.streams.get(command.stream_id)
        if isinstance(stream, OwnStream):
            stream.exchange.congest(congested=command.congested)
        elif not command.congested:
            yield from self._unthrottle(command.stream_id, command.connection)
        elif isinstance(stream, KubeHttpStream):
            client, sink = self.context.client, command.connection
            source = stream.flow.server_conn if sink == client else client
            self._throttled[command.stream_id, sink] = source
            if source == client and not is_grpc(stream.flow.request):
                yield from self._watch_sending(command.stream_id, stream)
            yield from self._throttle(command.stream_id, source, paused=True)

    def _unthrottle(self, stream_id: int, sink: Connection) -> layer.CommandGenerator[None]:
        source = self._throttled.pop((stream_id, sink), None)
        if source is None:
            return
        if sink == self.context.client:
            self.note_heard(stream_id)  # it had to wait
        else:
            self._sendings.discard(stream_id)
            self._taken_bytes.pop(stream_id, None)
        yield from self._throttle(stream_id, source, paused=False)

    def _watch_sending(self, stream_id: int, stream: KubeHttpStream) -> layer.CommandGenerator[None]:
        """More of a request waits here than the pod takes: it is to go on taking."""
        wait_s = stream.policy.write_timeout_s
        handler = self.connections.get(stream.flow.server_conn)
        http = handler.context.layers[-1] if handler else None
        if wait_s is None or not isinstance(http, KubeHttp2Client):
            return
        taken = http.taken_bytes(stream_id)
        if self._taken_bytes.get(stream_id) == taken:
            yield from self.receive(NothingTaken(stream_id))
            return
        self._taken_bytes[stream_id] = taken
        if self._sendings.set(stream_id, self._clock() + wait_s):
            yield self.wake_in(wait_s)

    def _end_of_patience(self) -> layer.CommandGenerator[None]:
        for stream_id in self._sendings.passed(self._clock()):
            stream = self.streams.get(stream_id)
            if isinstance(stream, KubeHttpStream):
                yield from self._watch_sending(stream_id, stream)
        yield from self.wake_at(self._sendings.next_wakeup(self._clock()))

    def _throttle(self, stream_id: int, source: Connection, *, paused: bool) -> layer.CommandGenerator[None]:
        handler = self.connections.get(source)
        if handler is None:
            return
        yield from self.event_to_child(handler, Throttle(stream_id, paused))
        is_http1 = isinstance(handler.context.layers[-1], KubeHttp1Connection)
        if is_http1 and self._reading:
            (self._reading.pause if paused else self._reading.resume)(source)
