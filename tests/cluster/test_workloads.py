"""What a local forward can be for, looked up on the simulated cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kubetunnel.cluster.access import load_access
from kubetunnel.cluster.decode import Metadata, PodObject, PodStatus
from kubetunnel.cluster.discovery import Discovery
from kubetunnel.cluster.workloads import Workloads, _Expression, _label_selector, _Selector
from kubetunnel.core.errors import Forbidden, NoReadyEndpoints, NotForwardable, PortNotExposed, ServiceNotFound
from kubetunnel.core.local_forward import Kind, ObjectRef
from kubetunnel.sim.cluster import SimCluster


@pytest.fixture
async def sim() -> AsyncIterator[SimCluster]:
    async with SimCluster() as cluster:
        yield cluster


@pytest.fixture(params=["admin"])
async def workloads(request: pytest.FixtureRequest, sim: SimCluster, tmp_path: Path) -> AsyncIterator[Workloads]:
    access = await load_access(kubeconfig=str(sim.kubeconfig(tmp_path / "kubeconfig", user=request.param)))
    discovery = Discovery(access)
    found = Workloads(access, discovery)
    yield found
    await found.aclose()
    await discovery.aclose()
    await access.aclose()


def ref(kind: Kind, name: str) -> ObjectRef:
    return ObjectRef(kind, "demo", name)


async def pods_of(workloads: Workloads, kind: Kind, name: str, port: int | str) -> set[tuple[str, int]]:
    found = await workloads.reachable(ref(kind, name), port)
    return {(target.pod_port.pod, target.pod_port.port) for target in found.targets}


async def test_a_service_by_number_and_by_name(sim: SimCluster, workloads: Workloads) -> None:
    expected = {(pod.name, 9000) for pod in sim.pods("demo", app="echo")}
    assert len(expected) == 2
    assert await pods_of(workloads, Kind.SERVICE, "echo", 7) == expected
    assert await pods_of(workloads, Kind.SERVICE, "echo", "tcp") == expected
    assert (await workloads.reachable(ref(Kind.SERVICE, "echo"), "tcp")).port == 7


async def test_a_deployment_and_a_stateful_set_by_their_selectors(sim: SimCluster, workloads: Workloads) -> None:
    names = {pod.name for pod in sim.pods("demo", app="echo")}
    assert await pods_of(workloads, Kind.DEPLOYMENT, "echo", 5432) == {(name, 5432) for name in names}
    assert await pods_of(workloads, Kind.DEPLOYMENT, "echo", "http") == {(name, 8080) for name in names}
    assert await pods_of(workloads, Kind.STATEFUL_SET, "echo-sts", 1) == {("echo-sts-0", 1), ("echo-sts-1", 1)}


async def test_a_pod_by_its_name_ready_or_not(workloads: Workloads) -> None:
    assert await pods_of(workloads, Kind.POD, "pair", "web") == {("pair", 8080)}
    assert await pods_of(workloads, Kind.POD, "unready", 80) == {("unready", 80)}


async def test_a_pod_that_does_not_run_yet_is_looked_up_again(
    workloads: Workloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        PodObject(Metadata(name="job-1", namespace="demo"), status=PodStatus(phase=phase, pod_ip="10.0.0.1"))
        for phase in ("Pending", "Running")
    ]

    async def answer(_: object) -> PodObject:
        return found.pop(0)

    monkeypatch.setattr(workloads._api, "get_object", answer)
    monkeypatch.setattr("kubetunnel.cluster.workloads.MEMORY_S", 0.0)
    with pytest.raises(NoReadyEndpoints, match="Pending"):
        await workloads.reachable(ref(Kind.POD, "job-1"), 80)
    for _ in range(2):
        assert await pods_of(workloads, Kind.POD, "job-1", 80) == {("job-1", 80)}


async def test_a_rollout_is_followed(sim: SimCluster, workloads: Workloads) -> None:
    before = await pods_of(workloads, Kind.DEPLOYMENT, "echo", 80)
    await sim.roll_deployment("demo", "echo")
    after = await workloads.reachable(ref(Kind.DEPLOYMENT, "echo"), 80, fresh=True)
    assert {(target.pod_port.pod, 80) for target in after.targets}.isdisjoint(before)


async def test_a_burst_costs_one_list_and_the_selector_is_asked_for_once(sim: SimCluster, workloads: Workloads) -> None:
    for _ in range(5):
        await pods_of(workloads, Kind.DEPLOYMENT, "echo", 80)
    await workloads.reachable(ref(Kind.DEPLOYMENT, "echo"), 80, fresh=True)
    assert sim.count_requests("get", "/deployments/echo") == 1
    assert sim.count_requests(path="/namespaces/demo/pods") == 2


@pytest.mark.parametrize(
    ("kind", "name", "port", "error", "said"),
    [
        (Kind.SERVICE, "nope", 80, ServiceNotFound, "no Service nope"),
        (Kind.SERVICE, "echo", 81, PortNotExposed, "80 (http)"),
        (Kind.SERVICE, "echo", "nope", PortNotExposed, "80 (http)"),
        (Kind.SERVICE, "external", "http", NotForwardable, "ExternalName"),
        (Kind.SERVICE, "zero", 80, NoReadyEndpoints, "no endpoints"),
        (Kind.DEPLOYMENT, "nope", 80, ServiceNotFound, "has no deployment/nope"),
        (Kind.DEPLOYMENT, "zero", 80, NoReadyEndpoints, "has no pods"),
        (Kind.DEPLOYMENT, "echo", "nope", PortNotExposed, "8080 (http)"),
        (Kind.POD, "nope", 80, ServiceNotFound, "has no pod/nope"),
    ],
)
async def test_refusals_say_what_there_is_and_the_command(
    workloads: Workloads, kind: Kind, name: str, port: int | str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as refused:
        await workloads.reachable(ref(kind, name), port)
    assert said in str(refused.value)
    assert "See: kubectl --kubeconfig " in str(refused.value)


@pytest.mark.parametrize("workloads", ["limited"], indirect=True)
async def test_a_missing_right_is_named(workloads: Workloads) -> None:
    with pytest.raises(Forbidden) as refused:
        await workloads.reachable(ref(Kind.DEPLOYMENT, "echo"), 80)
    assert "get deployments.apps" in str(refused.value)


def test_selectors_as_a_lists_parameter() -> None:
    expressions = [
        _Expression("tier", "In", ["a", "b"]),
        _Expression("env", "NotIn", ["dev"]),
        _Expression("x", "Exists"),
        _Expression("y", "DoesNotExist"),
    ]
    selector = _Selector({"app": "echo"}, expressions)
    assert _label_selector(selector) == "app=echo,tier in (a,b),env notin (dev),x,!y"
