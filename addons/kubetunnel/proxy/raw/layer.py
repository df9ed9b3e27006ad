"""Raw TCP and opaque TLS: bytes from the client to the pod and back, shown as one TCP flow with counts.

Where nothing lies between the bytes and the sockets, a `Relay` takes the transports: half the processor time of
mitmproxy's events. Inside TLS that is terminated here the bytes exist in mitmproxy's layers only, so they are passed on
by events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mitmproxy.connection import Client, Connection, ConnectionState
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.commands import StartHook
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.tcp import TcpEndHook, TcpErrorHook, TcpStartHook
from mitmproxy.tcp import TCPFlow

from kubetunnel.core.errors import KubeTunnelError, NotAServiceName
from kubetunnel.proxy.destination import open_destination
from kubetunnel.proxy.http.failures import Failures
from kubetunnel.proxy.raw.relay import CLIENT_RESET, Relay
from kubetunnel.proxy.raw.traffic import Traffic, mark_failed


class Transports(Protocol):
    """What lies under the layers of a client connection, which have no I/O of their own."""

    def take(self, context: Context, traffic: Traffic) -> Relay | None:
        """The transports of client and server, taken from mitmproxy; None where a side is closed already."""
        ...

    def watch(self, context: Context, traffic: Traffic) -> None:
        """Shows the traffic now and then, and ends the connection when the client is done and the pod silent."""
        ...

    def forget(self, traffic: Traffic) -> None:
        """Ends `watch`."""
        ...

    def reset(self, client: Client) -> None:
        """Closes the client's connection with a RST."""
        ...

    def is_closed(self, context: Context, connection: Connection) -> bool:
        """Whether this side takes no more bytes, either."""
        ...


@dataclass
class KubeRelayHook(StartHook):
    """Runs the relay to its end."""

    relay: Relay


def show_refusal(context: Context, error: KubeTunnelError) -> layer.CommandGenerator[None]:
    """Shows a connection that did not come about."""
    flow = TCPFlow(context.client, context.server, live=True)
    yield TcpStartHook(flow)
    yield from _end_flow(flow, error)


def _end_flow(flow: TCPFlow, failure: KubeTunnelError | str | None) -> layer.CommandGenerator[None]:
    if failure is None:
        yield TcpEndHook(flow)
    else:
        mark_failed(flow, failure)
        yield TcpErrorHook(flow)
    flow.live = False


class RawLayer(layer.Layer):
    """Relays whatever is sent. Opens the server where it is not open yet; without a destination the client is reset.

    Args:
        failures: why an upstream did not open, or ended.
        transports: the client's transports.
    """

    def __init__(self, context: Context, failures: Failures, transports: Transports) -> None:
        super().__init__(context)
        self.flow = TCPFlow(context.client, context.server, live=True)
        self.traffic = Traffic(self.flow)
        self.failures = failures
        self.transports = transports
        self.relay: Relay | None = None
        self.handed_over: set[Connection] = set()
        self.state: Callable[[events.Event], layer.CommandGenerator[None]] = self.start

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from self.state(event)

    def start(self, _: events.Event) -> layer.CommandGenerator[None]:
        error: KubeTunnelError | None = None
        if self.context.server.address is None:
            error = NotAServiceName("The connection speaks neither HTTP nor SOCKS5, so it names no Service.")
        elif self.context.server.timestamp_start is None:
            error = yield from open_destination(self.context, self.failures)
        yield TcpStartHook(self.flow)  # when it can be told where it goes
        if error is not None:
            self.transports.reset(self.context.client)
            yield from self.end(error)
            return
        self.transports.watch(self.context, self.traffic)
        if self._is_plain():
            self.relay = self.transports.take(self.context, self.traffic)
        self.state = self.pass_on if self.relay is None else self.hand_over

    def _is_plain(self) -> bool:
        """Whether what is sent here is what is in the sockets."""
        return not (self.context.client.tls or self.context.server.tls)

    def hand_over(self, event: events.Event) -> layer.CommandGenerator[None]:
        """mitmproxy passes on what it has read; `ConnectionClosed` means that this was all, see `relay`."""
        if isinstance(event, events.DataReceived):
            yield self._passed_on(event)
        elif isinstance(event, events.ConnectionClosed):
            self.handed_over.add(event.connection)
            if self.relay is not None and len(self.handed_over) == 2:
                yield KubeRelayHook(self.relay)
                yield from self.end(self.relay.failure)

    def pass_on(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Relays by mitmproxy's events."""
        if isinstance(event, events.DataReceived):
            yield self._passed_on(event)
        elif isinstance(event, events.ConnectionClosed):
            yield from self._closed(event.connection)

    def _passed_on(self, event: events.DataReceived) -> commands.SendData:
        from_client = event.connection == self.context.client
        self.traffic.add(from_client, event.data)
        return commands.SendData(self.context.server if from_client else self.context.client, event.data)

    def _closed(self, connection: Connection) -> layer.CommandGenerator[None]:
        client, server = self.context.client, self.context.server
        if connection == server and (error := self.failures.stream_error(server)):
            self.transports.reset(client)
            yield from self.end(error)
        elif not self._anything_to_come():
            yield from self.end(None)
        elif self.transports.is_closed(self.context, connection):
            yield from self.end(CLIENT_RESET if connection == client else None)
        else:
            if connection == client:
                self.traffic.finish_client()
            yield commands.CloseTcpConnection(server if connection == client else client, half_close=True)

    def _anything_to_come(self) -> bool:
        return bool((self.context.client.state | self.context.server.state) & ConnectionState.CAN_READ)

    def end(self, failure: KubeTunnelError | str | None) -> layer.CommandGenerator[None]:
        self.state = self.done
        self.transports.forget(self.traffic)
        for connection in (self.context.server, self.context.client):
            if connection.state is not ConnectionState.CLOSED:
                yield commands.CloseConnection(connection)
        self.traffic.show()
        yield from _end_flow(self.flow, failure)

    def done(self, _: events.Event) -> layer.CommandGenerator[None]:
        yield from ()
