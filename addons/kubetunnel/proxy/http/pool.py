"""Which upstream a request of one client connection goes to, decided without I/O.

mitmproxy opens an upstream a request for an HTTP/2 client before an HTTP/1 server, and never forgets one. Here idle
ones are reused, most recently used first, so that what a burst opened is not kept alive by a trickle.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from mitmproxy.connection import Server

from kubetunnel.proxy.http.events import GetUpstream, Lease, Origin

MAX_UPSTREAMS = 100  # of one client connection to one origin; the default of pool.max_connections_per_service
MAX_IDLE = 50  # the default of pool.max_idle_per_service

type Protocol = Literal["http/1", "h2"]


@dataclass(frozen=True, slots=True)
class Assign:
    """Hand this upstream to this request."""

    request: GetUpstream
    lease: Lease


@dataclass(frozen=True, slots=True)
class Open:
    """Open another upstream to this origin, and report it with `opened` or `failed`."""

    origin: Origin


@dataclass(frozen=True, slots=True)
class Close:
    """Close this idle upstream."""

    connection: Server


type Step = Assign | Open | Close


@dataclass(slots=True)
class _State:
    """One origin's. `idle` is in the order of use; `shared` are the HTTP/2 upstreams that take requests."""

    protocol: Protocol | None = None
    opening: int = 0
    waiting: deque[GetUpstream] = field(default_factory=deque)
    idle: list[Server] = field(default_factory=list)
    busy: set[Server] = field(default_factory=set)
    shared: list[Server] = field(default_factory=list)

    @property
    def open(self) -> int:
        return self.opening + len(self.idle) + len(self.busy)


class UpstreamPool:
    """After each call that changes something, `next_step` is to be called until it returns None."""

    def __init__(self, max_upstreams: int = MAX_UPSTREAMS, max_idle: int = MAX_IDLE) -> None:
        self._max_upstreams = max_upstreams
        self._max_idle = max_idle
        self._states: dict[Origin, _State] = {}
        self._origins: dict[Server, Origin] = {}
        self._used: set[Server] = set()

    def __len__(self) -> int:
        return len(self._origins)

    def __contains__(self, connection: object) -> bool:
        return connection in self._origins

    def origin(self, connection: Server) -> Origin:
        """What this upstream is for."""
        return self._origins[connection]

    def ask(self, request: GetUpstream) -> None:
        """Queues a request."""
        self._states.setdefault(request.origin, _State()).waiting.append(request)

    def begin(self, origin: Origin, connection: Server) -> None:
        """An upstream is being opened."""
        self._origins[connection] = origin
        self._states.setdefault(origin, _State()).opening += 1

    def opened(self, connection: Server, protocol: Protocol) -> None:
        """It is open, and speaks this."""
        state = self._states[self._origins[connection]]
        state.opening -= 1
        state.protocol = protocol
        (state.shared if protocol == "h2" else state.idle).append(connection)

    def failed(self, connection: Server) -> list[GetUpstream]:
        """It did not open: returns the requests for which that was the upstream to come."""
        state = self._states[self._origins.pop(connection)]
        state.opening -= 1
        count = 1 if state.protocol == "http/1" else len(state.waiting)
        return [state.waiting.popleft() for _ in range(min(count, len(state.waiting)))]

    def release(self, connection: Server) -> None:
        """An HTTP/1 upstream has finished its exchange."""
        state = self._states[self._origins[connection]]
        if connection in state.busy:
            state.busy.remove(connection)
            state.idle.append(connection)

    def drain(self, connection: Server) -> None:
        """An HTTP/2 upstream takes no more requests."""
        state = self._states[self._origins[connection]]
        if connection in state.shared:
            state.shared.remove(connection)

    def forget(self, connection: Server) -> None:
        """It is closed."""
        state = self._states[self._origins.pop(connection)]
        self._used.discard(connection)
        state.busy.discard(connection)
        for upstreams in (state.idle, state.shared):
            if connection in upstreams:
                upstreams.remove(connection)

    def next_step(self, origin: Origin) -> Step | None:
        """What is to be done now."""
        state = self._states[origin]
        if not state.waiting:
            return Close(state.idle.pop(0)) if len(state.idle) > self._max_idle else None
        if connection := self._take(state, fresh=state.waiting[0].fresh):
            lease = Lease(connection, reused=connection in self._used)
            self._used.add(connection)
            return Assign(state.waiting.popleft(), lease)
        if state.protocol != "http/1":
            # one HTTP/2 upstream may do for all; until we know, nobody else opens one
            return Open(origin) if state.opening == 0 else None
        if state.opening >= len(state.waiting):
            return None
        if state.open < self._max_upstreams:
            return Open(origin)
        return Close(state.idle.pop(0)) if state.idle else None

    def _take(self, state: _State, *, fresh: bool) -> Server | None:
        for connection in reversed(state.shared):
            if connection.connected and not (fresh and connection in self._used):
                return connection
        for connection in reversed(state.idle):
            # one that is closed leaves when its end is reported
            if connection.connected and not (fresh and connection in self._used):
                state.idle.remove(connection)
                state.busy.add(connection)
                return connection
        return None
