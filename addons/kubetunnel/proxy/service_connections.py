"""How many connections there are to one Service, over all clients, and which of them serve nobody.

Each client keeps its own upstreams for its next requests (`http/pool.py`). The sum is bounded here: what is kept too
much is closed, the longest unused first, and so is what is kept by one client while another waits for room. What a
client opened itself (raw, CONNECT, SOCKS5) has no such bound: the client knows how many it needs.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mitmproxy.connection import Connection, ConnectionState

from kubetunnel.core.errors import Timeout
from kubetunnel.core.settings import PoolSettings


class NoRoom(Timeout):
    """The Service has as many connections as it may have, and none of them ended in time."""


@dataclass(frozen=True, slots=True)
class _Known:
    service: str
    close: Callable[[], None]
    is_bounded: bool


class ServiceConnections:
    """To be told of every upstream.

    Args:
        limits: those that hold now.
    """

    def __init__(self, limits: Callable[[], PoolSettings] = PoolSettings) -> None:
        self._limits = limits
        self._open: Counter[str] = Counter()  # the bounded ones
        self._held = 0  # all
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._known: dict[Connection, _Known] = {}
        self._idle: dict[Connection, str] = {}  # the longest unused first; of which Service
        self._idle_of: Counter[str] = Counter()

    @asynccontextmanager
    async def room(self, service: str, wait_s: float | None) -> AsyncIterator[None]:
        """Room for one connection; to be held for as long as there is one. Raises NoRoom where there is none.

        Args:
            wait_s: None for one that its client asked for, which has room at any time.
        """
        if wait_s is not None:
            await self._enter(service, wait_s)
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            if wait_s is not None:
                self._leave(service)

    async def _enter(self, service: str, wait_s: float) -> None:
        self._admit(service)  # the limit may be higher by now
        limit = self._limits().max_connections_per_service
        if self._open[service] < limit:
            self._open[service] += 1
            return
        room = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(service, deque())
        waiting.append(room)
        self._make_room(service)
        try:
            async with asyncio.timeout(wait_s):
                await room
        except BaseException as e:
            if room.done() and not room.cancelled():
                self._leave(service)  # it was ours just when we gave up
            elif room in waiting:
                waiting.remove(room)
            if isinstance(e, TimeoutError):
                raise NoRoom(
                    f"There are as many connections to {service} as pool.max_connections_per_service allows, {limit}, "
                    f"and none of them ended in {wait_s:g} s.",
                    command=f"KTUN_MAX_CONNS_HOST={2 * limit} kube-tunnel",
                ) from None
            raise
        finally:
            # by now it may be another queue than ours: who came when ours was empty began one
            if not self._waiting.get(service):
                self._waiting.pop(service, None)

    def _leave(self, service: str) -> None:
        self._open[service] -= 1
        self._admit(service)
        if not self._open[service]:
            del self._open[service]

    def _admit(self, service: str) -> None:
        """Lets in who waits, in turn, as far as there is room."""
        waiting = self._waiting.get(service, ())
        while waiting and self._open[service] < self._limits().max_connections_per_service:
            room = waiting.popleft()
            if not room.done():
                self._open[service] += 1
                room.set_result(None)

    @property
    def in_use(self) -> int:
        """Those that serve somebody, or are being opened."""
        return self._held - len(self._idle)

    # those that are kept

    def opened(
        self, connection: Connection, service: str, close: Callable[[], None], *, is_bounded: bool = True
    ) -> None:
        """It is open. `close` ends it. `is_bounded`: another one gets its room then."""
        self._known[connection] = _Known(service, close, is_bounded)

    def closed(self, connection: Connection) -> None:
        """It is not any more."""
        self._known.pop(connection, None)
        self.used(connection)

    def used(self, connection: Connection) -> None:
        """It serves somebody."""
        if (service := self._idle.pop(connection, None)) is not None:
            self._idle_of[service] -= 1
            if not self._idle_of[service]:
                del self._idle_of[service]

    def idle(self, connection: Connection) -> None:
        """It serves nobody. Closes what is kept too much."""
        known = self._known.get(connection)
        if known is None:
            return
        limits, service = self._limits(), known.service
        self.used(connection)
        self._idle[connection] = service
        self._idle_of[service] += 1
        if self._waiting.get(service):
            self._make_room(service)
        if self._idle_of[service] > limits.max_idle_per_service:
            self._close(next(self._idle_ones(service)))
        while len(self._idle) > limits.max_idle:
            self._close(next(iter(self._idle)))

    def _idle_ones(self, service: str) -> Iterator[Connection]:
        """The longest unused first."""
        return (connection for connection, its in self._idle.items() if its == service)

    def _make_room(self, service: str) -> None:
        oldest = next((idle for idle in self._idle_ones(service) if self._known[idle].is_bounded), None)
        if oldest is not None:
            self._close(oldest)

    def _close(self, connection: Connection) -> None:
        self.used(connection)
        connection.state &= ~ConnectionState.CAN_WRITE  # its client takes it for none that it may still use
        self._known[connection].close()
