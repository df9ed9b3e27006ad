"""The upstreams' side of the HTTP layer: carries out what the pool decides, and ends those that nobody uses."""

# ruff: noqa: S101 - asserts tell the type checker what the states guarantee, as in mitmproxy

from __future__ import annotations

import time
from collections.abc import Callable

from mitmproxy.connection import Connection, Server
from mitmproxy.proxy import commands, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HTTPMode, RegisterHttpConnection

from kubetunnel.core.errors import KubeTunnelError, Timeout, UpstreamProtocol
from kubetunnel.proxy.http.deadlines import Deadlines
from kubetunnel.proxy.http.events import (
    GetUpstream,
    GetUpstreamCompleted,
    Lease,
    Origin,
    UpstreamDraining,
    UpstreamFree,
)
from kubetunnel.proxy.http.failures import Failures
from kubetunnel.proxy.http.h2_client import KubeHttp2Client
from kubetunnel.proxy.http.lanes import Lanes
from kubetunnel.proxy.http.opening import UpstreamOpening
from kubetunnel.proxy.http.policy import HttpPolicy
from kubetunnel.proxy.http.pool import Assign, Open, Refuse, UpstreamPool
from kubetunnel.proxy.service_connections import NoRoom

CLOSE_TOLD_S = 1.0  # how late containerd tells that a pod closed a connection


