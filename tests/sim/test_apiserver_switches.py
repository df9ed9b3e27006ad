"""The switches of the simulated cluster, as a client of its API sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.demo import ECHO
from kubetunnel.sim.objects import Port, ServiceSpec
from kubetunnel.sim.pods import Container, ContainerPort, PodTemplate
from tests.sim.api import Api, Json, Watching

SERVICES = "/api/v1/namespaces/demo/services"
PODS = "/api/v1/namespaces/demo/pods"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/demo/endpointslices"
ECHO_SLICES = {"labelSelector": "kubernetes.io/service-name=echo"}


async def slices(api: Api, service: str) -> list[Json]:
    _, body = await api.get(SLICES, labelSelector=f"kubernetes.io/service-name={service}")
    return list(body["items"])


async def conditions(api: Api, service: str) -> dict[str, tuple[bool, bool, bool]]:
    """Ready, serving, terminating by pod."""
    found = {}
    for item in await slices(api, service):
        for endpoint in item["endpoints"] or ():
            c = endpoint["conditions"]
            found[endpoint["targetRef"]["name"]] = (c["ready"], c["serving"], c["terminating"])
    return found


@asynccontextmanager
async def watching(cluster: SimCluster, api: Api, path: str, **query: str) -> AsyncIterator[Watching]:
    async with api.watch(path, resourceVersion=str(cluster.store.revision), **query) as watch:
        yield watch


async def dial(cluster: SimCluster, namespace: str, name: str, port: int = 9001) -> bytes:
    """The first bytes of the pod's greeting port."""
    workload = cluster.pod(namespace, name).workload
    assert workload is not None
    address = workload.listen_address(port)
    assert address is not None
    reader, writer = await asyncio.open_connection(*address)
    try:
        return await reader.readline()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_the_demo(cluster: SimCluster, api: Api) -> None:
    assert sorted(item["addressType"] for item in await slices(api, "echo-sts")) == ["IPv4", "IPv6"]
    (empty,) = [item for item in await slices(api, "echo-sts") if item["addressType"] == "IPv6"]
    assert (empty["endpoints"], empty["ports"]) == (None, None)
    (zero,) = await slices(api, "zero")
    assert (zero["endpoints"], zero["ports"]) == (None, None)
    assert await slices(api, "noselector") == await slices(api, "external") == []
    assert await conditions(api, "unready") == {"unready": (False, False, False)}
    (pair,) = await slices(api, "pair")
    assert pair["ports"] == [{"name": "", "port": 8080, "protocol": "TCP"}]
    (echo,) = await slices(api, "echo")
    assert {port["name"]: port["port"] for port in echo["ports"]}["http"] == 8080
    assert {(endpoint["nodeName"], endpoint["zone"]) for endpoint in echo["endpoints"]} == {("node1", "zone-a")}
    named = [e for item in await slices(api, "echo-sts") for e in item["endpoints"] or ()]
    assert [endpoint["hostname"] for endpoint in named] == ["echo-sts-0", "echo-sts-1"]
    assert await dial(cluster, "demo", "echo-sts-1") == b"220 echo-sts-1 ready\r\n"


async def test_killed_pod(cluster: SimCluster, api: Api) -> None:
    pod = cluster.pods("demo", app="echo")[0]
    async with watching(cluster, api, PODS) as pods, watching(cluster, api, SLICES, **ECHO_SLICES) as watch:
        await cluster.kill_pod("demo", pod.name)
        assert await pods.names(1) == [("DELETED", pod.name)]
        kind, item = await watch.next()
        assert kind == "MODIFIED"
        assert pod.name not in [endpoint["targetRef"]["name"] for endpoint in item["endpoints"]]
    assert pod.gone.is_set()
    assert len(await conditions(api, "echo")) == 1
    _, deployment = await api.get("/apis/apps/v1/namespaces/demo/deployments/echo")
    assert (deployment["spec"]["replicas"], deployment["status"]["readyReplicas"]) == (2, 1)
    await cluster.scale("demo", "echo", 2)
    assert len(await conditions(api, "echo")) == 2


async def test_replaced_pod_of_a_deployment(cluster: SimCluster, api: Api) -> None:
    old = cluster.pods("demo", app="echo")[0]
    async with watching(cluster, api, PODS) as watch:
        new = await cluster.replace_pod("demo", old.name)
        events = await watch.names(6)
        # terminating; Pending, Running, Ready; ended, gone
        assert events == [
            ("MODIFIED", old.name),
            ("ADDED", new.name),
            ("MODIFIED", new.name),
            ("MODIFIED", new.name),
            ("MODIFIED", old.name),
            ("DELETED", old.name),
        ]
    assert (new.name != old.name, new.address != old.address) == (True, True)
    assert len(await conditions(api, "echo")) == 2


