"""What is done to a client's connection when it comes in."""

from __future__ import annotations

import asyncio
import random
import socket
import warnings
from collections.abc import Iterator
from typing import cast

import pytest
from mitmproxy.connection import Client
from mitmproxy.proxy.server import ConnectionIO

from kubetunnel.core.settings import Settings
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.routing import Router

with warnings.catch_warnings():  # mitmproxy's filters use former names of pyparsing
    warnings.simplefilter("ignore", DeprecationWarning)
    from mitmproxy.proxy.mode_servers import ProxyConnectionHandler

    from kubetunnel.proxy.upstreams import Upstreams


class Handler:
    """What of a connection handler is asked for."""

    def __init__(self, client: Client, writer: asyncio.StreamWriter) -> None:
        self.client = client
        self.transports = {client: ConnectionIO(writer=writer)}


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with client, accepted:
        yield client, accepted


@pytest.mark.parametrize(("peer", "is_probed"), [("192.0.2.7", True), ("127.0.0.1", False), ("::1", False)])
async def test_of_a_client_on_another_machine_it_is_asked_whether_it_is_still_there(
    ends: tuple[socket.socket, socket.socket], peer: str, is_probed: bool
) -> None:
    _, writer = await asyncio.open_connection(sock=ends[1])
    client = Client(peername=(peer, 50000), sockname=("127.0.0.1", 8080), timestamp_start=0)
    upstreams = Upstreams(Router(Settings(), Clusters(Settings()), random.Random(1)))
    upstreams.attach(cast("ProxyConnectionHandler", Handler(client, writer)))
    accepted = writer.get_extra_info("socket")
    assert bool(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is is_probed
    writer.close()
    await writer.wait_closed()
