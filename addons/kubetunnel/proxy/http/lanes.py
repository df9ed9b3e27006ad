"""What the HTTP layer and whoever opens its upstreams tell each other of them.

A layer has no I/O, and a port-forward stream that turns out to run beside a bulky or stalled one is a fact of the
forward (forward/pool.py): HTTP moves to another at its next request. And what a request is like, the opener cannot see.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakSet

from mitmproxy.connection import Connection, Server

from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.proxy.service_connections import ServiceConnections

type Explain = Callable[[KubeTunnelError], None]


@dataclass(slots=True)
class _Opened:
    transport: asyncio.BaseTransport | None
    explain: Explain


class Lanes:
    """Facts of upstreams, for as long as anybody knows these.

    Args:
        connections: bounds what all clients keep.
    """

    def __init__(self, connections: ServiceConnections | None = None) -> None:
        self.connections = connections or ServiceConnections()
        self._shared: WeakSet[Server] = WeakSet()
        self._opened: WeakKeyDictionary[Connection, _Opened] = WeakKeyDictionary()

    # the opener's side

    def is_shared(self, server: Connection) -> bool:
        """Whether it is for small exchanges, so that its stream may share an upgraded connection with others."""
        return server in self._shared

    def opened(self, server: Server, transport: asyncio.BaseTransport, explain: Explain) -> None:
        """It is open.

        Args:
            transport: whose extra info `crowded` is true while the stream has bad neighbours.
            explain: gives a refusal that is about this upstream a command that shows it.
        """
        self._opened[server] = _Opened(transport, explain)

    def closed(self, server: Server) -> None:
        """It is open no more. Its transport knows the whole connection, which would so be kept by its own key."""
        self._opened[server].transport = None

    # the layer's side

    def share(self, server: Server) -> None:
        """To be called before it is opened: it is for small exchanges."""
        self._shared.add(server)

    def is_crowded(self, server: Server) -> bool:
        """Whether another upstream would serve the next request better."""
        opened = self._opened.get(server)
        return bool(opened and opened.transport and opened.transport.get_extra_info("crowded"))

    def explain(self, server: Connection, error: KubeTunnelError) -> None:
        """Gives the refusal a command, where it has none and the upstream is known."""
        if error.command is None and (opened := self._opened.get(server)):
            opened.explain(error)