async def test_replaced_pod_of_a_stateful_set(cluster: SimCluster, api: Api) -> None:
    old = cluster.pod("demo", "echo-sts-0")
    new = await cluster.replace_pod("demo", "echo-sts-0")
    assert (new.name, new.hostname) == ("echo-sts-0", "echo-sts-0")
    assert (new.uid != old.uid, new.address != old.address) == (True, True)
    assert await conditions(api, "echo-sts") == {"echo-sts-0": (True, True, False), "echo-sts-1": (True, True, False)}
    single = await cluster.replace_pod("other", "echo")
    assert single.name == "echo"


async def test_roll(cluster: SimCluster, api: Api) -> None:
    old = {pod.name for pod in cluster.pods("demo", app="echo")}
    async with watching(cluster, api, SLICES, **ECHO_SLICES) as watch:
        await cluster.roll_deployment("demo", "echo", version="2")
        new = {pod.name for pod in cluster.pods("demo", app="echo")}
        terminating: set[str] = set()
        while True:
            _, item = await watch.next()
            ready = {e["targetRef"]["name"] for e in item["endpoints"] if e["conditions"]["ready"]}
            assert len(ready) >= 2  # never fewer than wanted
            terminating |= {e["targetRef"]["name"] for e in item["endpoints"] if e["conditions"]["terminating"]}
            if ready == new and len(item["endpoints"]) == 2:
                break
    assert terminating == old
    assert not old & new
    assert {pod.version for pod in cluster.pods("demo", app="echo")} == {"2"}
    _, sets = await api.get("/apis/apps/v1/namespaces/demo/replicasets", labelSelector="app=echo")
    assert [found["status"]["readyReplicas"] for found in sets["items"]] == [2]


async def test_terminating_pod_serves_on(cluster: SimCluster, api: Api) -> None:
    await cluster.terminate_pod("demo", "echo-sts-0")
    assert (await conditions(api, "echo-sts"))["echo-sts-0"] == (False, True, True)
    assert await dial(cluster, "demo", "echo-sts-0") == b"220 echo-sts-0 ready\r\n"
    _, endpoints = await api.get("/api/v1/namespaces/demo/endpoints/echo-sts")
    assert [address["hostname"] for address in endpoints["subsets"][0]["addresses"]] == ["echo-sts-1"]
    await cluster.kill_pod("demo", "echo-sts-0")
    assert set(await conditions(api, "echo-sts")) == {"echo-sts-1"}


async def test_ready(cluster: SimCluster, api: Api) -> None:
    await cluster.set_ready("demo", "echo-sts-0", False)
    assert (await conditions(api, "echo-sts"))["echo-sts-0"] == (False, False, False)
    _, endpoints = await api.get("/api/v1/namespaces/demo/endpoints/echo-sts")
    assert [address["hostname"] for address in endpoints["subsets"][0]["notReadyAddresses"]] == ["echo-sts-0"]
    await cluster.set_ready("demo", "unready", True)
    assert await conditions(api, "unready") == {"unready": (True, True, False)}


@pytest.mark.parametrize("replicas", [0, 1, 4])
async def test_scale(cluster: SimCluster, api: Api, replicas: int) -> None:
    await cluster.scale("demo", "echo", replicas)
    await cluster.scale("demo", "echo-sts", replicas)
    assert len(await conditions(api, "echo")) == replicas
    assert list(await conditions(api, "echo-sts")) == [f"echo-sts-{ordinal}" for ordinal in range(replicas)]
    _, deployment = await api.get("/apis/apps/v1/namespaces/demo/deployments/echo")
    assert deployment["status"].get("readyReplicas", 0) == replicas


async def test_a_container_that_exits_is_started_again(cluster: SimCluster, api: Api) -> None:
    pod = cluster.pod("demo", "echo-sts-0")
    assert pod.workload is not None
    address = pod.workload.listen_address(8080)
    assert address is not None
    async with watching(cluster, api, PODS) as watch, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://{address[0]}:{address[1]}/exit?code=3")
        states = [(await watch.next())[1]["status"]["containerStatuses"][0] for _ in range(2)]
    assert [(state["ready"], state["restartCount"]) for state in states] == [(False, 0), (True, 1)]
    assert cluster.pod("demo", "echo-sts-0") is pod
    assert await dial(cluster, "demo", "echo-sts-0") == b"220 echo-sts-0 ready\r\n"


