"""The simulated cluster, used by a client that is not ours: kubectl."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.faults import Protocols

KUBECTL = shutil.which("kubectl")
TIMEOUT_S = 30.0
PYTHON = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
needs_kubectl = pytest.mark.skipif(
    KUBECTL is None, reason="KUBECTL IS MISSING: no foreign client tries the simulated cluster"
)


class Kubectl:
    """kubectl as one user."""

    def __init__(self, kubeconfig: Path, home: Path) -> None:
        self._kubeconfig = kubeconfig
        self.environment = {"HOME": str(home), "PATH": os.environ["PATH"]}

    @asynccontextmanager
    async def started(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        assert KUBECTL is not None
        process = await asyncio.create_subprocess_exec(
            KUBECTL, "--kubeconfig", str(self._kubeconfig), *arguments, env=self.environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(TIMEOUT_S):
                yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def run(self, *arguments: str, code: int = 0) -> str:
        """What it prints: stdout, or stderr where it is to fail."""
        async with self.started(*arguments) as process:
            out, err = await process.communicate()
        assert process.returncode == code, err.decode()
        return (err if code else out).decode()

    async def json(self, *arguments: str) -> Any:
        return json.loads(await self.run(*arguments, "-o", "json"))


def rows(text: str) -> list[list[str]]:
    """A table as kubectl prints it: columns are two spaces apart, or more."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


@pytest.fixture
def kubectl(cluster: SimCluster, tmp_path: Path) -> Kubectl:
    return Kubectl(cluster.kubeconfig(tmp_path / "kubeconfig"), tmp_path)


@pytest.fixture
def limited(cluster: SimCluster, tmp_path: Path) -> Kubectl:
    return Kubectl(cluster.kubeconfig(tmp_path / "limited", user="limited", auth="certificate"), tmp_path)


