"""The layers hear of a connection's end, however often its task is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from mitmproxy import options
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server import ConnectionIO, SimpleConnectionHandler

from kubetunnel.proxy import untraced

TIMEOUT_S = 10.0
LISTENS_NOWHERE = 1


class Listener(layer.Layer):
    """Keeps what it is told."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        self.heard = [*getattr(self, "heard", []), event]
        yield from ()


@pytest.fixture
async def handler() -> AsyncIterator[SimpleConnectionHandler]:
    """A client's, with one upstream; both have a peer that says nothing."""
    pairs = [socket.socketpair() for _ in range(2)]
    client, upstream = [await asyncio.open_connection(sock=ours) for ours, _ in pairs]
    mode = ProxyMode.parse("regular")
    handler = SimpleConnectionHandler(*client, options.Options(), mode, {})  # type: ignore[no-untyped-call]
    handler.layer = Listener(handler.layer.context)
    server = Server(address=("127.0.0.1", LISTENS_NOWHERE))
    server.state = ConnectionState.OPEN
    handler.transports[server] = ConnectionIO(reader=upstream[0], writer=upstream[1])
    untraced.attach(handler)  # type: ignore[arg-type]  # it has no master, which nobody asks for
    yield handler
    for _, writer in (client, upstream):
        writer.close()
        await writer.wait_closed()
    for _, peer in pairs:
        peer.close()


@pytest.mark.parametrize("factory", [None, asyncio.eager_task_factory], ids=["lazy", "eager"])
@pytest.mark.parametrize("cancellations", [1, 2, 3, 4])
async def test_end_is_told(handler: SimpleConnectionHandler, factory: object, cancellations: int) -> None:
    asyncio.get_running_loop().set_task_factory(factory)  # type: ignore[arg-type]
    upstream = next(connection for connection in handler.transports if isinstance(connection, Server))
    io = handler.transports[upstream]
    io.handler = asyncio.get_running_loop().create_task(handler.handle_connection(upstream))
    await asyncio.sleep(0)
    async with handler._server_event_lock:  # another task's event
        for _ in range(cancellations):
            io.handler.cancel()
            for _ in range(3):
                await asyncio.sleep(0)
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.wait([io.handler])
    assert io.handler.cancelled()
    assert upstream not in handler.transports
    assert upstream.state is ConnectionState.CLOSED
    assert isinstance(handler.layer, Listener)
    assert [type(event) for event in handler.layer.heard] == [events.ConnectionClosed]
