"""mitmproxy's HTTP layer with upstreams that are kept, shared and forgotten as they should be.

A layer without I/O, like mitmproxy's own: it brings connections (`h1_*`, `h2_*`) and exchanges (`stream.py`)
together. What went wrong upstream it asks of `Failures`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from mitmproxy.connection import Client, ConnectionState
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import DropStream, HTTPMode, RegisterHttpConnection, SendHttp
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestHeaders, ResponseData

from kubetunnel.proxy.http.events import (
    Abort,
    AwaitResponse,
    Congested,
    GetUpstream,
    Origin,
    UpstreamDraining,
    UpstreamFree,
    never,
)
from kubetunnel.proxy.http.failures import Failures
from kubetunnel.proxy.http.h1_server import KubeHttp1Server
from kubetunnel.proxy.http.h2_server import KubeHttp2Server
from kubetunnel.proxy.http.lanes import Lanes
from kubetunnel.proxy.http.own import IsOwn, OwnStream
from kubetunnel.proxy.http.pace import ExchangePace, Reading
from kubetunnel.proxy.http.policy import HttpPolicy
from kubetunnel.proxy.http.request import NO_HOST as NO_HOST
from kubetunnel.proxy.http.stream import KubeHttpStream
from kubetunnel.proxy.http.upgraded import UpgradedLayer


class KubeHttpLayer(ExchangePace):
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
        super().__init__(context, mode, failures, policy, lanes or Lanes(), clock, reading)
        self._is_own = is_own
        self._is_ending = is_ending
        self._abort = abort

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, events.Start):
            server = KubeHttp2Server if self.context.client.alpn == b"h2" else KubeHttp1Server
            # set already where mitmproxy replays a client
            client = self.connections.setdefault(self.context.client, server(self.context.fork(), self._is_ending))
            yield from self.event_to_child(client, event)
        elif isinstance(event, events.Wakeup) and event.command in self._wakeups:
            self._wakeups.discard(event.command)
            yield from self.end_silences()
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
            yield from self.unthrottle_all(connection)
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
                yield from self.receive(command.event)
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
                yield from self.set_deadline(command)
            elif isinstance(command, Congested):
                yield from self.congestion(command)
            elif isinstance(command, Abort):
                if self._abort:
                    self._abort(self.context.client)
            else:
                if isinstance(command, commands.OpenConnection):
                    self.connections[command.connection] = child
                yield command

    # exchanges

    def receive(self, event: HttpEvent) -> layer.CommandGenerator[None]:
        if isinstance(event, RequestHeaders):
            if self._is_own is not None and self._is_own(self.context, event.request):
                own = OwnStream(self.context.fork(), event.stream_id, event.request)
                self.streams[event.stream_id] = own  # type: ignore[assignment]  # a layer with the same events
            else:
                yield from self.make_stream(event.stream_id)
        # one that is over is not interested
        if stream := self.streams.get(event.stream_id):
            if isinstance(event, ResponseData):
                self.note_heard(event.stream_id)
            yield from self.event_to_child(stream, event)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        stream = KubeHttpStream(self.context.fork(), stream_id, self.failures, self.policy.exchange, self.lanes)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def _drop(self, stream_id: int) -> layer.CommandGenerator[None]:
        self.streams.pop(stream_id, None)
        yield from self.forget_pace(stream_id)
