"""mitmproxy's HTTP layer with upstreams that are kept, shared and forgotten as they should be.

A layer without I/O, like mitmproxy's own: it brings connections (`h1_*`, `h2_*`) and exchanges (`stream.py`)
together. What went wrong upstream it asks of `Failures`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mitmproxy.connection import Client, Connection, ConnectionState
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import DropStream, HTTPMode, RegisterHttpConnection, SendHttp
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestHeaders, ResponseData

from kubetunnel.proxy.http.deadlines import Deadlines
from kubetunnel.proxy.http.events import (
    Abort,
    AwaitResponse,
    Congested,
    DeadlinePassed,
    GetUpstream,
    NothingTaken,
    Origin,
    Throttle,
    UpstreamDraining,
    UpstreamFree,
    never,
)
from kubetunnel.proxy.http.failures import Failures
from kubetunnel.proxy.http.h1_connection import KubeHttp1Connection
from kubetunnel.proxy.http.h1_server import KubeHttp1Server
from kubetunnel.proxy.http.h2_client import KubeHttp2Client
from kubetunnel.proxy.http.h2_server import KubeHttp2Server
from kubetunnel.proxy.http.lanes import Lanes
from kubetunnel.proxy.http.own import IsOwn, OwnStream
from kubetunnel.proxy.http.policy import HttpPolicy
from kubetunnel.proxy.http.request import NO_HOST as NO_HOST
from kubetunnel.proxy.http.stream import KubeHttpStream
from kubetunnel.proxy.http.upgraded import UpgradedLayer
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


class KubeHttpLayer(UpstreamSide):
    """HTTP/1 and HTTP/2 of one client.

    Args:
        policy: the limits of now; what they become counts from the next request on.
        reading: without it, what a slow reader of HTTP/2 does not take of an HTTP/1 sender's body is kept in memory.
        abort: closes the client's connection with a RST.
        clock: seconds, monotonic.
        lanes: shared with who opens the upstreams.
        is_own: tells the requests for the tunnel itself; without it there are none.
        is_ending: tells that the tunnel ends, so that the client is asked to use the connection no more.
    """

    def __init__(
        self,
        context: Context,
        mode: HTTPMode,
        failures: Failures,
        policy: Callable[[], HttpPolicy] = HttpPolicy,
        reading: Reading | None = None,
        abort: Callable[[Client], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        lanes: Lanes | None = None,
        is_own: IsOwn | None = None,
        is_ending: Callable[[], bool] = never,
    ) -> None:
        super().__init__(context, mode, failures, policy, lanes or Lanes(), clock)
        self._is_own = is_own
        self._is_ending = is_ending
        self._reading = reading
        self._abort = abort
        self._deadlines: Deadlines[int] = Deadlines()
        self._silences: dict[int, _Silence] = {}  # by stream
        self._sendings: Deadlines[int] = Deadlines()  # requests that pods take slowly
        self._taken_bytes: dict[int, int] = {}  # of those, when it was looked last
        self._throttled: dict[int, tuple[Connection, Connection]] = {}  # stream: from, to

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Start):
            server = KubeHttp2Server if self.context.client.alpn == b"h2" else KubeHttp1Server
            # set already where mitmproxy replays a client
            client = self.connections.setdefault(self.context.client, server(self.context.fork(), self._is_ending))
            yield from self.event_to_child(client, event)
        elif isinstance(event, events.Wakeup) and event.command in self._wakeups:
            self._wakeups.discard(event.command)
            yield from self._end_of_time()
            yield from self._end_of_patience()
            yield from self.ask_for_delayed()
            yield from self.refuse_queued()
            yield from self.end_handshakes()
            yield from self.close_idle()
        elif isinstance(event, events.ConnectionEvent):
            yield from self._connection_event(event)
        else:
            yield from super()._handle_event(event)

    def _connection_event(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        connection = event.connection
        handler = self.connections.get(connection)
        if handler is None and connection == self.context.server:
            handler = yield from self._adopt(event)
        if isinstance(event, events.ConnectionClosed) and isinstance(handler, KubeHttp1Server):
            upgraded = self._upgraded(handler)
            if (upgraded or handler.awaits_answer) and self._is_half_closed():
                handler.finish()
                if upgraded and not upgraded.context.server.tls:
                    yield commands.CloseTcpConnection(upgraded.context.server, half_close=True)
                return
        if handler is not None:
            yield from self.event_to_child(handler, event)
        if isinstance(event, events.ConnectionClosed) and connection != self.context.client:
            for stream_id in [s for s, ends in self._throttled.items() if connection in ends]:
                yield from self._unthrottle(stream_id)
            yield from self.forget_connection(connection)

    def _upgraded(self, handler: KubeHttp1Server) -> UpgradedLayer | None:
        stream = self.streams.get(handler.stream_id)
        above = stream.child_layer if isinstance(stream, KubeHttpStream) else None
        return above if isinstance(above, UpgradedLayer) else None

    def _is_half_closed(self) -> bool:
        """Whether this client only sends no more, and waits for the answer to what it sent."""
        client = self.context.client
        # with TLS an end is an end, and of a client on another machine nobody can tell whether it is still there
        if self._reading is None or client.tls or client.state is not ConnectionState.CAN_WRITE:
            return False
        return not self._reading.may_have_departed(client)

    def _adopt(self, event: events.ConnectionEvent) -> layer.CommandGenerator[layer.Layer | None]:
        """An upstream that was opened before there was a request does something first: sends its SETTINGS, or ends."""
        server = self.context.server
        if isinstance(event, events.ConnectionClosed) or not server.address:
            yield commands.CloseConnection(server)
            return None
        return (yield from self.open_upstream(Origin((server.address[0], server.address[1]), server.tls, server.via)))

    def event_to_child(self, child: layer.Layer, event: events.Event) -> layer.CommandGenerator[None]:
        for command in child.handle_event(event):
            if command.blocking or isinstance(command, commands.RequestWakeup):
                self.command_sources[command] = child
            if isinstance(command, ReceiveHttp):
                yield from self._receive(command.event)
            elif isinstance(command, SendHttp):
                # one that is closed has told its streams so
                if connection := self.connections.get(command.connection):
                    yield from self.event_to_child(connection, command.event)
            elif isinstance(command, DropStream):
                yield from self._drop(command.stream_id)
            elif isinstance(command, GetUpstream):
                yield from self.ask_for_upstream(command)
            elif isinstance(command, RegisterHttpConnection):
                yield from self.register_connection(command)
            elif isinstance(command, UpstreamFree | UpstreamDraining):
                yield from self.upstream_changed(command)
            elif isinstance(command, AwaitResponse):
                yield from self._set_deadline(command)
            elif isinstance(command, Congested):
                yield from self._congestion(command)
            elif isinstance(command, Abort):
                if self._abort:
                    self._abort(self.context.client)
            else:
                if isinstance(command, commands.OpenConnection):
                    self.connections[command.connection] = child
                yield command

    # exchanges

    def _receive(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        if isinstance(event, RequestHeaders):
            if self._is_own is not None and self._is_own(self.context, event.request):
                own = OwnStream(self.context.fork(), event.stream_id, event.request)
                self.streams[event.stream_id] = own  # type: ignore[assignment]  # a layer with the same events
            else:
                yield from self.make_stream(event.stream_id)
        # one that is over is not interested
        if stream := self.streams.get(event.stream_id):
            if isinstance(event, ResponseData):
                self._note_heard(event.stream_id)
            yield from self.event_to_child(stream, event)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        stream = KubeHttpStream(self.context.fork(), stream_id, self.failures, self.policy.exchange, self.lanes)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def _drop(self, stream_id: int) -> layer.CommandGenerator[None]:
        self.streams.pop(stream_id, None)
        self._deadlines.discard(stream_id)
        self._silences.pop(stream_id, None)
        yield from self._unthrottle(stream_id)

    def _set_deadline(self, command: AwaitResponse) -> layer.CommandGenerator[None]:
        self._silences.pop(command.stream_id, None)  # of an attempt before
        if command.silence and command.timeout_s is not None:
            self._silences[command.stream_id] = _Silence(command.timeout_s)
            self._note_heard(command.stream_id)
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
                yield from self._receive(DeadlinePassed(stream_id))
        yield from self.wake_at(self._deadlines.next_wakeup(self._clock()))

    def _note_heard(self, stream_id: int) -> None:
        if silence := self._silences.get(stream_id):
            silence.heard_s = self._waited_s(stream_id)

    def _silent_s(self, stream_id: int) -> float:
        """For how long the upstream of this response has sent nothing of it.

        It is silent while we wait for it, and not while it waits for us: for a client that reads slowly.
        """
        if stream_id in self._throttled:
            return 0.0
        return self._waited_s(stream_id) - self._silences[stream_id].heard_s

    def _waited_s(self, stream_id: int) -> float:
        stream = self.streams.get(stream_id)
        if self._reading is None or not isinstance(stream, KubeHttpStream):
            return self._clock()
        return self._reading.waited_s(stream.flow.server_conn)

    # flow control

    def _congestion(self, command: Congested) -> layer.CommandGenerator[None]:
        stream: layer.Layer | None = self.streams.get(command.stream_id)
        if isinstance(stream, OwnStream):
            stream.exchange.congest(congested=command.congested)
        elif not command.congested:
            yield from self._unthrottle(command.stream_id)
        elif isinstance(stream, KubeHttpStream):
            client, sink = self.context.client, command.connection
            source = stream.flow.server_conn if sink == client else client
            self._throttled[command.stream_id] = source, sink
            if source == client and not is_grpc(stream.flow.request):
                yield from self._watch_sending(command.stream_id, stream)
            yield from self._throttle(command.stream_id, source, paused=True)

    def _unthrottle(self, stream_id: int) -> layer.CommandGenerator[None]:
        if ends := self._throttled.pop(stream_id, None):
            self._note_heard(stream_id)  # it had to wait
            self._sendings.discard(stream_id)
            self._taken_bytes.pop(stream_id, None)
            yield from self._throttle(stream_id, ends[0], paused=False)

    def _watch_sending(self, stream_id: int, stream: KubeHttpStream) -> layer.CommandGenerator[None]:
        """More of a request waits here than the pod takes: it is to go on taking."""
        wait_s = stream.policy.write_timeout_s
        handler = self.connections.get(stream.flow.server_conn)
        http = handler.context.layers[-1] if handler else None
        if wait_s is None or not isinstance(http, KubeHttp2Client):
            return
        taken = http.taken_bytes(stream_id)
        if self._taken_bytes.get(stream_id) == taken:
            yield from self._receive(NothingTaken(stream_id))
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
