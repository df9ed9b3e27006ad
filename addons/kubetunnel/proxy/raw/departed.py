"""Which of mitmproxy's clients have gone away, where reading would not tell: `forward.departed` asks the kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from mitmproxy.connection import Client

from kubetunnel.forward.departed import ClientSockets


def departed(clients: Iterable[Client]) -> list[Client]:
    """Those of the clients whose end of the connection is in no program's hands. None where that cannot be told."""
    asked = list(clients)
    if not asked:
        return []
    with contextlib.closing(ClientSockets()) as sockets:
        return [client for client in asked if sockets.is_departed(client.peername[:2], client.sockname[:2])]
