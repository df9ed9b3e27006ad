"""Clients that leave while nothing is read of them, since their pod reads nothing: HTTP/1, HTTP/2, and half-closed."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.objects import Port, ServiceSpec
from tests.proxy import loopback
from tests.proxy.loopback import connect
from tests.tunnel import Tunnel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux' /proc")

POD_PORT = 7005
LIMIT_S = 10.0
PIECE = bytes(1 << 20)
ESTABLISHED = 1  # include/net/tcp_states.h


@pytest_asyncio.fixture
async def tunnel(sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path) -> Tunnel:
    """One that tells of each upstream."""
    options = ["--set", "kube_log_level=debug"]
    started: Tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=options)
    return started


class DeafPod:
    """Takes connections, does not read what is no GET, never answers, and knows when one is over."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await reader.readexactly(3)) != b"GET":
            cast("asyncio.Transport", writer.transport).pause_reading()
        self.begun.set()
        connection = writer.get_extra_info("socket")
        while connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)
        self.ended.set()


@pytest.fixture
async def pod(sim: SimCluster) -> AsyncIterator[DeafPod]:
    pod = DeafPod()
    workload = sim.pod("demo", "pair").workload
    assert workload is not None
    await workload.listen(POD_PORT, pod.serve)
    await sim.add_service(ServiceSpec("demo", "deaf", (Port(80, "http", POD_PORT),), {"app": "pair"}))
    yield pod


def fill(client: socket.socket) -> None:
    """Sends until nothing more is taken."""
    client.settimeout(1.0)
    with pytest.raises(TimeoutError):
        for _ in range(512):
            client.send(PIECE)


@pytest.mark.parametrize("leave", [socket.socket.close, loopback.reset])
async def test_in_the_middle_of_an_upload(sim: SimCluster, tunnel: Tunnel, pod: DeafPod, leave: Any) -> None:
    client = await asyncio.to_thread(connect, tunnel.port)
    client.sendall(b"PUT / HTTP/1.1\r\nHost: deaf.demo\r\nContent-Length: 99999999999\r\n\r\n")
    await asyncio.to_thread(fill, client)
    assert pod.begun.is_set()
    assert "client disconnect" not in tunnel.log
    leave(client)
    # the pod itself cannot know: what would tell it waits behind what it does not read
    await asyncio.to_thread(tunnel.wait_for, r"Upstream 1 to demo/pair closed", LIMIT_S)
    await asyncio.to_thread(tunnel.wait_for, "client disconnect", LIMIT_S)


async def test_that_only_sends_no_more_at_first(tunnel: Tunnel, pod: DeafPod) -> None:
    client = await asyncio.to_thread(connect, tunnel.port)
    client.sendall(b"GET / HTTP/1.1\r\nHost: deaf.demo\r\n\r\n")
    client.shutdown(socket.SHUT_WR)
    async with asyncio.timeout(LIMIT_S):
        await pod.begun.wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.5):  # it waits for its answer
            await pod.ended.wait()
    client.close()
    async with asyncio.timeout(LIMIT_S):
        await pod.ended.wait()