class UpstreamSide(UpstreamOpening):
    """What is here is the half of `KubeHttpLayer` that has to do with upstreams."""

    def __init__(
        self,
        context: Context,
        mode: HTTPMode,
        failures: Failures,
        policy: Callable[[], HttpPolicy],
        lanes: Lanes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(context, mode, failures, policy, lanes, clock)
        self.pool = UpstreamPool(lambda: self.policy.max_upstreams, lambda: self.policy.max_idle, self._is_doubtful)
        self._idle: Deadlines[Server] = Deadlines()
        self._idle_since_s: dict[Server, float] = {}
        self._delayed: Deadlines[GetUpstream] = Deadlines()
        self._queues: Deadlines[Origin] = Deadlines()
        self._asked_s: dict[GetUpstream, float] = {}

    def ask_for_upstream(self, request: GetUpstream) -> layer.CommandGenerator[None]:
        """An exchange needs an upstream."""
        if request.delay_s:
            if self._delayed.set(request, self._clock() + request.delay_s):
                yield self.wake_in(request.delay_s)
            return
        yield from self._ask(request)

    def ask_for_delayed(self) -> layer.CommandGenerator[None]:
        """To be called at a wakeup."""
        for request in self._delayed.passed(self._clock()):
            yield from self._ask(request)
        yield from self.wake_at(self._delayed.next_wakeup(self._clock()))

    def _ask(self, request: GetUpstream) -> layer.CommandGenerator[None]:
        self._asked_s[request] = self._clock()
        self.pool.ask(request)
        yield from self._serve(request.origin)

    def _note_queue(self, origin: Origin) -> layer.CommandGenerator[None]:
        """Somebody waits until an upstream gets free: not for ever."""
        wait_s = self.policy.exchange.response_header_timeout_s
        if wait_s is None or origin in self._queues or (oldest := self.pool.oldest_stuck(origin)) is None:
            return
        if self._queues.set(origin, self._asked_s[oldest] + wait_s):
            yield self.wake_in(max(0.0, self._asked_s[oldest] + wait_s - self._clock()))

    def refuse_queued(self) -> layer.CommandGenerator[None]:
        """To be called at a wakeup. Who waits because all upstreams are in use has waited for long enough."""
        wait_s = self.policy.exchange.response_header_timeout_s or 0.0
        for origin in self._queues.passed(self._clock()):
            while (oldest := self.pool.oldest_stuck(origin)) and self._has_waited(oldest):
                self.pool.withdraw(oldest)
                limit = self.policy.max_upstreams
                error = Timeout(
                    f"This client alone uses as many connections to {origin.address[0]}:{origin.address[1]} as "
                    f"pool.max_connections_per_service allows, {limit}, and none of them got free in {wait_s:g} s.",
                    command=f"KTUN_MAX_CONNS_HOST={2 * limit} kube-tunnel",
                )
                yield from self._reply(oldest, error)
            yield from self._note_queue(origin)
        yield from self.wake_at(self._queues.next_wakeup(self._clock()))

    def _has_waited(self, request: GetUpstream) -> bool:
        wait_s = self.policy.exchange.response_header_timeout_s or 0.0
        return self._asked_s[request] + wait_s <= self._clock()

    def _reply(self, request: GetUpstream, reply: Lease | KubeTunnelError) -> layer.CommandGenerator[None]:
        self._asked_s.pop(request, None)
        stream = self.command_sources.pop(request)
        yield from self.event_to_child(stream, GetUpstreamCompleted(request, reply))

    def _serve(self, origin: Origin) -> layer.CommandGenerator[None]:
        while step := self.pool.next_step(origin):
            if isinstance(step, Assign):
                self._is_used(step.lease.connection)
                self.lanes.connections.used(step.lease.connection)
                yield from self._reply(step.request, step.lease)
            elif isinstance(step, Open):
                yield from self.open_upstream(step.origin, shared=step.shared)
            elif isinstance(step, Refuse):
                error = UpstreamProtocol("The tunnel itself failed: no upstream that it opened does for the request.")
                yield from self._reply(step.request, error)
            else:
                yield commands.CloseConnection(step.connection)
        yield from self._note_queue(origin)

    def register_connection(self, command: RegisterHttpConnection) -> layer.CommandGenerator[None]:
        server = command.connection
        assert isinstance(server, Server)
        origin = self.pool.origin(server)
        self._handshakes.discard(server)
        if command.err is None:
            self.pool.opened(server, "h2" if server.alpn == b"h2" else "http/1")
            yield from self._note_idle(server)
        else:
            error = self.opening_error(server, origin, command.err)
            self.connections.pop(server, None)
            has_waited = self._has_waited if isinstance(error, NoRoom) else None
            for request in self.pool.failed(server, has_waited):
                yield from self._reply(request, error)
        yield from self._serve(origin)
        self._offer(server)

    def upstream_changed(self, command: UpstreamFree | UpstreamDraining) -> layer.CommandGenerator[None]:
        """It is free for others, or no more."""
        server = command.connection
        if server not in self.pool:
            return
        if isinstance(command, UpstreamDraining):
            self.pool.drain(server)
        elif not self._serves_others(server):
            self.pool.release(server)
            yield from self._note_idle(server)
        yield from self._serve(self.pool.origin(server))
        self._offer(server)

    def _offer(self, server: Server) -> None:
        """Counts it with what is kept, if it is still there and none of our own requests has taken it."""
        if self.pool.is_kept(server) and not self._serves_others(server):
            self.lanes.connections.idle(server)

    def _serves_others(self, server: Server) -> bool:
        handler = self.connections.get(server)
        http = handler.context.layers[-1] if handler else None
        return isinstance(http, KubeHttp2Client) and not http.is_idle

    def forget_connection(self, connection: Connection) -> layer.CommandGenerator[None]:
        """It is closed, and with it what was tunnelled in it."""
        if isinstance(connection, Server) and self.pool.is_opening(connection):
            return  # its layer is about to say that it did not open: mitmproxy tells the addons first
        handler = self.connections.pop(connection, None)
        for server in [s for s, h in self.connections.items() if h is handler and s in self.pool] + [connection]:
            if isinstance(server, Server) and server in self.pool:
                yield commands.CloseConnection(server)
                self.connections.pop(server, None)
                self._is_used(server)
                origin = self.pool.origin(server)
                self.pool.forget(server)
                yield from self._serve(origin)

    # those that nobody uses

    def _is_doubtful(self, server: Server, request: GetUpstream) -> bool:
        """Whether it would serve worse than a new one.

        The pod may have closed it, which the runtimes tell a second later: who is to be sent once is not sent there.
        """
        is_stale = self._clock() - self._idle_since_s.get(server, self._clock()) > CLOSE_TOLD_S
        return (request.once and is_stale) or self.lanes.is_crowded(server)

    def _is_used(self, server: Server) -> None:
        """Or gone."""
        self._idle.discard(server)
        self._idle_since_s.pop(server, None)

    def _note_idle(self, server: Server) -> layer.CommandGenerator[None]:
        self._idle_since_s[server] = self._clock()
        limit_s = self.policy.idle_timeout_s
        if limit_s is not None and self._idle.set(server, self._clock() + limit_s):
            yield self.wake_in(limit_s)

    def close_idle(self) -> layer.CommandGenerator[None]:
        """To be called at a wakeup."""
        for server in self._idle.passed(self._clock()):
            yield commands.Log(f"{server.address}: idle for {self.policy.idle_timeout_s:g} s.")
            self.pool.retire(server)
            yield commands.CloseConnection(server)
        yield from self.wake_at(self._idle.next_wakeup(self._clock()))