async def test_services_come_and_go(cluster: SimCluster, api: Api) -> None:
    spec = ServiceSpec(
        "demo", "web", (Port(80, target_port="http"),), {"app": "echo"}, publish_not_ready_addresses=True
    )
    service = await cluster.add_service(spec)
    assert len(await conditions(api, "web")) == 2
    again = await cluster.add_service(ServiceSpec("demo", "web", (Port(81, target_port=8080),), {"app": "unready"}))
    assert again["spec"]["clusterIP"] == service["spec"]["clusterIP"]
    assert again["metadata"]["uid"] == service["metadata"]["uid"]
    assert await conditions(api, "web") == {"unready": (False, False, False)}
    await cluster.remove_service("demo", "web")
    assert await slices(api, "web") == []
    assert (await api.get("/api/v1/namespaces/demo/endpoints/web"))[0] == 404


async def test_pods_with_other_port_numbers_get_a_slice_of_their_own(cluster: SimCluster, api: Api) -> None:
    odd = PodTemplate({"app": "echo"}, (Container("echo", "echo", ports=(ContainerPort("http", 9000),)),))
    await cluster.add_pod("demo", "odd", odd)
    found = await slices(api, "echo")
    numbers = sorted(
        (port["port"], len(s["endpoints"])) for s in found for port in s["ports"] if port["name"] == "http"
    )
    assert numbers == [(8080, 2), (9000, 1)]
    await cluster.kill_pod("demo", "odd")
    assert len(await slices(api, "echo")) == 1


async def test_namespaces_come_and_go(cluster: SimCluster, api: Api) -> None:
    await cluster.add_namespace("shop")
    await cluster.add_service(ServiceSpec("shop", "api", (Port(80, target_port="http"),), {"app": "echo"}))
    await cluster.add_deployment("shop", "api", 1, ECHO)
    _, found = await api.get("/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices")
    assert len(found["items"][0]["endpoints"]) == 1
    await cluster.remove_namespace("shop")
    for path in (
        "api/v1/namespaces/shop/pods",
        "api/v1/namespaces/shop/services",
        "apis/apps/v1/namespaces/shop/deployments",
    ):
        assert await api.names(f"/{path}") == []
    assert (await api.get("/api/v1/namespaces/shop"))[0] == 404
    assert cluster.pods("shop") == []


async def test_the_api_server_stops_and_comes_back(cluster: SimCluster, api: Api) -> None:
    async with api.watch(PODS) as watch:
        await watch.next()
        await cluster.stop_api()
        with pytest.raises(aiohttp.ClientError):
            while await watch.line():
                pass
    with pytest.raises(aiohttp.ClientConnectionError):
        await api.get("/version")
    assert await dial(cluster, "demo", "echo-sts-0") == b"220 echo-sts-0 ready\r\n"
    await cluster.start_api()
    assert len(await api.names(PODS)) == 6


async def test_cut_connections(cluster: SimCluster, api: Api) -> None:
    async with api.watch(PODS) as watch:
        await watch.next()
        await cluster.cut_connections()
        with pytest.raises(aiohttp.ClientError):
            while await watch.line():
                pass
    assert (await api.get("/version"))[0] == 200


async def test_the_seed_makes_the_names(cluster: SimCluster) -> None:
    async with SimCluster(seed=1) as twin:
        assert [pod.name for pod in twin.pods("demo")] == [pod.name for pod in cluster.pods("demo")]


async def test_a_start_that_fails_leaves_nothing(cluster: SimCluster) -> None:
    with pytest.raises(OSError, match="address already in use"):
        await SimCluster(port=cluster.port).start()


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
async def test_cancelled_start_leaves_nothing(steps: int) -> None:
    cluster = SimCluster()
    starting = asyncio.create_task(cluster.start())
    for _ in range(steps):
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_eager_tasks() -> None:
    """mitmproxy runs its loop with eager tasks."""
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    async with SimCluster() as cluster, Api(cluster, cluster.token()) as api:
        async with api.watch(PODS) as watch:
            assert (await watch.next())[0] == "ADDED"
            await cluster.roll_deployment("demo", "echo")
        assert len(await api.names(PODS)) == 6
