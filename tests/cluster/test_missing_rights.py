"""A user for each missing right: what falls back does (the contract's section 2.5), and what cannot is told.

On the simulated cluster, whose API server checks rights as RBAC does; the command in a refusal is run with kubectl.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kubetunnel.cluster.access import ClusterAccess, load_access
from kubetunnel.cluster.discovery import Discovery
from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import Forbidden
from kubetunnel.forward.pool import PortForwards
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.faults import Protocols
from kubetunnel.sim.rbac import Rule
from tests.cluster.conftest import until

KUBECTL = shutil.which("kubectl")
USER = "jane"
READ = ("get", "list", "watch")
RIGHTS = frozenset(
    {f"{verb} {resource}" for resource in ("services", "endpointslices", "endpoints", "pods") for verb in READ}
    | {"get pods/portforward", "create pods/portforward"}
)


def without(*missing: str) -> frozenset[str]:
    assert set(missing) <= RIGHTS
    return RIGHTS - set(missing)


def rules(rights: Iterable[str]) -> list[Rule]:
    return [Rule([verb], [resource], ["demo"]) for verb, resource in (right.split() for right in rights)]


@dataclass
class Client:
    """What jane's tunnel is made of."""

    sim: SimCluster
    access: ClusterAccess
    discovery: Discovery
    forwards: PortForwards

    async def pods(self, service: str = "echo") -> set[str]:
        state = await self.discovery.service("demo", service)
        return {endpoint.pod or "" for part in state.slices for endpoint in part.endpoints if endpoint.ready}

    async def hostname(self, pod: str) -> str:
        reader, writer = await self.forwards.open_connection(PodPort("demo", pod, 8080))
        writer.write(b"GET /hostname HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        return answer.partition(b"\r\n\r\n")[2].decode().strip()

    def watched(self) -> set[str]:
        return {request.path.rpartition("/")[2] for request in self.sim.requests if request.verb == "watch"}


@asynccontextmanager
async def acting(sim: SimCluster, directory: Path, rights: Iterable[str]) -> AsyncIterator[Client]:
    sim.user(USER, rules(rights))
    access = await load_access(kubeconfig=str(sim.kubeconfig(directory / "kubeconfig", user=USER)))
    client = Client(sim, access, Discovery(access), PortForwards(access))
    try:
        yield client
    finally:
        await client.forwards.aclose()
        await client.discovery.aclose()
        await access.aclose()


@pytest.fixture
async def sim() -> AsyncIterator[SimCluster]:
    async with SimCluster() as cluster:
        yield cluster


SLICES_AND_ENDPOINTS = ("list endpointslices", "list endpoints", "get endpoints")


@pytest.mark.parametrize(
    ("missing", "watched"),
    [
        ((), {"services", "endpointslices"}),
        (("get services",), {"services", "endpointslices"}),
        (("list services",), {"endpointslices"}),
        (("watch services",), {"services", "endpointslices"}),
        (("get endpointslices",), {"services", "endpointslices"}),
        (("list endpointslices",), {"services", "endpoints"}),
        (("watch endpointslices",), {"services", "endpointslices"}),
        (("list endpointslices", "get endpoints"), {"services", "endpoints"}),
        (("list endpointslices", "list endpoints"), {"services"}),
        (("list endpointslices", "watch endpoints"), {"services", "endpoints"}),
        (SLICES_AND_ENDPOINTS, {"services", "pods"}),
        ((*SLICES_AND_ENDPOINTS, "watch pods"), {"services", "pods"}),
        ((*SLICES_AND_ENDPOINTS, "get pods"), {"services", "pods"}),
        (("get pods", "list pods", "watch pods"), {"services", "endpointslices"}),
        (("list services", "list endpointslices", "list endpoints"), set()),
    ],
    ids=lambda value: ", ".join(sorted(value)) or "nothing",
)
async def test_what_falls_back(sim: SimCluster, tmp_path: Path, missing: tuple[str, ...], watched: set[str]) -> None:
    """`watched`: what is tried to be watched, with success or not."""
    async with acting(sim, tmp_path, without(*missing)) as client:
        before = await client.pods()
        assert before == {pod.name for pod in sim.pods("demo", app="echo")}
        await until(lambda: client.watched() >= watched)
        (gone, *_) = sorted(before)
        successor = await sim.replace_pod("demo", gone)
        async with asyncio.timeout(5):  # a second where it is fetched per use
            while await client.pods() != before - {gone} | {successor.name}:  # noqa: ASYNC110 - only asking tells
                await asyncio.sleep(0.05)
        assert client.watched() == watched
        assert await client.hostname(successor.name) == successor.name


@pytest.mark.parametrize("protocols", [Protocols.MODERN, Protocols.OLD])
@pytest.mark.parametrize("missing", ["get pods/portforward", "create pods/portforward"])
async def test_one_of_the_verbs_of_a_port_forward_is_enough(
    sim: SimCluster, tmp_path: Path, missing: str, protocols: Protocols
) -> None:
    """WebSocket is a GET, SPDY a POST: the one that is refused leaves the other."""
    sim.faults.protocols = protocols
    async with acting(sim, tmp_path, without(missing)) as client:
        pod = (await client.pods()).pop()
        assert await client.hostname(pod) == pod


async def can_i(client: Client, command: str | None) -> str:
    """Runs the command that a refusal names. The answer is yes or no."""
    assert command is not None
    if KUBECTL is None:
        pytest.skip("KUBECTL IS MISSING: nobody runs the commands that refusals name")
    name, *arguments = shlex.split(command)
    assert name == "kubectl"
    process = await asyncio.create_subprocess_exec(
        KUBECTL, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"HOME": "/nonexistent", "PATH": os.environ["PATH"]},
    )  # fmt: skip
    async with asyncio.timeout(30):
        output, complaint = await process.communicate()
    assert process.returncode == (0 if output.strip() == b"yes" else 1), complaint.decode()
    return output.decode().strip()


@pytest.mark.parametrize(
    ("missing", "names"),
    [
        (("get services", "list services"), "list services"),
        ((*SLICES_AND_ENDPOINTS, "list pods"), "list endpointslices.discovery.k8s.io"),
        (("get pods/portforward", "create pods/portforward"), "create pods/portforward"),
    ],
    ids=["services", "endpoints of any kind", "portforward"],
)
async def test_what_cannot_fall_back_names_the_right(
    sim: SimCluster, tmp_path: Path, missing: tuple[str, ...], names: str
) -> None:
    verb, resource = names.split()
    async with acting(sim, tmp_path, without(*missing)) as client:
        with pytest.raises(Forbidden) as refused:
            await client.hostname((await client.pods()).pop())
        assert verb in refused.value.detail
        assert resource in refused.value.detail
        assert "namespace demo" in refused.value.detail
        assert await can_i(client, refused.value.command) == "no"
        sim.user(USER, rules(RIGHTS))
        assert await can_i(client, refused.value.command) == "yes", "it is what was missing"
        async with asyncio.timeout(5):  # a refusal is remembered for a moment
            while True:
                try:
                    pod = (await client.pods()).pop()
                    assert await client.hostname(pod) == pod
                    break
                except Forbidden:
                    await asyncio.sleep(0.1)


async def test_websockets_need_create_from_kubernetes_1_35(sim: SimCluster, tmp_path: Path) -> None:
    sim.api.websocket_needs_create = True
    async with acting(sim, tmp_path, without("create pods/portforward")) as client:
        with pytest.raises(Forbidden, match="create pods/portforward") as refused:
            await client.hostname((await client.pods()).pop())
        assert await can_i(client, refused.value.command) == "no"
