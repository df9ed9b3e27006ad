"""A `KubeHttpLayer` without I/O: events in, what it sends, opens and closes out. Hooks are answered at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
from mitmproxy import http
from mitmproxy.connection import Client, Connection, ConnectionState, Server
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode

from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.proxy.http.lanes import Lanes
from kubetunnel.proxy.http.layer import KubeHttpLayer
from kubetunnel.proxy.http.policy import HttpPolicy

# those of mitmproxy's Proxyserver that its HTTP layers ask for
_OPTIONS = {
    "body_size_limit": None,
    "connection_strategy": "lazy",
    "http2_ping_keepalive": 0,
    "normalize_outbound_headers": True,
    "proxy_debug": False,
    "rawtcp": True,
    "store_streamed_bodies": False,
    "stream_large_bodies": None,
    "validate_inbound_headers": True,
    "websocket": True,
}

type Hook = Callable[[Any], None]


def stream_bodies(flow: http.HTTPFlow) -> None:
    """A hook: bodies pass as they come."""
    (flow.response or flow.request).stream = True


class Playbook:
    """One client connection. `h2_client`, `h2_upstream`: what the two ends speak."""

    def __init__(
        self,
        *,
        h2_client: bool = False,
        h2_upstream: bool = False,
        policy: HttpPolicy | None = None,
        open_at_once: bool = True,
        lanes: Lanes | None = None,
        **hooks: Hook,
    ) -> None:
        options = Options()
        for name, default in _OPTIONS.items():
            options.add_option(name, type(default) if default is not None else str | None, default, "")
        self.client = Client(
            peername=("127.0.0.1", 50000), sockname=("127.0.0.1", 8080), timestamp_start=0, state=ConnectionState.OPEN
        )
        self.client.alpn = b"h2" if h2_client else None
        self.policy = policy or HttpPolicy()
        self.now_s = 0.0
        self.is_ending = False
        self.hooks = hooks
        self.h2_upstream = h2_upstream
        self.open_at_once = open_at_once
        self.opening: list[commands.OpenConnection] = []
        self.upstreams: list[Server] = []
        self.sent: dict[Connection, bytearray] = {}
        self.closed: list[Connection] = []
        self.half_closed: list[Connection] = []
        self.aborted: list[Client] = []
        self.paused: set[Connection] = set()
        self.wakeups: list[commands.RequestWakeup] = []
        self._due_s: dict[commands.RequestWakeup, float] = {}
        self.flows: list[http.HTTPFlow] = []
        self.hook_names: list[str] = []
        self.open_errors: list[KubeTunnelError] = []  # of the attempts that fail, in turn
        self.stream_errors: dict[Connection, KubeTunnelError] = {}
        self.read_s = 0.0  # how much of the time upstreams were read from
        self._queue: deque[events.Event] = deque()
        self.layer = KubeHttpLayer(
            Context(self.client, options), HTTPMode.regular, self, lambda: self.policy, self, self.aborted.append,
            lambda: self.now_s, lanes, is_ending=lambda: self.is_ending,
        )  # fmt: skip
        self.feed(events.Start())

    # Failures and Reading

    def open_error(self, connection: Connection) -> KubeTunnelError | None:
        return self.open_errors.pop(0) if self.open_errors else None

    def stream_error(self, connection: Connection) -> KubeTunnelError | None:
        return self.stream_errors.get(connection)

    def pause(self, connection: Connection) -> None:
        self.paused.add(connection)

    def resume(self, connection: Connection) -> None:
        self.paused.discard(connection)

    def waited_s(self, connection: Connection) -> float:
        return self.read_s

    def may_have_departed(self, client: Client) -> bool:
        return self.client.state is not ConnectionState.CAN_WRITE

    # events

    def feed(self, event: events.Event) -> None:
        self._queue.append(event)
        while self._queue:
            for command in self.layer.handle_event(self._queue.popleft()):
                self._obey(command)

    def from_client(self, data: bytes) -> None:
        self.feed(events.DataReceived(self.client, data))

    def from_upstream(self, data: bytes, number: int = -1) -> None:
        self.feed(events.DataReceived(self.upstreams[number], data))

    def client_closes(self) -> None:
        self.client.state = ConnectionState.CLOSED
        self.feed(events.ConnectionClosed(self.client))

    def client_finishes(self) -> None:
        """It sends no more, and reads on."""
        self.client.state = ConnectionState.CAN_WRITE
        self.feed(events.ConnectionClosed(self.client))

    def upstream_closes(self, number: int = -1) -> None:
        server = self.upstreams[number]
        server.state &= ~ConnectionState.CAN_READ
        self.feed(events.ConnectionClosed(server))

    def opened(self, error: str | None = None) -> None:
        """The oldest attempt to open an upstream ends."""
        command = self.opening.pop(0)
        server = command.connection
        assert isinstance(server, Server)
        if error is None:
            self._open(server)
        self.feed(events.OpenConnectionCompleted(command, error))

    def _open(self, server: Server) -> None:
        server.state = ConnectionState.OPEN
        server.timestamp_start = 1.0
        server.alpn = b"h2" if self.h2_upstream else None
        self.upstreams.append(server)

    def pass_time(self, seconds: float, *, reading: bool = True) -> None:
        """`reading`: whether somebody reads from the upstreams meanwhile."""
        self.now_s += seconds
        self.read_s += seconds if reading else 0.0
        for wakeup in [w for w in self.wakeups if self._due_s[w] <= self.now_s]:
            self.wakeups.remove(wakeup)
            self.feed(events.Wakeup(wakeup))

    # what comes out

    def to_client(self) -> bytes:
        """What was sent to the client since the last call."""
        return self._take(self.client)

    def to_upstream(self, number: int = -1) -> bytes:
        return self._take(self.upstreams[number])

    def _take(self, connection: Connection) -> bytes:
        return bytes(self.sent.pop(connection, b""))

    def _obey(self, command: commands.Command) -> None:
        if isinstance(command, commands.SendData):
            if command.connection.state & ConnectionState.CAN_WRITE:
                self.sent.setdefault(command.connection, bytearray()).extend(command.data)
        elif isinstance(command, commands.OpenConnection):
            self.opening.append(command)
            if self.open_at_once:
                server = command.connection
                assert isinstance(server, Server)
                self.opening.remove(command)
                self._open(server)
                self._queue.append(events.OpenConnectionCompleted(command, None))
        elif isinstance(command, commands.CloseTcpConnection) and command.half_close:
            command.connection.state &= ~ConnectionState.CAN_WRITE
            self.half_closed.append(command.connection)
        elif isinstance(command, commands.CloseConnection):
            if command.connection not in self.closed:
                self.closed.append(command.connection)
                command.connection.state = ConnectionState.CLOSED
                self._queue.append(events.ConnectionClosed(command.connection))
        elif isinstance(command, commands.RequestWakeup):
            self.wakeups.append(command)
            self._due_s[command] = self.now_s + command.delay
        elif isinstance(command, commands.StartHook):
            self._run_hook(command)
        else:
            assert isinstance(command, commands.Log), command

    def _run_hook(self, command: commands.StartHook) -> None:
        self.hook_names.append(command.name)
        (subject, *_) = command.args()
        if isinstance(subject, http.HTTPFlow) and subject not in self.flows:
            self.flows.append(subject)
        self.hooks.get(command.name, lambda subject: None)(subject)
        if command.blocking:
            self._queue.append(events.HookCompleted(command))

    # HTTP/2 ends

    def h2_client(self) -> H2Peer:
        return H2Peer(self, None)

    def h2_server(self, number: int = -1) -> H2Peer:
        return H2Peer(self, number)


class H2Peer:
    """The other end of an HTTP/2 connection, as the h2 library has it. `number`: which upstream; None: the client."""

    def __init__(self, playbook: Playbook, number: int | None) -> None:
        self.playbook = playbook
        self.connection = playbook.client if number is None else playbook.upstreams[number]
        self.h2 = h2.connection.H2Connection(
            # what it sends may be wrong on purpose
            h2.config.H2Configuration(
                client_side=number is None, header_encoding="utf-8", validate_outbound_headers=False
            )
        )
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []

    def flush(self) -> None:
        """Sends what waits, and takes what was sent."""
        while True:
            data = self.h2.data_to_send()
            if data:
                self.playbook.feed(events.DataReceived(self.connection, data))
            received = self.playbook._take(self.connection)
            if received:
                self.events += self.h2.receive_data(received)
            if not data and not received:
                return

    def request(
        self, path: str = "/", *fields: tuple[str, str], method: str = "GET", body: bytes = b"", end: bool = True
    ) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "api.shop")]
        self.h2.send_headers(stream_id, [*pseudo, *fields], end_stream=end and not body)
        if body:
            self.h2.send_data(stream_id, body, end_stream=end)
        self.flush()
        return stream_id

    def respond(self, stream_id: int, *fields: tuple[str, str], status: int = 200, end: bool = True) -> None:
        self.h2.send_headers(stream_id, [(":status", str(status)), *fields], end_stream=end)
        self.flush()

    def of[E: h2.events.Event](self, kind: type[E], stream_id: int | None = None) -> list[E]:
        """What came of this kind."""
        found = [event for event in self.events if isinstance(event, kind)]
        return [event for event in found if stream_id is None or getattr(event, "stream_id", None) == stream_id]

    def body(self, stream_id: int) -> bytes:
        return b"".join(event.data for event in self.of(h2.events.DataReceived, stream_id))

    def status(self, stream_id: int) -> str | None:
        received = self.of(h2.events.ResponseReceived, stream_id)
        return dict(received[0].headers)[":status"] if received else None

    def fields(self, stream_id: int) -> dict[str, str]:
        return dict(self.of(h2.events.ResponseReceived, stream_id)[0].headers)
