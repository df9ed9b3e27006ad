"""What goes wrong in the simulated cluster's data path: switches that tests turn while forwards run.

A rule is about a pod ("namespace/name"), about a port, about both or, with neither, about everything; all rules that
match apply. Rules of ports act where the runtime dials the pod, rules of connections where the upgraded connection
reaches the node. The API server's own troubles (restart, expired credentials) are not here but in cluster.py.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

logger = logging.getLogger(__name__)


class Protocols(enum.Flag):
    """The port-forward protocols that the way to the runtime lets through."""

    TUNNEL = enum.auto()  # WebSocket SPDY/3.1+portforward.k8s.io (KEP-4006)
    SPDY = enum.auto()
    V4 = enum.auto()  # WebSocket v4.channel.k8s.io and v4.base64.channel.k8s.io

    MODERN = TUNNEL | SPDY | V4  # Kubernetes from 1.31
    OLD = SPDY | V4  # before 1.30
    NO_SPDY = TUNNEL | V4  # a modern server behind a proxy that passes no unknown Upgrade on
    V4_ONLY = V4  # an old server behind such a proxy


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong in one place.

    Of a port:
        refuse: nothing listens there.
        reset: new connections are reset at once, running ones at their next byte.
        stall: the pod's process hangs: it neither reads nor writes.
    Of whole upgraded connections, never of a single port:
        swallow: they stay open and nothing is answered any more, pings neither; new upgrades hang. What was sent
            meanwhile arrives when the switch is turned back.
        dead_node: the node is gone. An API server that tunnels does not tell its client: the connection stays open and
            silent for ever. Upgraded in SPDY or v4, it ends at once. New upgrades are answered with a 500.
        latency_s: seconds that each read from the client comes later: one more round trip.
    """

    refuse: bool = False
    reset: bool = False
    stall: bool = False
    swallow: bool = False
    dead_node: bool = False
    latency_s: float = 0.0


NO_FAULT = Fault()


@dataclass(eq=False, slots=True)
class Upgraded:
    """An upgraded connection that runs. `silenced`: its node is gone and nobody tells the client."""

    pod: str
    transport: asyncio.WriteTransport
    tunnel: bool
    silenced: bool = False


class Faults:
    """The switches of one simulated cluster, and the upgraded connections that they can cut.

    Attributes:
        protocols: what a port-forward may be upgraded to.
        ipv6_localhost: whether `localhost` has an IPv6 address on the nodes, which the runtime's second dial needs.
    """

    def __init__(self) -> None:
        self.protocols = Protocols.MODERN
        self.ipv6_localhost = True
        self._rules: dict[tuple[str | None, int | None], Fault] = {}
        self._changed = asyncio.Event()
        self._upgraded: set[Upgraded] = set()

    def set(self, pod: str | None = None, port: int | None = None, **changes: bool | float) -> None:
        """Change some fields of one rule (see `Fault`), from now on.

        Raises ValueError where a fault of connections is asked for on a port, TypeError for an unknown field.
        """
        fault = replace(self._rules.get((pod, port), NO_FAULT), **changes)  # type: ignore[arg-type]
        if port is not None and (fault.swallow or fault.dead_node or fault.latency_s):
            raise ValueError("swallow, dead_node and latency_s are about whole connections, not about a port")
        self._rules[pod, port] = fault
        logger.info("faults: %s:%s now %s", pod or "all pods", port or "*", fault)
        self._wake()
        if fault.dead_node:
            self._lose_node(pod)

    def clear(self) -> None:
        """Forget every rule. Connections whose node died stay silent; the protocols stay as they are."""
        self._rules.clear()
        self._wake()

    def at(self, pod: str, port: int | None = None) -> Fault:
        """All that is wrong there. Without a port: what is wrong with the pod's upgraded connections."""
        if not self._rules:
            return NO_FAULT
        keys = dict.fromkeys([(None, None), (pod, None), (None, port), (pod, port)])
        found = [self._rules[key] for key in keys if key in self._rules]
        return Fault(
            **{field.name: max(getattr(fault, field.name) for fault in (NO_FAULT, *found)) for field in fields(Fault)}
        )

    async def pass_port(self, pod: str, port: int) -> None:
        """Return when the pod's process would move another byte. Raises ConnectionResetError where it resets."""
        while self._rules:
            fault = self.at(pod, port)
            if fault.reset:
                raise ConnectionResetError
            if not fault.stall:
                return
            await self._changed.wait()

    async def pass_connection(self, connection: Upgraded) -> None:
        """Return when the node would see, or send, another byte of this connection."""
        while connection.silenced or (self._rules and self.at(connection.pod).swallow):
            await self._changed.wait()

    async def pass_upgrade(self, pod: str) -> None:
        """Return when the node would answer an upgrade."""
        while self.at(pod).swallow:
            await self._changed.wait()

    @contextmanager
    def track(self, pod: str, transport: asyncio.WriteTransport, *, tunnel: bool) -> Iterator[Upgraded]:
        """An upgraded connection, as long as it runs."""
        connection = Upgraded(pod, transport, tunnel)
        self._upgraded.add(connection)
        try:
            yield connection
        finally:
            self._upgraded.discard(connection)

    def upgraded(self, pod: str | None = None) -> int:
        """How many upgraded connections run."""
        return sum(1 for connection in self._upgraded if pod in (None, connection.pod))

    def cut(self, pod: str | None = None, *, share: float = 1.0, rng: random.Random | None = None) -> int:
        """Cut the upgraded connections of a pod, or all: each with the probability `share`. Returns how many it cut."""
        draw = (rng or random.Random()).random  # noqa: S311 - faults, no secret
        cut = [connection for connection in self._upgraded if pod in (None, connection.pod) and draw() < share]
        for connection in cut:
            connection.transport.abort()
        logger.info("faults: cut %s upgraded connections of %s", len(cut), pod or "all pods")
        return len(cut)

    def _lose_node(self, pod: str | None) -> None:
        for connection in self._upgraded:
            if pod in (None, connection.pod):
                if connection.tunnel:
                    connection.silenced = True
                else:
                    connection.transport.abort()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
