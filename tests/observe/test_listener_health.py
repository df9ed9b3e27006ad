"""A Service that is used through a local listener alone is in use: it is shown, and its pods are checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kubetunnel.core.errors import ServiceNotFound
from kubetunnel.core.settings import ClusterSettings, HealthSettings, RetrySettings, Settings
from kubetunnel.local_ports import LocalPort, LocalPorts
from kubetunnel.observe.health_checks import FIRST_DELAY_S
from kubetunnel.observe.observe import Observe
from kubetunnel.observe.sources import HealthPolicy
from kubetunnel.observe.traffic import ServiceKey
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.upstreams import Upstreams
from kubetunnel.sim.cluster import SimCluster
from tests.observe.test_metrics import Names

ECHO = ServiceKey("cluster.local", "demo", "echo")


class Listening:
    """A tunnel of which only the local ports are used; looks when the test does."""

    def __init__(self, kubeconfig: Path) -> None:
        cluster = ClusterSettings(kubeconfig=str(kubeconfig))
        settings = Settings(cluster=cluster, health=HealthSettings(interval_s=1.0, max_failures=1))
        self.clusters = Clusters(settings)
        router = Router(settings, self.clusters)
        self.ports = LocalPorts(self.clusters)
        self.observe = Observe(
            self.clusters, router, Upstreams(router), Names(), self.ports, health=lambda: HealthPolicy.of(settings)
        )
        self.ports.avoid(self.observe.is_unhealthy)
        self.traffic = self.observe._traffic

    async def open(self, target: str, port: str) -> LocalPort:
        (opened,) = await self.ports.open("", "demo", target, [port])
        return opened

    async def aclose(self) -> None:
        await self.observe.aclose()
        await self.ports.aclose(drain_s=0)
        await self.clusters.aclose()


async def connect(port: LocalPort) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, number = port.addresses[0].rpartition(":")
    return await asyncio.open_connection(host, int(number))


async def say(port: LocalPort, text: bytes = b"hello\n") -> None:
    """What is sent comes back."""
    reader, writer = await connect(port)
    writer.write(text)
    async with asyncio.timeout(10):
        assert await reader.readexactly(len(text)) == text
    writer.close()
    await writer.wait_closed()


@pytest.fixture
async def sim() -> AsyncIterator[SimCluster]:
    async with SimCluster() as cluster:
        yield cluster


@pytest.fixture
async def tunnel(sim: SimCluster, tmp_path: Path) -> AsyncIterator[Listening]:
    made = Listening(sim.kubeconfig(tmp_path / "config"))
    yield made
    await made.aclose()


async def test_its_pods_are_checked_from_the_first_connection_on(sim: SimCluster, tunnel: Listening) -> None:
    port = await tunnel.open("svc/echo", ":tcp")
    await tunnel.observe._look_once()
    assert tunnel.traffic.get(ECHO) is None, "it listens, and nobody uses it"
    await say(port)
    bad = sim.pods("demo", app="echo")[0]
    sim.faults.set(str(bad), 9000, refuse=True)  # only now: no connection has found it so
    states: dict[str, str] = {}
    async with asyncio.timeout(10 + FIRST_DELAY_S):
        while "unhealthy" not in states.values() or "healthy" not in states.values():
            await tunnel.observe._look_once()
            document = tunnel.observe._documents.service(ECHO)
            assert document is not None
            states = {pod["pod"]: pod["health"] for pod in document["pods"]}
            await asyncio.sleep(0.05)
    assert states.pop(bad.name) == "unhealthy"
    assert list(states.values()) == ["healthy"]
    asked = tunnel.clusters.first.opened
    assert asked is not None
    opened = {facts.pod: facts.streams_opened for facts in asked.forwards.forwards()}
    for _ in range(12):
        await say(port)
    now = {facts.pod: facts.streams_opened for facts in asked.forwards.forwards()}
    assert now[bad.name] == opened[bad.name], "no connection tried it"


async def test_a_connection_that_stays_open_is_use(tunnel: Listening) -> None:
    port = await tunnel.open("svc/echo", ":7")
    reader, writer = await connect(port)
    writer.write(b"a")
    await reader.readexactly(1)
    await tunnel.observe._look_once()
    used = tunnel.traffic.of(ECHO)
    used.used_s = 0.0
    await tunnel.observe._look_once()
    assert used.used_s > 0.0
    assert list(used.ports) == [7]
    writer.close()
    await writer.wait_closed()


async def test_what_is_not_there_is_no_service_in_use(sim: SimCluster, tunnel: Listening) -> None:
    tunnel.ports.configure(["svc/nothing -n demo :80"], address="127.0.0.1", retry=RetrySettings())
    await tunnel.ports.apply()
    (port,) = tunnel.ports.ports()
    async with asyncio.timeout(20):
        while port.listener is None:  # noqa: ASYNC110 - nobody sets an event for it
            await asyncio.sleep(0.02)
    reader, _ = await connect(port)
    await tunnel.observe._look_once()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    await tunnel.observe._look_once()
    pod = await tunnel.open("deploy/echo", ":9000")
    await say(pod)
    await tunnel.observe._look_once()
    assert list(tunnel.traffic) == []
    with pytest.raises(ServiceNotFound):
        await tunnel.open("svc/nothing", ":80")