@needs_kubectl
async def test_get_everything(kubectl: Kubectl) -> None:
    services = rows(await kubectl.run("get", "svc", "-A"))
    assert services[0] == ["NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]
    found = {(row[0], row[1]): row for row in services[1:]}
    assert found["demo", "external"][2:6] == ["ExternalName", "<none>", "example.invalid", "<none>"]
    assert found["demo", "echo-sts"][2:6] == ["ClusterIP", "None", "<none>", "8080/TCP,9000/TCP"]
    assert ("other", "echo") in found
    assert ("default", "kubernetes") in found
    assert len(found) == 9
    everything = await kubectl.run("get", "ns,svc,endpointslices,endpoints,pods,deploy,rs,sts", "-A", "-o", "wide")
    assert re.search(r"^demo +pod/pair +2/2 +Running +0 +\S+ +10\.244\.0\.\d+ +node1 ", everything, re.M)
    assert re.search(r"^demo +pod/unready +0/1 +Running ", everything, re.M)
    assert re.search(r"^demo +endpointslice\.discovery\.k8s\.io/zero-\w{5} +IPv4 +<unset> +<unset> ", everything, re.M)
    assert re.search(r"^demo +deployment\.apps/echo +2/2 +2 +2 ", everything, re.M)
    assert re.search(r"^namespace/demo +Active ", everything, re.M)


@needs_kubectl
async def test_get_as_json_and_selected(kubectl: Kubectl) -> None:
    items = (await kubectl.json("get", "endpointslices", "-l", "kubernetes.io/service-name=echo"))["items"]
    assert items[0]["apiVersion"] == "discovery.k8s.io/v1"
    assert [e["targetRef"]["kind"] for e in items[0]["endpoints"]] == ["Pod", "Pod"]
    names = await kubectl.run("get", "pods", "-l", "app in (pair,unready),app!=pair", "-o", "name")
    assert names == "pod/unready\n"
    selector = "status.phase=Running,metadata.name!=pair,spec.nodeName=node1"
    found = await kubectl.run("get", "pods", "--field-selector", selector, "-o", "name", "--chunk-size", "2")
    assert len(found.split()) == 5
    assert "targetPort: http\n" in await kubectl.run("get", "svc", "echo", "-o", "yaml")


@needs_kubectl
async def test_describe(kubectl: Kubectl) -> None:
    service = await kubectl.run("describe", "svc", "pair")
    assert re.search(r"^Endpoints: +10\.244\.0\.\d+:8080$", service, re.M)
    for what in ("pod/unready", "endpointslices", "deploy/echo", "ns/demo", "endpoints/zero"):
        assert await kubectl.run("describe", what)


@needs_kubectl
async def test_watch_shows_a_pod_replaced(cluster: SimCluster, kubectl: Kubectl) -> None:
    old = cluster.pods("demo", app="echo")[0]
    async with kubectl.started("get", "pods", "-l", "app=echo", "-w", "--output-watch-events") as process:
        assert process.stdout is not None
        for _ in range(3):  # the heading and two pods
            await process.stdout.readline()
        new = await cluster.replace_pod("demo", old.name)
        events = [(await process.stdout.readline()).decode().split()[:4] for _ in range(6)]
    assert events == [
        ["MODIFIED", old.name, "1/1", "Terminating"],
        ["ADDED", new.name, "0/1", "ContainerCreating"],
        ["MODIFIED", new.name, "0/1", "Running"],
        ["MODIFIED", new.name, "1/1", "Running"],
        ["MODIFIED", old.name, "0/1", "Terminating"],
        ["DELETED", old.name, "0/1", "Terminating"],
    ]


@needs_kubectl
async def test_what_else_it_asks(kubectl: Kubectl, limited: Kubectl) -> None:
    version = await kubectl.json("version")
    assert version["serverVersion"]["gitVersion"] == "v1.33.0-kubetunnel.sim"
    assert "endpointslices" in await kubectl.run("api-resources")
    assert "discovery.k8s.io/v1" in (await kubectl.run("api-versions")).split()
    assert await kubectl.run("auth", "can-i", "create", "pods", "--subresource=portforward") == "yes\n"
    await limited.run("auth", "can-i", "create", "pods", "--subresource=portforward", code=1)
    await limited.run("auth", "can-i", "list", "endpointslices.discovery.k8s.io", code=1)
    assert await limited.run("auth", "can-i", "list", "services") == "yes\n"
    assert ["endpoints", "[]", "[]", "[get list watch]"] in rows(await limited.run("auth", "can-i", "--list"))


@needs_kubectl
async def test_refusals(kubectl: Kubectl, limited: Kubectl) -> None:
    forbidden = await limited.run("get", "svc", "x", "-n", "other", code=1)
    expected = (
        'services "x" is forbidden: User "limited" cannot get resource "services" in API group "" in the namespace'
    )
    assert forbidden == f'Error from server (Forbidden): {expected} "other"\n'
    assert "(NotFound)" in await kubectl.run("get", "pod", "nope", code=1)
    assert "(MethodNotAllowed)" in await kubectl.run("delete", "pod", "pair", code=1)
    assert "doesn't have a resource type" in await kubectl.run("get", "foos", code=1)


@needs_kubectl
async def test_an_exec_plugin_gives_out_the_new_token(cluster: SimCluster, tmp_path: Path) -> None:
    kubectl = Kubectl(cluster.kubeconfig(tmp_path / "kubeconfig", auth="exec"), tmp_path)
    await kubectl.run("get", "ns")
    cluster.expire_credentials("admin", renew=False)
    assert "You must be logged in" in await kubectl.run("get", "ns", code=1)
    cluster.renew_credentials("admin")
    await kubectl.run("get", "ns")
    assert cluster.plugin_runs("admin") >= 3


@asynccontextmanager
async def forwarded(kubectl: Kubectl, what: str, ports: str) -> AsyncIterator[int]:
    """The local port of a `kubectl port-forward`."""
    async with kubectl.started("port-forward", what, ports, "--address", "127.0.0.1") as process:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        match = re.match(r"Forwarding from 127\.0\.0\.1:(\d+) -> \d+", line)
        assert match, line + (await process.communicate())[1].decode()
        yield int(match[1])


@needs_kubectl
@pytest.mark.parametrize(
    ("what", "ports", "hostname"),
    [
        ("svc/echo", ":80", "echo-"),
        ("svc/pair", ":80", "pair"),
        ("deploy/echo", ":8080", "echo-"),
        ("pod/echo-sts-1", ":8080", "echo-sts-1"),
        ("sts/echo-sts", ":8080", "echo-sts-"),
    ],
)
async def test_port_forward(kubectl: Kubectl, what: str, ports: str, hostname: str) -> None:
    async with forwarded(kubectl, what, ports) as port, aiohttp.ClientSession() as session:
        for _ in range(3):
            async with session.get(f"http://127.0.0.1:{port}/hostname") as response:
                assert (await response.text()).startswith(hostname)


@needs_kubectl
@pytest.mark.parametrize(
    ("protocols", "websockets"), [(Protocols.MODERN, "true"), (Protocols.MODERN, "false"), (Protocols.OLD, "true")]
)
async def test_port_forward_in_other_protocols(
    cluster: SimCluster, kubectl: Kubectl, protocols: Protocols, websockets: str
) -> None:
    cluster.faults.protocols = protocols
    kubectl.environment["KUBECTL_PORT_FORWARD_WEBSOCKETS"] = websockets
    async with (
        forwarded(kubectl, "svc/echo", ":80") as port,
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/bytes?n=1000000") as response,
    ):
        assert len(await response.read()) == 1_000_000


@needs_kubectl
async def test_port_forward_is_refused(limited: Kubectl) -> None:
    error = await limited.run("port-forward", "pod/pair", ":8080", code=1)
    assert 'pods "pair" is forbidden: User "limited" cannot' in error
    assert 'resource "pods/portforward" in API group "" in the namespace "demo"' in error


async def start_command(kubeconfig: Path, *arguments: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kubetunnel.sim", "--kubeconfig", str(kubeconfig), *arguments,
        stdout=asyncio.subprocess.PIPE, env=PYTHON,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(TIMEOUT_S):
        line = await process.stdout.readline()
    assert line.decode() == f"export KUBECONFIG={kubeconfig}\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_command(tmp_path: Path, number: signal.Signals) -> None:
    process = await start_command(tmp_path / "kubeconfig")
    if KUBECTL:
        names = await Kubectl(tmp_path / "kubeconfig", tmp_path).run("get", "pods", "-o", "name")
        assert len(names.split()) == 6
    process.send_signal(number)
    async with asyncio.timeout(TIMEOUT_S):
        out, _ = await process.communicate()
    assert (process.returncode, out) == (0, b"")


async def test_the_command_ends_with_its_parent(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    shell = f'"{sys.executable}" -m kubetunnel.sim --kubeconfig "{kubeconfig}" --with-parent & read line'
    parent = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", shell, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        env=PYTHON,
    )  # fmt: skip
    assert parent.stdout is not None
    async with asyncio.timeout(TIMEOUT_S):
        assert (await parent.stdout.readline()).startswith(b"export KUBECONFIG=")
        await parent.communicate(b"\n")  # the shell ends; communicate sees the end of the child's output too
    assert parent.returncode == 0


async def test_the_command_says_when_its_port_is_taken(cluster: SimCluster, tmp_path: Path) -> None:
    arguments = ("--kubeconfig", str(tmp_path / "kubeconfig"), "--port", str(cluster.port))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kubetunnel.sim", *arguments,
        stderr=asyncio.subprocess.PIPE, env=PYTHON,
    )  # fmt: skip
    async with asyncio.timeout(TIMEOUT_S):
        _, err = await process.communicate()
    assert process.returncode == 1
    assert err.startswith(b"kube-tunnel-sim: ")
    assert b"address already in use" in err
