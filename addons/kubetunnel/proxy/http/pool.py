"""Which upstream a request of one client connection goes to, decided without I/O.

mitmproxy opens an upstream a request for an HTTP/2 client before an HTTP/1 server, and never forgets one. Here idle
ones are reused, most recently used first, so that what a burst opened is not kept alive by a trickle. Small requests
run on upstreams that may share a connection to the API server with others, all else on ones that do not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from mitmproxy.connection import Server

from kubetunnel.proxy.http.events import GetUpstream, Lease, Origin

MAX_UPSTREAMS = 100  # of one client connection to one origin; the default of pool.max_connections_per_service
MAX_IDLE = 50  # the default of pool.max_idle_per_service

MAX_FRUITLESS = 8  # upstreams in a row that were opened for whoever waits, and closed without having served anybody

type Protocol = Literal["http/1", "h2"]


@dataclass(frozen=True, slots=True)
class Assign:
    """Hand this upstream to this request."""

    request: GetUpstream
    lease: Lease


@dataclass(frozen=True, slots=True)
class Open:
    """Open another upstream to this origin, and report it with `opened` or `failed`. `shared`: for small requests."""

    origin: Origin
    shared: bool


@dataclass(frozen=True, slots=True)
class Close:
    """Close this idle upstream."""

    connection: Server


@dataclass(frozen=True, slots=True)
class Refuse:
    """No upstream that is opened does for this request: a defect, and no reason to go on opening them."""

    request: GetUpstream


type Step = Assign | Open | Close | Refuse


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request. `after`: only upstreams that were opened later, or never used, will do; counted as `_State.opened`."""

    request: GetUpstream
    after: int | None


@dataclass(slots=True)
class _State:
    """One origin's. `idle` is in the order of use; `shared` are the HTTP/2 upstreams that take requests."""

    protocol: Protocol | None = None
    opening: int = 0
    opened: int = 0  # so far
    fruitless: int = 0
    waiting: deque[_Asked] = field(default_factory=deque)
    idle: list[Server] = field(default_factory=list)
    busy: set[Server] = field(default_factory=set)
    shared: list[Server] = field(default_factory=list)
    draining: set[Server] = field(default_factory=set)

    @property
    def open(self) -> int:
        return self.opening + len(self.idle) + len(self.busy) + len(self.shared) + len(self.draining)


@dataclass(slots=True)
class _Known:
    """One upstream. `number`: which of its origin's it was to open; `small`: for small requests alone."""

    origin: Origin
    small: bool
    number: int = 0
    used: bool = False


