"""Opening an upstream, as a part of the HTTP layer: its layers, the time that TLS may take, and why it failed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from mitmproxy.connection import Server
from mitmproxy.proxy import commands, events, layer, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import tls
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode, _upstream_proxy

from kubetunnel.core.errors import KubeTunnelError, Timeout, UpstreamProtocol, UpstreamReset
from kubetunnel.proxy.http.client import NO_HTTP2, KubeHttpClient
from kubetunnel.proxy.http.deadlines import Deadlines
from kubetunnel.proxy.http.events import Origin
from kubetunnel.proxy.http.failures import Failures
from kubetunnel.proxy.http.lanes import Lanes
from kubetunnel.proxy.http.policy import HttpPolicy
from kubetunnel.proxy.http.pool import UpstreamPool

_CLOSED = "connection closed"  # what mitmproxy's TLS layers say then
_NO_TLS = "If it speaks no TLS there, tell: app_protocol=http in `services` (docs/protocols.md)."
_VERIFIED = "It is verified against its ca_file in `services` (docs/protocols.md)."


class UpstreamOpening(HttpLayer):
    """Begins an upstream, and explains one that did not open; when, `UpstreamSide` decides."""

    pool: UpstreamPool

    def __init__(
        self,
        context: Context,
        mode: HTTPMode,
        failures: Failures,
        policy: Callable[[], HttpPolicy],
        lanes: Lanes,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(context, mode)
        self.failures = failures
        self.lanes = lanes
        self._policy = policy
        self._clock = clock
        self._handshakes: Deadlines[Server] = Deadlines()  # TLS with pods
        self._overdue: set[Server] = set()  # those whose handshake took too long
        self._wakeups: set[commands.RequestWakeup] = set()

    @property
    def policy(self) -> HttpPolicy:
        """The limits of now."""
        return self._policy()

    @abstractmethod
    def event_to_child(self, child: layer.Layer, event: events.Event) -> layer.CommandGenerator[None]:
        """Lets the child handle the event, and does what it commands."""

    def open_upstream(self, origin: Origin, *, shared: bool = False) -> layer.CommandGenerator[layer.Layer]:
        """Begins to open one. Returns its lowest layer."""
        context = self.context.fork()
        stack = tunnel.LayerStack()
        if not self._is_at_hand(context.server, origin):
            context.server = Server(address=origin.address)
            context.server.via = origin.via
            if shared:
                self.lanes.share(context.server)
            if origin.via:
                stack /= _upstream_proxy.HttpUpstreamProxy.make(context, True)
            if origin.tls:
                context.server.sni = self._sni(origin)
                stack /= tls.ServerTLSLayer(context)
        stack /= KubeHttpClient(context)
        self.pool.begin(origin, context.server, shared=self.lanes.is_shared(context.server))
        self.connections[context.server] = stack[0]
        if origin.tls:
            yield from self._limit_handshake(context.server)
        yield from self.event_to_child(stack[0], events.Start())
        return stack[0]

    def _limit_handshake(self, server: Server) -> layer.CommandGenerator[None]:
        wait_s = self.policy.exchange.response_header_timeout_s
        if wait_s is not None and self._handshakes.set(server, self._clock() + wait_s):
            yield self.wake_in(wait_s)

    def end_handshakes(self) -> layer.CommandGenerator[None]:
        """To be called at a wakeup. A pod that is silent in TLS has been waited for long enough."""
        for server in self._handshakes.passed(self._clock()):
            if server.connected:
                self._overdue.add(server)
                yield commands.CloseConnection(server)
            else:  # is being connected, which has limits of its own
                yield from self._limit_handshake(server)
        yield from self.wake_at(self._handshakes.next_wakeup(self._clock()))

    def _is_at_hand(self, server: Server, origin: Origin) -> bool:
        """Whether the connection that was opened before us, for a CONNECT, is one of this origin."""
        known = server in self.connections
        same = server.address == origin.address and server.tls == origin.tls and server.via == origin.via
        return same and server.connected and not known

    def _sni(self, origin: Origin) -> str:
        server = self.context.server
        if self.mode is HTTPMode.transparent and origin.address == server.address:
            return server.sni or self.context.client.sni or origin.address[0]
        return origin.address[0]

    def opening_error(self, server: Server, origin: Origin, message: str) -> KubeTunnelError:
        """Why this upstream did not open. `message`: what mitmproxy's layers say of it."""
        if error := self.failures.open_error(server):
            return error
        where = f"{origin.address[0]}:{origin.address[1]}"
        ended = self.failures.stream_error(server)
        if ended is not None and not isinstance(ended, UpstreamReset):
            return ended  # refused, which the runtimes tell after the stream is open
        if server in self._overdue:
            self._overdue.discard(server)
            wait_s = self.policy.exchange.response_header_timeout_s
            error = Timeout(f"{where} said nothing to TLS in {wait_s:g} s. {_NO_TLS}")
        elif message == NO_HTTP2:
            error = UpstreamProtocol(
                f"{where} takes no HTTP/2: it picked another protocol, or none, in TLS (ALPN). http.force_http2, "
                "http.disable_fallback or the port's appProtocol wants HTTP/2."
            )
        elif message == _CLOSED:
            error = UpstreamReset(f"{where} closed the connection in the TLS handshake. {_NO_TLS}")
        elif origin.tls:
            hint = _VERIFIED if message.startswith("Certificate verify failed") else _NO_TLS
            error = UpstreamProtocol(f"{where}: TLS with the pod failed: {message.rstrip('.')}. {hint}")
        else:
            error = UpstreamProtocol(f"{where}: {message}.")
        self.lanes.explain(server, error)
        return error

    def wake_at(self, at_s: float | None) -> layer.CommandGenerator[None]:
        """Asks for a wakeup at that time, if there is one."""
        if at_s is not None:
            yield self.wake_in(max(0.0, at_s - self._clock()))

    def wake_in(self, delay_s: float) -> commands.RequestWakeup:
        """A wakeup of ours: seconds from now."""
        command = commands.RequestWakeup(delay_s)
        self._wakeups.add(command)
        return command
