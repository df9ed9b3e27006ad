"""Listeners at loopback addresses, one address a Service, for those who are not root (the contract's section 7).

Linux lets any user listen at every address of 127.0.0.0/8. A Service's own ports are listened at when its name is
asked for, and their connections are served as if they had come to the tunnel's port; the address tells the Service.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from kubetunnel.core.errors import NotForwardable
from kubetunnel.core.vips import Address
from kubetunnel.forward.local_sockets import BACKLOG

logger = logging.getLogger(__name__)

IDLE_TIMEOUT_S = 300.0  # the contract's pool.idle_timeout
MAX_LISTENERS = 256  # sockets; a quarter of the usual limit of open files

PRIVILEGED_OFFSET = 10_000  # where a port may not be bound

type Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Listening:
    """The listeners of one name. `servers` is by Service port; None: it can be bound nowhere."""

    name: str
    address: Address
    used_at_s: float
    servers: dict[int, asyncio.Server | None] = field(default_factory=dict)
    connections: int = 0

    @property
    def sockets(self) -> int:
        return sum(server is not None for server in self.servers.values())


class LoopbackListeners:
    """Opens and closes listeners.

    Args:
        accept: serves a connection until it ends.
        idle_timeout_s: listeners of a name that nobody asks for and that have no connection are closed after it.
        max_listeners: sockets at a time; when they are used up, the longest unused ones make room.
    """

    def __init__(
        self, accept: Accept, *, idle_timeout_s: float = IDLE_TIMEOUT_S, max_listeners: int = MAX_LISTENERS
    ) -> None:
        self._accept = accept
        self._idle_timeout_s = idle_timeout_s
        self._max_listeners = max_listeners
        self._names: dict[str, _Listening] = {}
        self._service_ports: dict[tuple[Address, int], int] = {}
        self._opening = asyncio.Lock()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._closed = False

    def service_port(self, address: Address, port: int) -> int:
        """The Service port that the listener at this address and port stands for."""
        return self._service_ports.get((address, port), port)

    async def open(self, name: str, address: Address, ports: Iterable[int]) -> None:
        """Listens at `address` for the name's ports; what is open already is kept, and counts as used.

        Raises:
            NotForwardable: there are too many listeners, or the address cannot be listened at.
        """
        wanted = set(ports)
        listening = self._names.get(name)
        if listening is None or not wanted <= listening.servers.keys():
            async with self._opening:
                listening = await self._open(name, address, wanted)
        listening.used_at_s = asyncio.get_running_loop().time()

    async def _open(self, name: str, address: Address, wanted: set[int]) -> _Listening:
        now_s = asyncio.get_running_loop().time()
        listening = self._names.get(name) or _Listening(name, address, now_s)
        missing = sorted(wanted - listening.servers.keys())
        self._make_room(listening, len(missing))
        self._names[name] = listening
        for port in missing:
            server = await self._bind(listening, port, wanted)
            if self._closed or self._names.get(name) is not listening:
                if server is not None:
                    server.close()
                raise NotForwardable(f"The listeners of {name} were closed while they were opened.")
            listening.servers[port] = server
        if wanted and not listening.sockets:
            self._close(listening, "none of its ports can be listened at")
            raise NotForwardable(
                f"{name} gets no listener: {address} cannot be listened at, at none of the ports "
                f"{', '.join(map(str, sorted(wanted)))}."
            )
        if missing:
            logger.info("%s is listened for at %s, ports %s.", name, address, ", ".join(map(str, sorted(wanted))))
        if self._idle_timer is None:
            self._look_later(now_s + self._idle_timeout_s)
        return listening

    def _make_room(self, keep: _Listening, needed: int) -> None:
        used = sum(each.sockets for each in self._names.values())
        idle: list[_Listening] = []
        for each in sorted(self._names.values(), key=lambda each: each.used_at_s):
            if used + needed > self._max_listeners and not each.connections and each is not keep:
                used -= each.sockets
                idle.append(each)
        if used + needed > self._max_listeners:
            raise NotForwardable(
                f"{keep.name} gets no listeners: it needs {needed}, {used} are in use, and there are "
                f"{self._max_listeners} at most."
            )
        for each in idle:
            self._close(each, "to make room")

    async def _bind(self, listening: _Listening, port: int, wanted: set[int]) -> asyncio.Server | None:
        serve = partial(self._serve, listening)
        reason = ""
        for number in (port, port + PRIVILEGED_OFFSET):
            # a Service's own port comes before another one's stand-in
            if number > 65535 or (number != port and (number in wanted or number in listening.servers)):
                continue
            try:
                server = await asyncio.start_server(serve, str(listening.address), number, backlog=BACKLOG)
            except OSError as e:
                reason = e.strerror or str(e)
                continue
            self._service_ports[listening.address, number] = port
            if number != port:
                where = listening.address
                logger.info("%s port %d: listening at %s:%d, since %s.", listening.name, port, where, number, reason)
            return server
        logger.warning("%s port %d: no listener at %s: %s.", listening.name, port, listening.address, reason)
        return None

    async def _serve(self, listening: _Listening, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        listening.connections += 1
        try:
            await self._accept(reader, writer)
        finally:
            listening.connections -= 1
            listening.used_at_s = asyncio.get_running_loop().time()

    def keep(self, service: str, ports: Iterable[int]) -> None:
        """Closes the listeners of a Service, and of its Pods' names, for ports that are not among these."""
        kept = set(ports)
        for listening in [each for each in self._names.values() if f".{each.name}".endswith(f".{service}")]:
            for port in listening.servers.keys() - kept:
                self._close_port(listening, port)
            if not kept:
                self._close(listening, "the Service is no more")

    def _close_port(self, listening: _Listening, port: int) -> None:
        server = listening.servers.pop(port)
        if server is not None:
            number = server.sockets[0].getsockname()[1]
            self._service_ports.pop((listening.address, number), None)
            server.close()  # connections go on

    def _close(self, listening: _Listening, reason: str) -> None:
        for port in list(listening.servers):
            self._close_port(listening, port)
        if self._names.pop(listening.name, None) is not None:
            logger.info("%s is not listened for at %s any more: %s.", listening.name, listening.address, reason)

    def _look_later(self, at_s: float) -> None:
        self._idle_timer = asyncio.get_running_loop().call_at(at_s, self._close_idle)

    def _close_idle(self) -> None:
        now_s = asyncio.get_running_loop().time()
        for listening in list(self._names.values()):
            if not listening.connections and now_s - listening.used_at_s >= self._idle_timeout_s:
                self._close(listening, f"not used for {self._idle_timeout_s:g} s")
        self._idle_timer = None
        if self._names:
            # one with a connection is not idle before that ends
            ends = [now_s if each.connections else each.used_at_s for each in self._names.values()]
            self._look_later(min(ends) + self._idle_timeout_s)

    def close(self) -> None:
        """Ends all listeners, for good; connections go on."""
        self._closed = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for listening in list(self._names.values()):
            self._close(listening, "the tunnel ends")
