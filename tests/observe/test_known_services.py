"""Which Services are shown, for how long, and how fresh what is shown of them is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kubetunnel.core.errors import ServiceNotFound
from kubetunnel.core.settings import ClusterSettings, PoolSettings, Settings
from kubetunnel.local_ports import LocalPorts
from kubetunnel.observe import known_services
from kubetunnel.observe.metrics import Metrics
from kubetunnel.observe.observe import Observe
from kubetunnel.observe.traffic import SHOWN_S, Done, ServiceKey
from kubetunnel.proxy.clusters import Clusters, Session
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.upstreams import Upstreams
from kubetunnel.sim.cluster import SimCluster
from tests.observe.test_metrics import Names

ECHO = ServiceKey("cluster.local", "demo", "echo")
PAIR = ServiceKey("cluster.local", "demo", "pair")


class Watched:
    """Observes a cluster whose watches end soon; looks when the test does."""

    def __init__(self, kubeconfig: Path) -> None:
        settings = Settings(cluster=ClusterSettings(kubeconfig=str(kubeconfig)), pool=PoolSettings(idle_timeout_s=0.2))
        self.clusters = Clusters(settings)
        router = Router(settings, self.clusters)
        self.observe = Observe(self.clusters, router, Upstreams(router), Names(), LocalPorts(self.clusters))
        self.traffic, self.documents = self.observe._traffic, self.observe._documents

    async def session(self) -> Session:
        session = await self.clusters.first.session()
        await self.observe._look_once()
        return session

    async def shown(self) -> list[str]:
        await self.observe._look_once()
        return [document["service"] for document in self.documents.services()]

    def document(self, key: ServiceKey) -> dict[str, Any]:
        found = self.documents.service(key)
        assert found is not None
        return found

    async def let_go(self, key: ServiceKey) -> None:
        session = await self.clusters.first.session()
        async with asyncio.timeout(10):
            while (key.namespace, key.service) in session.discovery.watched():  # noqa: ASYNC110 - nobody sets an event for it
                await asyncio.sleep(0.02)


@pytest.fixture
async def sim() -> AsyncIterator[SimCluster]:
    async with SimCluster() as cluster:
        yield cluster


@pytest.fixture
async def watched(sim: SimCluster, tmp_path: Path) -> AsyncIterator[Watched]:
    made = Watched(sim.kubeconfig(tmp_path / "config"))
    yield made
    await made.observe.aclose()
    await made.clusters.aclose()


async def test_a_service_that_was_only_asked_for_is_shown_while_it_is_watched(watched: Watched) -> None:
    session = await watched.session()
    await session.discovery.service("demo", "echo")
    assert await watched.shown() == ["echo"]
    await watched.let_go(ECHO)
    assert await watched.shown() == []


async def test_a_service_that_was_used_is_shown_for_longer(watched: Watched) -> None:
    session = await watched.session()
    await session.discovery.service("demo", "echo")
    traffic = watched.traffic.of(ECHO)
    watched.traffic.add(traffic, Done("http1", "200", False, 0.1), traffic.used_s)
    await watched.let_go(ECHO)
    assert await watched.shown() == ["echo"]
    assert watched.document(ECHO)["as_of"] is not None
    traffic.used_s -= SHOWN_S
    assert await watched.shown() == []
    assert watched.documents.service(ECHO) is None
    assert watched.documents.flows()["total"] == 1  # totals stay
    traffic.upstreams = 1
    assert await watched.shown() == ["echo"]


async def test_pods_of_a_service_that_nobody_watches_are_told_as_of_then(watched: Watched, sim: SimCluster) -> None:
    session = await watched.session()
    metrics = Metrics(
        watched.traffic, watched.observe._forwards, watched.observe._known, watched.observe._checks, Names(), dict
    )
    started_at = time.time()
    watched.traffic.of(PAIR)
    await sim.set_ready("demo", "pair", False)
    await session.discovery.service("demo", "pair")
    now = watched.document(PAIR)
    assert (now["as_of"], now["health"], now["total"]) == (None, "unhealthy", 1)
    assert metrics.totals()["endpoints"] == {"true": 0.0, "false": 1.0}
    await watched.let_go(PAIR)
    await watched.observe._look_once()
    then = watched.document(PAIR)
    assert (then["health"], then["ready"], then["total"]) == ("unknown", 0, 1)
    assert started_at < then["as_of"] <= time.time()
    await watched.observe._look_once()
    assert watched.document(PAIR) == then, "it is not told anew each second"
    assert watched.documents.status()["services"][0]["as_of"] == then["as_of"]
    assert metrics.totals()["endpoints"] == {}
    await session.discovery.service("demo", "pair")  # used again
    assert (watched.document(PAIR)["as_of"], watched.document(PAIR)["health"]) == (None, "unhealthy")


async def test_what_a_broken_watch_left_is_told_as_of_then(
    watched: Watched, sim: SimCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_services, "STALE_S", 0.5)
    session = await watched.session()
    session.discovery._idle_timeout_s = 1e6
    await session.discovery.service("demo", "pair")
    async with asyncio.timeout(10):
        while not session.discovery._followed["demo", "pair"].certain:  # noqa: ASYNC110 - nobody sets an event for it
            await asyncio.sleep(0.01)
    await sim.stop_api()
    async with asyncio.timeout(20):
        while True:
            await watched.observe._look_once()
            if watched.document(PAIR)["as_of"] is not None:
                break
            await asyncio.sleep(0.02)
    await sim.start_api()
    async with asyncio.timeout(30):
        while watched.document(PAIR)["as_of"] is not None:
            await watched.observe._look_once()
            await asyncio.sleep(0.02)


async def test_a_refresh_reads_what_is_no_longer_watched(watched: Watched, sim: SimCluster) -> None:
    session = await watched.session()
    await session.discovery.service("demo", "pair")
    watched.traffic.of(PAIR)
    await watched.let_go(PAIR)
    await sim.set_ready("demo", "pair", False)
    await watched.observe._known.refresh(PAIR)
    document = watched.documents.service(PAIR)
    assert document is not None
    assert (document["ready"], document["total"]) == (0, 1)


async def test_a_service_that_was_found_before_is_looked_up_when_it_is_used(watched: Watched) -> None:
    session = await watched.clusters.first.session()
    await session.discovery.service("demo", "pair")  # nobody listens yet
    nothing = ServiceKey("cluster.local", "demo", "nothing")
    for key in (PAIR, nothing):
        watched.traffic.of(key).use(80, time.monotonic())
    assert await watched.shown() == ["nothing", "pair"]
    assert [(each["service"], each["total"]) for each in watched.documents.services()] == [("nothing", 0), ("pair", 1)]
    assert watched.observe._known._refused == {nothing}  # and is not asked for once a second


async def test_a_service_of_a_session_that_was_just_opened_is_shown_with_its_pods(watched: Watched) -> None:
    session = await watched.clusters.first.session()
    await session.discovery.service("demo", "echo")
    assert watched.document(ECHO)["total"] == 2, "before anybody has looked"
    assert [each["service"] for each in watched.documents.services()] == ["echo"]


async def test_a_service_in_use_that_was_deleted_is_unhealthy_while_that_is_known(
    watched: Watched, sim: SimCluster
) -> None:
    session = await watched.session()
    session.discovery._idle_timeout_s = 1e6
    await session.discovery.service("demo", "pair")
    watched.traffic.of(PAIR)
    assert watched.document(PAIR)["health"] == "unknown"
    await sim.remove_service("demo", "pair")
    async with asyncio.timeout(10):
        while watched.document(PAIR)["total"]:  # noqa: ASYNC110 - nobody sets an event for it
            await asyncio.sleep(0.02)
    await watched.observe._look_once()
    assert watched.document(PAIR)["health"] == "unhealthy"
    session.discovery._let_go(("demo", "pair"))
    await watched.observe._look_once()
    assert watched.document(PAIR)["health"] == "unknown", "it may be there again"


async def test_a_refresh_tells_of_what_was_deleted(watched: Watched, sim: SimCluster) -> None:
    session = await watched.session()
    await session.discovery.service("demo", "pair")
    await watched.let_go(PAIR)
    await sim.remove_service("demo", "pair")
    with pytest.raises(ServiceNotFound):
        await watched.observe._known.refresh(PAIR)
    assert watched.documents.service(PAIR) is None
    assert watched.documents.events()[-1]["text"] == "The Service was deleted."
