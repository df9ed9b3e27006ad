"""A thousand connections opened and dropped within a minute leave nothing behind in the tunnel's process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from kubetunnel.sim.cluster import SimCluster
from tests.proxy.test_troubles import get
from tests.tunnel import Tunnel

CONNECTIONS = 1000
AT_A_TIME = 40
SETTLED_S = 45.0
GROWTH_BYTES = 24 << 20  # of a heap that has been through it once; 25 KiB a connection would show


@pytest_asyncio.fixture
async def tunnel(sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path) -> Tunnel:
    """One that checks no health, which keeps the upstreams of what was in use; the last of them is closed soon."""
    options = ["--set", "kube_health_enabled=false", "--set", "kube_pool_idle_timeout=30s"]
    started: Tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=options)
    return started


async def settled(condition: Callable[[], bool]) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLED_S):
            while not condition():  # noqa: ASYNC110 - another process has no event for it
                await asyncio.sleep(0.25)
    return condition()


async def drop_in_the_middle(tunnel: Tunnel, number: int) -> None:
    """One connection: a whole exchange, or dropped before the request, within it, within the answer; FIN or RST."""
    reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.port)
    path = "/bytes?n=4m" if number % 5 == 3 else "/hostname"
    head = f"GET {path} HTTP/1.1\r\nHost: echo.demo\r\nConnection: close\r\n\r\n".encode()
    match number % 5:
        case 0:
            writer.write(head)
            assert (await reader.read()).startswith(b"HTTP/1.1 200"), "the whole exchange"
        case 1:
            writer.write(head[: number % len(head)])
        case 2:
            writer.write(head)
        case 3:
            writer.write(head)
            assert await reader.readexactly(1000)
        case 4:
            pass
    if number % 2:
        writer.transport.abort()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@pytest.mark.timeout(180)
async def test_connections_that_are_dropped_leave_nothing(sim: SimCluster, tunnel: Tunnel) -> None:
    process = psutil.Process(tunnel.process.pid)

    async def churn(count: int) -> None:
        numbers = iter(range(count))

        async def client() -> None:
            for number in numbers:
                await drop_in_the_middle(tunnel, number)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(AT_A_TIME):
                group.create_task(client())

    await churn(CONNECTIONS // 4)  # what a first use allocates for good
    before_fds, before_bytes = process.num_fds(), process.memory_info().rss
    await churn(CONNECTIONS)
    assert (await get(tunnel, limit_s=10)).status == 200
    await settled(lambda: not sim.faults.upgraded())
    assert sim.faults.upgraded() == 0, "upgraded connections are left"
    await settled(lambda: process.num_fds() <= before_fds)
    left = [str(connection) for connection in process.net_connections()]
    assert process.num_fds() <= before_fds, left
    assert process.memory_info().rss - before_bytes < GROWTH_BYTES
