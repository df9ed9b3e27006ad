"""The connections to a Service, over all clients: how many there may be, who waits, and which are closed for others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.connection import ConnectionState, Server

from kubetunnel.core.settings import PoolSettings
from kubetunnel.proxy.service_connections import NoRoom, ServiceConnections
from kubetunnel.sim.cluster import SimCluster
from tests.proxy.loopback import connect, received, socks5
from tests.tunnel import Answer, Tunnel

API, WEB = "api.shop.svc.cluster.local", "web.shop.svc.cluster.local"
LONG_S = 60.0


class Kept:
    """Connections that are kept; `closed` has the numbers of those that were closed."""

    def __init__(self, limits: PoolSettings) -> None:
        self.connections = ServiceConnections(lambda: limits)
        self.servers: list[Server] = []
        self.closed: list[int] = []

    def open(self, service: str = API, *, idle: bool = True, is_bounded: bool = True) -> Server:
        server = Server(address=(service, 80))
        server.state = ConnectionState.OPEN
        number = len(self.servers)
        self.servers.append(server)
        close = partial(self.closed.append, number)
        self.connections.opened(server, service, close, is_bounded=is_bounded)
        if idle:
            self.connections.idle(server)
        return server


def limits(**given: int) -> PoolSettings:
    return PoolSettings(**given)


def test_the_longest_unused_go_first() -> None:
    kept = Kept(limits(max_idle=3, max_idle_per_service=2))
    kept.open(API), kept.open(API), kept.open(WEB)
    assert not kept.closed
    kept.open(API)
    assert kept.closed == [0]  # too many of its Service
    kept.connections.idle(kept.servers[1])  # used again, so it is not the next to go
    kept.open(WEB)
    assert kept.closed == [0, 2]  # too many in all
    assert not kept.servers[2].connected


def test_what_is_in_use_or_gone_does_not_count() -> None:
    kept = Kept(limits(max_idle=1, max_idle_per_service=1))
    kept.connections.used(kept.open())
    kept.connections.closed(kept.open())
    kept.open(idle=False)
    kept.open()
    assert not kept.closed


async def test_who_comes_too_many_waits_for_one_that_ends() -> None:
    connections = ServiceConnections(lambda: limits(max_connections_per_service=2))
    order: list[int] = []

    async def one(number: int) -> None:
        async with connections.room(API, LONG_S):
            order.append(number)

    async with AsyncExitStack() as first, connections.room(API, LONG_S):
        await first.enter_async_context(connections.room(API, LONG_S))
        async with connections.room(WEB, LONG_S):  # another Service's are its own
            pass
        waiting = [asyncio.create_task(one(number)) for number in range(3)]
        await asyncio.sleep(0)
        assert not order
        assert connections._open[API] == 2
        waiting[1].cancel()
        await first.aclose()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert order == [0, 2]
    assert connections._open[API] == 0


async def test_who_comes_while_others_are_let_in_is_not_forgotten() -> None:
    connections = ServiceConnections(lambda: limits(max_connections_per_service=2))
    leave = asyncio.Event()
    inside: list[str] = []

    async def one(name: str) -> None:
        async with connections.room(API, LONG_S):
            inside.append(name)
            await leave.wait()

    async with AsyncExitStack() as first, AsyncExitStack() as second:
        await first.enter_async_context(connections.room(API, LONG_S))
        await second.enter_async_context(connections.room(API, LONG_S))
        tasks = [asyncio.create_task(one(name)) for name in "ab"]
        await asyncio.sleep(0)
        # in one round of the loop: a is let in, c comes, b is let in
        await first.aclose()
        tasks.append(asyncio.create_task(one("c")))
        await second.aclose()
    await asyncio.sleep(0)
    assert inside == ["a", "b"]
    leave.set()
    async with asyncio.timeout(LONG_S / 2):
        await asyncio.gather(*tasks)
    assert inside == ["a", "b", "c"]
    assert not connections._waiting


async def test_more_room_is_for_those_who_wait_already() -> None:
    limit = limits(max_connections_per_service=1)
    connections = ServiceConnections(lambda: limit)
    order: list[int] = []

    async def one(number: int) -> None:
        async with connections.room(API, LONG_S):
            order.append(number)

    async with connections.room(API, LONG_S):
        first = asyncio.create_task(one(1))
        await asyncio.sleep(0)
        limit = limits(max_connections_per_service=2)
        await asyncio.gather(first, one(2))
        assert order == [1, 2]


async def test_nobody_waits_for_ever() -> None:
    connections = ServiceConnections(lambda: limits(max_connections_per_service=1))
    async with connections.room(API, LONG_S):
        with pytest.raises(NoRoom, match=r"as many connections to api\.shop.* allows, 1,"):
            async with connections.room(API, 0.01):
                pass
        assert connections._open[API] == 1
    async with connections.room(API, 0.01):
        pass


async def test_what_a_client_opened_itself_has_room_at_any_time() -> None:
    connections = ServiceConnections(lambda: limits(max_connections_per_service=1))
    async with connections.room(API, None), connections.room(API, None), connections.room(API, 0.01):
        assert connections.in_use == 3
    assert connections.in_use == 0


async def test_what_is_kept_for_nobody_makes_room() -> None:
    kept = Kept(limits(max_connections_per_service=1))
    async with AsyncExitStack() as first:
        await first.enter_async_context(kept.connections.room(API, LONG_S))
        kept.open(WEB)
        kept.open(API, is_bounded=False)  # its end is nobody's room
        server = kept.open(API)

        async def second() -> None:
            async with kept.connections.room(API, LONG_S):
                pass

        waiting = asyncio.create_task(second())
        await asyncio.sleep(0)
        assert kept.closed == [2]
        kept.connections.closed(server)
        await first.aclose()
        await waiting


async def test_what_gets_free_while_somebody_waits_is_not_kept() -> None:
    kept = Kept(limits(max_connections_per_service=1))
    async with kept.connections.room(API, LONG_S):
        server = kept.open(API, idle=False)
        waiting = asyncio.create_task(kept.connections.room(API, LONG_S).__aenter__())
        await asyncio.sleep(0)
        assert not kept.closed
        kept.connections.idle(server)
        assert kept.closed == [0]
    await waiting
    assert kept.connections._open[API] == 1


# through the tunnel


def keep_alive(tunnel: Tunnel, path: str) -> socket.socket:
    """A client that asks, has the head of its answer, and stays."""
    client = connect(tunnel.port)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: echo.demo\r\n\r\n".encode())
    assert client.recv(4096).startswith(b"HTTP/1.1 200")
    return client


async def test_one_client_too_many_is_told_so_and_idle_ones_make_room(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    options = ["--set", "kube_pool_max_connections_per_service=1", "--set", "kube_response_header_timeout=1s"]
    tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=options)

    def ask() -> tuple[Answer, Answer]:
        with keep_alive(tunnel, "/hostname"):  # whose connection to the pod is kept, for nobody
            first = tunnel.get("echo.demo")
        with keep_alive(tunnel, "/stream?n=1000&interval=1"):
            return first, tunnel.get("echo.demo")

    idle, busy = await asyncio.to_thread(ask)
    assert idle.status == 200
    assert (busy.status, busy.reason) == (504, "Timeout")
    assert (
        "as many connections to echo.demo.svc.cluster.local as pool.max_connections_per_service allows, 1, "
        in busy.json["detail"]
    )
    again = await asyncio.to_thread(tunnel.get, "echo.demo", timeout_s=20)
    assert again.status == 200, "the client that streamed has left"


async def test_raw_connections_have_no_bound_but_their_clients(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    options = ["--set", "kube_pool_max_connections_per_service=1", "--set", "kube_response_header_timeout=1s"]
    tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=options)

    def ask() -> Answer:
        with ExitStack() as open_at_once:
            for number in range(5):
                client = open_at_once.enter_context(socks5(tunnel.port, "echo.demo", 7))
                client.sendall(b"%d" % number)
                assert received(client, 1) == b"%d" % number
            return tunnel.get("echo.demo")

    assert (await asyncio.to_thread(ask)).status == 200
