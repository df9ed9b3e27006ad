"""With several contexts the log says of which one a watch, a forward, a check or a local port is; else it is short."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kubetunnel.core.names import ServiceName
from kubetunnel.core.ports import PortRequest
from kubetunnel.core.settings import ClusterSettings, PoolSettings, Settings, ZoneSettings
from kubetunnel.local_ports import LocalPorts
from kubetunnel.observe.observe import Observe
from kubetunnel.observe.sources import HealthPolicy
from kubetunnel.observe.traffic import ServiceKey
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.upstreams import Upstreams
from kubetunnel.sim.cluster import SimCluster
from tests.observe.test_metrics import Names

PORT = PortRequest(7, explicit=True, scheme="")
OTHER = "other.local"


@pytest.fixture
async def sim() -> AsyncIterator[SimCluster]:
    async with SimCluster() as cluster:
        yield cluster


@pytest.fixture
def settings(sim: SimCluster, tmp_path: Path) -> Settings:
    """A kubeconfig with two contexts, both of the same cluster; the second has no zone yet."""
    path = sim.kubeconfig(tmp_path / "kubeconfig", context="dev")
    config = json.loads(path.read_text())
    config["contexts"].append({**config["contexts"][0], "name": "prod"})
    path.write_text(json.dumps(config))
    return Settings(cluster=ClusterSettings(kubeconfig=str(path)), pool=PoolSettings(idle_timeout_s=0.5))


async def lines(sim: SimCluster, settings: Settings, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is logged of a Service of each zone, from its first use to its last watch."""
    caplog.set_level(logging.INFO, "kubetunnel")
    clusters = Clusters(settings)
    router, ports = Router(settings, clusters), LocalPorts(clusters)
    policy = HealthPolicy(interval_s=0.01, max_failures=1)
    observe = Observe(clusters, router, Upstreams(router), Names(), ports, health=lambda: policy)
    sim.faults.set(None, 9000, refuse=True)
    for zone in clusters.zones:
        upstream = await router.open(await router.find(ServiceName("echo", "demo", zone), PORT))
        upstream.writer.write(b"anybody?")
        with pytest.raises(OSError, match="Nothing listens"):
            await upstream.reader.read()
        upstream.writer.close()
        await ports.open(zone, "demo", "svc/echo", [":7"])
        observe._traffic.of(ServiceKey(zone, "demo", "echo")).use(7, 1e9)
    async with asyncio.timeout(30):
        while sum("unhealthy" in line for line in caplog.messages) < 2 * len(clusters.zones):
            await observe._look_once()
            await asyncio.sleep(0.05)
        await observe.aclose()
        while sum("is let go" in line for line in caplog.messages) < len(clusters.zones):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await ports.aclose(drain_s=0)
    await clusters.aclose()
    wanted = ("Service demo/", "Forward to", "Trying again", "is unhealthy", "requested")
    found = [line for line in caplog.messages if any(word in line for word in wanted)]
    for word in wanted:
        assert any(word in line for line in found), (word, caplog.messages)
    return found


async def test_one_context_is_not_named(sim: SimCluster, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    found = await lines(sim, settings, caplog)
    assert [line for line in found if "context" in line or "dev" in line or "cluster.local" in line] == []


async def test_each_of_several_is_named(sim: SimCluster, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    found = await lines(sim, replace(settings, zones=(ZoneSettings(OTHER, "prod"),)), caplog)
    own = {"dev": "echo.demo.svc.cluster.local:7: ", "prod": f"echo.demo.svc.{OTHER}:7: "}
    of = {
        context: [line for line in found if f" of context {context}" in line or line.startswith(name)]
        for context, name in own.items()
    }
    assert len(of["dev"]) + len(of["prod"]) == len(found), found
    for word in ("is watched", "is let go", "Forward to", "Trying again", "is unhealthy", "requested"):
        assert all(any(word in line for line in each) for each in of.values()), (word, found)


async def test_a_session_that_is_open_learns_of_others(settings: Settings) -> None:
    clusters = Clusters(settings)
    access = (await clusters.first.session()).access
    assert access.of_context == ""
    clusters.configure(replace(settings, zones=(ZoneSettings(OTHER, "prod"),)), None)
    assert access.of_context == " of context dev"
    clusters.configure(settings, None)
    assert access.of_context == ""
    await clusters.aclose()
