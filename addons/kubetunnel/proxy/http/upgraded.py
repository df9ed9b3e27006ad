"""What follows a 101 to another protocol than WebSocket (RFC 9110 section 7.8): bytes both ways, shown as a TCP flow.

mitmproxy's `TCPLayer` keeps all of them, and asks every addon about each piece. Here the flow keeps the first ones and
counts the rest, as raw connections do.
"""

from __future__ import annotations

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.tcp import TcpEndHook, TcpErrorHook, TcpStartHook
from mitmproxy.tcp import TCPFlow

from kubetunnel.proxy.http.events import Abort
from kubetunnel.proxy.http.failures import Failures
from kubetunnel.proxy.raw.traffic import Traffic, mark_failed


class UpgradedLayer(layer.Layer):
    """To be run inside of the exchange that was upgraded. An end of either side is the end of both.

    A client that only sends no more has not ended: `KubeHttpLayer` tells that, and passes it on.
    """

    def __init__(self, context: Context, failures: Failures) -> None:
        super().__init__(context)
        self.flow = TCPFlow(context.client, context.server, live=True)
        self.traffic = Traffic(self.flow)
        self._failures = failures
        self._ended = False

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        client, server = self.context.client, self.context.server
        if isinstance(event, events.Start):
            yield TcpStartHook(self.flow)
        elif self._ended:
            return
        elif isinstance(event, events.DataReceived):
            from_client = event.connection == client
            self.traffic.add(from_client, event.data)
            yield commands.SendData(server if from_client else client, event.data)
        elif isinstance(event, events.ConnectionClosed):
            yield from self._end(event)

    def _end(self, event: events.ConnectionClosed) -> layer.CommandGenerator[None]:
        self._ended = True
        client, server = self.context.client, self.context.server
        error = self._failures.stream_error(server) if event.connection == server else None
        if error is not None:
            yield Abort(client)  # in order, it would be the end of what the pod had to say
        for connection in (server, client):
            yield commands.CloseConnection(connection)
        self.traffic.show()
        if error is None:
            yield TcpEndHook(self.flow)
        else:
            mark_failed(self.flow, error)
            yield TcpErrorHook(self.flow)
        self.flow.live = False