class UpstreamPool:
    """After each call that changes something, `next_step` is to be called until it returns None.

    Args:
        max_upstreams: open at once to one origin; now, as `max_idle`.
        max_idle: kept to one origin.
        is_doubtful: whether an idle upstream had better be replaced by a new one for that request.
    """

    def __init__(
        self,
        max_upstreams: Callable[[], int] = lambda: MAX_UPSTREAMS,
        max_idle: Callable[[], int] = lambda: MAX_IDLE,
        is_doubtful: Callable[[Server, GetUpstream], bool] = lambda *_: False,
    ) -> None:
        self._max_upstreams = max_upstreams
        self._max_idle = max_idle
        self._is_doubtful = is_doubtful
        self._states: dict[Origin, _State] = {}
        self._known: dict[Server, _Known] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, connection: object) -> bool:
        return connection in self._known

    def origin(self, connection: Server) -> Origin:
        """What this upstream is for."""
        return self._known[connection].origin

    def ask(self, request: GetUpstream) -> None:
        """Queues a request."""
        state = self._states.setdefault(request.origin, _State())
        state.waiting.append(_Asked(request, state.opened if request.fresh else None))

    def oldest_stuck(self, origin: Origin) -> GetUpstream | None:
        """The request that has been queued for longest, where no upstream may be opened for it nor is being opened."""
        state = self._states[origin]
        if not state.waiting or state.opening or state.open < self._max_upstreams():
            return None
        return state.waiting[0].request

    def withdraw(self, request: GetUpstream) -> None:
        """Takes the oldest queued request back."""
        withdrawn = self._states[request.origin].waiting.popleft()
        assert withdrawn.request is request  # noqa: S101 - as documented

    def begin(self, origin: Origin, connection: Server, *, shared: bool = False) -> None:
        """An upstream is being opened."""
        self._known[connection] = _Known(origin, shared)
        self._states.setdefault(origin, _State()).opening += 1

    def is_opening(self, connection: Server) -> bool:
        """Whether neither `opened` nor `failed` was told of it yet."""
        known = self._known.get(connection)
        return known is not None and known.number == 0

    def opened(self, connection: Server, protocol: Protocol) -> None:
        """It is open, and speaks this."""
        known = self._known[connection]
        state = self._states[known.origin]
        state.opening -= 1
        state.opened += 1
        known.number = state.opened
        state.protocol = protocol
        (state.shared if protocol == "h2" else state.idle).append(connection)

    def failed(self, connection: Server, has_waited: Callable[[GetUpstream], bool] | None = None) -> list[GetUpstream]:
        """It did not open: returns the requests for which that was the upstream to come.

        `has_waited`: there was no room for it, which is the end only of those that have waited for long enough.
        """
        state = self._states[self._known.pop(connection).origin]
        state.opening -= 1
        if has_waited is not None:
            expired = []
            while state.waiting and has_waited(state.waiting[0].request):
                expired.append(state.waiting.popleft().request)
            return expired
        count = 1 if state.protocol == "http/1" else len(state.waiting)
        return [state.waiting.popleft().request for _ in range(min(count, len(state.waiting)))]

    def release(self, connection: Server) -> None:
        """An HTTP/1 upstream has finished its exchange."""
        state = self._states[self.origin(connection)]
        if connection in state.busy:
            state.busy.remove(connection)
            state.idle.append(connection)

    def drain(self, connection: Server) -> None:
        """An HTTP/2 upstream takes no more requests."""
        state = self._states[self.origin(connection)]
        if connection in state.shared:
            state.shared.remove(connection)
            state.draining.add(connection)

    def is_kept(self, connection: Server) -> bool:
        """Whether it waits for requests; an HTTP/2 one may have some."""
        known = self._known.get(connection)
        state = self._states[known.origin] if known else _State()
        return connection in state.idle or connection in state.shared

    def retire(self, connection: Server) -> None:
        """It is about to be closed, since it serves nobody: it takes no more requests."""
        state = self._states[self.origin(connection)]
        if connection in state.idle:
            state.idle.remove(connection)
        self.drain(connection)

    def forget(self, connection: Server) -> None:
        """It is closed."""
        known = self._known.pop(connection)
        state = self._states[known.origin]
        if known.number and not known.used and state.waiting:
            state.fruitless += 1
        state.busy.discard(connection)
        state.draining.discard(connection)
        for upstreams in (state.idle, state.shared):
            if connection in upstreams:
                upstreams.remove(connection)

    def next_step(self, origin: Origin) -> Step | None:
        """What is to be done now."""
        state = self._states[origin]
        if not state.waiting:
            return Close(state.idle.pop(0)) if len(state.idle) > self._max_idle() else None
        if state.fruitless >= MAX_FRUITLESS:
            state.fruitless = 0
            return Refuse(state.waiting.popleft().request)
        asked = state.waiting[0]
        has_room = state.open < self._max_upstreams()
        if connection := self._choose(state, asked, choosy=has_room):
            return self._assign(state, connection)
        shared = asked.request.small and self._is_http1(state, asked.request)
        if state.protocol != "http/1":
            # one HTTP/2 upstream may do for all; until we know, nobody else opens one
            return Open(origin, shared) if state.opening == 0 and has_room else None
        if state.opening >= len(state.waiting):
            return None
        if has_room:
            return Open(origin, shared)
        return Close(state.idle.pop(0)) if state.idle else None

    def _assign(self, state: _State, connection: Server) -> Step:
        known, request = self._known[connection], state.waiting[0].request
        if connection in state.idle:
            state.idle.remove(connection)
            if known.used and self._is_doubtful(connection, request):  # a new one is as good as it gets
                return Close(connection)
            state.busy.add(connection)
        state.fruitless = 0
        lease = Lease(connection, reused=known.used)
        known.used = True
        return Assign(state.waiting.popleft().request, lease)

    def _choose(self, state: _State, asked: _Asked, *, choosy: bool) -> Server | None:
        """An open upstream for this request. `choosy`: only a good one, since another may be opened."""
        for connection in reversed(state.shared):
            if connection.connected and (self._is_fresh(connection, asked) or not choosy):
                return connection
        for connection in reversed(state.idle):
            # one that is closed leaves when its end is reported
            if connection.connected and self._is_fresh(connection, asked) and self._fits(connection, asked):
                return connection
        return None

    def _is_fresh(self, connection: Server, asked: _Asked) -> bool:
        known = self._known[connection]
        return asked.after is None or not known.used or known.number > asked.after

    def _fits(self, connection: Server, asked: _Asked) -> bool:
        return asked.request.small or not self._known[connection].small

    @staticmethod
    def _is_http1(state: _State, request: GetUpstream) -> bool:
        """Whether the upstream will carry one exchange at a time, as far as it can be told."""
        return state.protocol == "http/1" or (state.protocol is None and not request.from_http2)
