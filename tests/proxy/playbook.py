"""Feeds a layer of mitmproxy event by event and collects its commands: a layer has no I/O, so neither has its test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mitmproxy.connection import Client, Connection, ConnectionState
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.mode_specs import ProxyMode


def make_context() -> Context:
    """A client's connection that was just accepted, its destination not known."""
    client = Client(
        peername=("127.0.0.1", 40000),
        sockname=("127.0.0.1", 8080),
        timestamp_start=1.0,
        state=ConnectionState.OPEN,
        proxy_mode=ProxyMode.parse("regular"),
    )
    return Context(client, Options())


def open_server(context: Context, address: tuple[str, int] = ("db.shop", 5432)) -> None:
    """The destination, open."""
    context.server.address = address
    context.server.timestamp_start = 2.0
    context.server.state = ConnectionState.OPEN


class Playbook:
    """Runs one layer.

    Args:
        make_layer: the layer for a `NextLayerHook`; None leaves it undecided.

    `commands` has all commands so far. A blocking one waits for `reply`, but for hooks, which are answered at once
    unless their name is in `held`.
    """

    def __init__(
        self,
        top: layer.Layer,
        make_layer: Callable[[layer.NextLayer], layer.Layer | None] | None = None,
        held: frozenset[str] = frozenset(),
    ) -> None:
        self.layer = top
        self.context = top.context
        self.commands: list[commands.Command] = []
        self._make_layer = make_layer
        self._held = held

    def start(self) -> list[commands.Command]:
        return self.feed(events.Start())

    def from_client(self, data: bytes) -> list[commands.Command]:
        return self.feed(events.DataReceived(self.context.client, data))

    def from_server(self, data: bytes) -> list[commands.Command]:
        return self.feed(events.DataReceived(self.context.server, data))

    def closed(self, connection: Connection) -> list[commands.Command]:
        """The peer has finished sending."""
        connection.state &= ~ConnectionState.CAN_READ
        return self.feed(events.ConnectionClosed(connection))

    def opened(self, error: str | None = None) -> list[commands.Command]:
        """Answers the last OpenConnection."""
        command = self.last(commands.OpenConnection)
        command.connection.timestamp_start = 2.0
        command.connection.state = ConnectionState.CLOSED if error else ConnectionState.OPEN
        command.connection.error = error
        return self.feed(events.OpenConnectionCompleted(command, error))

    def woken(self) -> list[commands.Command]:
        """The time of the last RequestWakeup is over."""
        return self.feed(events.Wakeup(self.last(commands.RequestWakeup)))

    def completed(self, name: str) -> list[commands.Command]:
        """Answers the last hook of that name, one of `held`."""
        hooks = [c for c in self.commands if isinstance(c, commands.StartHook) and c.name == name]
        return self.feed(events.HookCompleted(hooks[-1]))

    def feed(self, event: events.Event) -> list[commands.Command]:
        """What the layer commands now, in order."""
        before = len(self.commands)
        for command in self.layer.handle_event(event):
            self.commands.append(command)
            if isinstance(command, commands.CloseTcpConnection) and command.half_close:
                command.connection.state &= ~ConnectionState.CAN_WRITE
            elif isinstance(command, commands.CloseConnection):
                command.connection.state = ConnectionState.CLOSED
        new = self.commands[before:]
        for command in new:
            if isinstance(command, commands.StartHook) and command.name not in self._held:
                if isinstance(command, layer.NextLayerHook) and self._make_layer:
                    command.data.layer = self._make_layer(command.data)
                self.feed(events.HookCompleted(command))
        return self.commands[before:]

    def last[C: commands.Command](self, kind: type[C]) -> C:
        return [command for command in self.commands if isinstance(command, kind)][-1]

    def sent(self, connection: Connection) -> bytes:
        """All that was sent to one side."""
        return b"".join(
            c.data for c in self.commands if isinstance(c, commands.SendData) and c.connection == connection
        )

    def closes(self, connection: Connection) -> list[str]:
        """How a side was closed: "half" or "whole", in order."""
        return [
            "half" if isinstance(c, commands.CloseTcpConnection) and c.half_close else "whole"
            for c in self.commands
            if isinstance(c, commands.CloseConnection) and c.connection == connection
        ]

    def hooks(self) -> list[str]:
        return [command.name for command in self.commands if isinstance(command, commands.StartHook)]


class Recorder(layer.Layer):
    """A next layer that keeps the events it gets."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.events: list[events.Event] = []

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        self.events.append(event)
        yield from ()

    def data(self, connection: Connection) -> bytes:
        return b"".join(
            e.data for e in self.events if isinstance(e, events.DataReceived) and e.connection == connection
        )

    def kinds(self) -> list[Any]:
        return [type(event) for event in self.events]
