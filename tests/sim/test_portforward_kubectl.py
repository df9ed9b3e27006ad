"""Port-forwards through kubectl: the tunnel (its first choice from 1.31) and SPDY."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.faults import Protocols
from kubetunnel.sim.tcp_echo import pattern
from tests.sim.clients import curl

KUBECTL = shutil.which("kubectl")
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="no kubectl on the PATH")

TUNNEL = {"KUBECTL_PORT_FORWARD_WEBSOCKETS": "true"}
SPDY = {"KUBECTL_PORT_FORWARD_WEBSOCKETS": "false"}


@asynccontextmanager
async def port_forward(
    kubeconfig: Path, target: str, port: int, env: dict[str, str]
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Where kubectl listens, and its process, whose standard error is a pipe."""
    assert KUBECTL is not None
    process = await asyncio.create_subprocess_exec(
        KUBECTL, f"--kubeconfig={kubeconfig}", "port-forward", "--address=127.0.0.1", target, f":{port}",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": str(kubeconfig.parent), **env},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(10):
            line = (await process.stdout.readline()).decode()
        found = re.search(r"127\.0\.0\.1:\d+", line)
        assert found, line
        yield found.group(), process
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(10):
            await process.communicate()


@pytest.fixture
def kubeconfig(cluster: SimCluster, tmp_path: Path) -> Path:
    return cluster.kubeconfig(tmp_path / "kubeconfig")


@pytest.mark.parametrize(
    ("protocols", "env"),
    [(Protocols.MODERN, TUNNEL), (Protocols.MODERN, SPDY), (Protocols.NO_SPDY, TUNNEL), (Protocols.OLD, TUNNEL)],
    ids=["tunnel", "spdy", "tunnel behind a proxy", "fallback to spdy"],
)
async def test_http(
    cluster: SimCluster, kubeconfig: Path, tmp_path: Path, protocols: Protocols, env: dict[str, str]
) -> None:
    cluster.faults.protocols = protocols
    body = pattern(8 << 20)
    (tmp_path / "body").write_bytes(body)
    async with port_forward(kubeconfig, "svc/echo", 80, env) as (address, _):
        name = (await curl(f"http://{address}/hostname")).out.decode().strip()
        assert ("demo", name) in {(pod.namespace, pod.name) for pod in cluster.pods("demo", app="echo")}
        assert (await curl(f"http://{address}/bytes?n=8m")).out == body
        answer = json.loads((await curl("-T", str(tmp_path / "body"), f"http://{address}/upload")).out)
        assert answer["sha256"] == hashlib.sha256(body).hexdigest()
        h2c = json.loads((await curl("--http2-prior-knowledge", f"http://{address}/")).out)
        assert h2c["proto"] == "HTTP/2.0"


@pytest.mark.parametrize("env", [TUNNEL, SPDY], ids=["tunnel", "spdy"])
async def test_any_error_text_ends_kubectls_connection(
    cluster: SimCluster, kubeconfig: Path, env: dict[str, str]
) -> None:
    async with port_forward(kubeconfig, "pod/echo-sts-0", 9999, env) as (address, process):
        assert (await curl(f"http://{address}/")).code == 52
        assert process.stderr is not None
        async with asyncio.timeout(10):
            said = (await process.stderr.read()).decode()
        assert "dial tcp4 127.0.0.1:9999: connect: connection refused" in said
        assert "lost connection to pod" in said


async def test_a_pod_that_restarts_its_program(cluster: SimCluster, kubeconfig: Path) -> None:
    async with port_forward(kubeconfig, "pod/echo-sts-0", 8080, TUNNEL) as (address, _):
        assert (await curl(f"http://{address}/hostname")).out == b"echo-sts-0\n"
        assert (await curl(f"http://{address}/exit")).code in (52, 56)
        pod = cluster.pod("demo", "echo-sts-0")
        async with asyncio.timeout(5):
            while not pod.ready or pod.workload is None or not pod.workload.listen_address(8080):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # the cluster tells its API's watchers only
    async with port_forward(kubeconfig, "pod/echo-sts-0", 8080, TUNNEL) as (address, _):
        assert (await curl(f"http://{address}/hostname")).out == b"echo-sts-0\n"
