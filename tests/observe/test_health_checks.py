"""Health checks through real port-forwards to the simulated cluster's pods."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kubetunnel.core.catalog import PodPort
from kubetunnel.core.health import Check, HealthRecord, parse_check
from kubetunnel.core.names import ServiceName
from kubetunnel.core.ports import PortRequest
from kubetunnel.core.settings import ClusterSettings, Settings
from kubetunnel.observe.event_log import EventLog
from kubetunnel.observe.health_checks import FIRST_DELAY_S, MAX_CHECKING, HealthChecks
from kubetunnel.observe.sources import HealthPolicy
from kubetunnel.observe.traffic import ServiceKey, Traffic
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.routing import Router
from kubetunnel.sim.cluster import SimCluster

ECHO = ServiceKey("cluster.local", "demo", "echo")


class Checked:
    """Health checks whose clock the test turns."""

    def __init__(self, kubeconfig: Path) -> None:
        settings = Settings(cluster=ClusterSettings(kubeconfig=str(kubeconfig)))
        self.now_s = 100.0
        self.clusters = Clusters(settings)
        self.router = Router(settings, self.clusters)
        self.traffic = Traffic(lambda: self.now_s)
        self.events = EventLog()
        self.policy = HealthPolicy(timeout_s=1.0)
        self.check = Check()
        self.health = HealthChecks(
            self.router, self.traffic, self.events, lambda: self.policy, lambda key, port: self.check,
            clock=lambda: self.now_s,
        )  # fmt: skip

    async def round(self) -> None:
        """One round of what is due after the interval."""
        self.health.look()
        self.now_s += max(FIRST_DELAY_S, 2 * self.policy.interval_s)
        self.health.look()
        await asyncio.gather(*self.health._checking.values())

    async def records(self, port: int, check: str = "tcp", rounds: int = 1) -> dict[PodPort, HealthRecord]:
        self.check = parse_check(check)
        self.policy = HealthPolicy(timeout_s=1.0, idle_timeout_s=1e6)
        self.traffic.of(ECHO).use(port, self.now_s)
        for _ in range(rounds):
            await self.round()
        return self.health.records(ECHO)

    async def aclose(self) -> None:
        await self.health.aclose()
        await self.clusters.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sim() -> AsyncIterator[SimCluster]:
    async with SimCluster() as cluster:
        yield cluster


pytestmark = pytest.mark.asyncio(loop_scope="module")


@contextlib.asynccontextmanager
async def checked(sim: SimCluster, tmp_path: Path) -> AsyncIterator[Checked]:
    found = Checked(sim.kubeconfig(tmp_path / "kubeconfig"))
    try:
        yield found
    finally:
        await found.aclose()


@pytest.mark.parametrize(
    ("port", "check", "state", "detail"),
    [
        (80, "tcp", "healthy", "not refused within 0.5 s"),
        (9001, "tcp", "healthy", "the server speaks first"),
        (9007, "tcp", "healthy", "not refused within 0.5 s"),
        (80, "http:/healthz", "healthy", "HTTP status 200"),
        (443, "http:/healthz", "healthy", "HTTP status 200"),
        (9090, "http:/nothing", "unknown", "HTTP/2"),  # gRPC's port, by its name spoken to in HTTP/2
        (80, "http:/status?code=500", "unknown", "HTTP status 500"),
        (9001, "http:/", "unknown", ""),  # no HTTP
        (9007, "http:/", "unknown", "no answer within 1 s"),
        (9090, "grpc", "healthy", "SERVING"),
        (9090, "grpc:nothing.There", "unknown", "does not know 'nothing.There'"),
        (9443, "grpc", "healthy", "SERVING"),
        (80, "grpc", "unknown", ""),
        (9999, "tcp", "unknown", "Nothing listens on port 9999"),
    ],
)
async def test_each_check(sim: SimCluster, tmp_path: Path, port: int, check: str, state: str, detail: str) -> None:
    async with checked(sim, tmp_path) as found:
        records = await found.records(port, check)
        assert len(records) == 2  # pods
        for record in records.values():
            assert record.state == state, record
            assert detail in record.detail
            assert record.checks == 1
            assert record.failures == (state != "healthy")
        ok, failed = found.health.totals[ECHO]
        assert (ok, failed) == ((2, 0) if state == "healthy" else (0, 2))


async def test_unhealthy_after_three_rounds_and_told(sim: SimCluster, tmp_path: Path) -> None:
    async with checked(sim, tmp_path) as found:
        records = await found.records(9999, rounds=3)
        assert {record.state for record in records.values()} == {"unhealthy"}
        session = await found.clusters.first.session()
        for pod_port in records:
            assert found.health.is_unhealthy(session.forwards, pod_port)
        told = [event.command for event in found.events.last() if event.level == "error"]
        assert sorted(told) == sorted(
            session.access.kubectl("-n", "demo", "describe", "pod", pod_port.pod) for pod_port in records
        )
        assert all("--kubeconfig" in command for command in told)
        found.policy = HealthPolicy(skip=True)
        assert not any(found.health.is_unhealthy(session.forwards, pod_port) for pod_port in records)


async def test_a_service_that_nobody_uses_is_not_checked(sim: SimCluster, tmp_path: Path) -> None:
    async with checked(sim, tmp_path) as found:
        await found.records(80)
        found.policy = HealthPolicy(idle_timeout_s=10.0)
        found.now_s += 60.0
        found.health.look()
        assert not found.health._checking
        assert found.health.records(ECHO) == {}


async def test_a_connection_that_stays_open_is_use(sim: SimCluster, tmp_path: Path) -> None:
    async with checked(sim, tmp_path) as found:
        await found.records(80)
        found.policy = HealthPolicy(timeout_s=1.0, idle_timeout_s=10.0)
        found.traffic.of(ECHO).upstreams = 1
        await found.round()
        await found.round()
        assert [record.checks for record in found.health.records(ECHO).values()] == [3, 3]
        found.traffic.of(ECHO).upstreams = 0
        found.health.look()
        assert found.health.records(ECHO) == {}


async def test_a_pod_of_two_services_stays_unhealthy_when_one_is_no_longer_used(
    sim: SimCluster, tmp_path: Path
) -> None:
    async with checked(sim, tmp_path) as found:
        records = await found.records(9999, rounds=3)
        twin = ServiceKey("cluster.local", "demo", "twin")
        found.health._records[twin] = dict(found.health._records[ECHO])
        found.health._forget(twin)
        session = await found.clusters.first.session()
        assert all(found.health.is_unhealthy(session.forwards, pod_port) for pod_port in records)


async def test_who_has_waited_longest_is_checked_first(sim: SimCluster, tmp_path: Path) -> None:
    async with checked(sim, tmp_path) as found:
        keys = [ServiceKey("cluster.local", "demo", f"none-{number}") for number in range(2 * MAX_CHECKING)]
        for key in keys:
            found.traffic.of(key).use(80, found.now_s)
        found.health.look()
        late = set(keys[MAX_CHECKING:])
        found.health._due_s |= {key: found.now_s - (key in late) for key in keys}
        found.health.look()
        assert found.health._checking.keys() == late


async def test_a_service_is_checked_once_at_a_time(sim: SimCluster, tmp_path: Path) -> None:
    async with checked(sim, tmp_path) as found:
        tasks = set()
        for _ in range(5):
            found.traffic.of(ECHO).use(9007, found.now_s)
            found.health.look()
            tasks |= set(found.health._checking.values())
            found.now_s += 100.0
        assert len(tasks) == 1


async def test_the_rounds_are_jittered(sim: SimCluster, tmp_path: Path) -> None:
    async with checked(sim, tmp_path) as found:
        dues = set()
        for number in range(10):
            key = ServiceKey("cluster.local", "demo", f"none-{number}")
            found.traffic.of(key).use(80, found.now_s)
        found.health.look()
        found.now_s += 2.0
        found.health.look()
        dues = {round(due, 3) for due in found.health._due_s.values()}
        assert len(dues) == 10
        assert all(27.0 <= due - found.now_s <= 33.0 for due in dues)


async def test_disabled_checks_do_nothing(sim: SimCluster, tmp_path: Path) -> None:
    async with checked(sim, tmp_path) as found:
        found.policy = HealthPolicy(enabled=False)
        found.traffic.of(ECHO).use(80, found.now_s)
        await found.round()
        assert found.health.records(ECHO) == {}


async def test_an_unhealthy_pod_gets_no_new_streams_while_another_is_healthy(sim: SimCluster, tmp_path: Path) -> None:
    async with checked(sim, tmp_path) as found:
        name = ServiceName("echo", "demo", "cluster.local")
        destination = await found.router.find(name, PortRequest(80, explicit=True, scheme=""))
        bad = destination.targets[0].pod_port
        unhealthy = {bad}
        found.router.avoid(lambda forwards, pod_port: pod_port in unhealthy)

        async def chosen() -> set[PodPort]:
            upstreams = [await found.router.open(destination) for _ in range(6)]
            pods = {upstream.target.pod_port for upstream in upstreams}
            for upstream in upstreams:
                upstream.writer.close()
            return pods

        assert bad not in await chosen()
        unhealthy |= {target.pod_port for target in destination.targets}
        assert len(await chosen()) == 2  # better an unhealthy one than none


async def test_closing_in_the_middle_of_a_check_leaves_nothing(sim: SimCluster, tmp_path: Path) -> None:
    async with checked(sim, tmp_path) as found:
        found.check = parse_check("http:/")
        found.traffic.of(ECHO).use(9007, found.now_s)
        found.policy = HealthPolicy(timeout_s=60.0)
        found.health.look()
        found.now_s += 2.0
        found.health.look()
        assert found.health._checking
        async with asyncio.timeout(30):
            await found.health.aclose()
        assert not found.health._checking


@pytest.mark.parametrize(("port", "state"), [(80, "healthy"), (9999, "unhealthy")])
async def test_an_api_server_that_is_away_says_nothing_of_the_pods(tmp_path: Path, port: int, state: str) -> None:
    async with SimCluster() as cluster, checked(cluster, tmp_path) as found:
        await found.records(port, rounds=3)
        await cluster.stop_api()
        records = await found.records(port, rounds=5)
        assert [record.state for record in records.values()] == [state, state]
        # at most the one that was under way when the connection was cut
        assert all(record.checks <= 4 for record in records.values()), records
        await cluster.start_api()
        async with asyncio.timeout(30):
            while any(record.checks < 5 for record in records.values()):
                records = await found.records(port)
        assert [record.state for record in records.values()] == [state, state]
