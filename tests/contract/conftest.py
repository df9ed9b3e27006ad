"""The same cases on the simulated cluster and on a real one with the same objects (marker `cluster`, $KUBECONFIG)."""

from __future__ import annotations

import asyncio
import os
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from kubetunnel.sim.cluster import SimCluster
from tests.tunnel import Tunnel


@dataclass(frozen=True)
class ClusterUnderTest:
    """Where the cases run."""

    kubeconfig: Path
    limited_kubeconfig: Path | None


@pytest.fixture(scope="session", params=["simulated", pytest.param("real", marks=pytest.mark.cluster)])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    if request.param == "simulated":
        yield from _simulated(tmp_path_factory.mktemp("sim"))
    else:
        yield _real()


def _real() -> ClusterUnderTest:
    kubeconfig = os.environ.get("KUBECONFIG")
    if not kubeconfig:
        pytest.fail("make test-cluster needs KUBECONFIG: a cluster with the objects of the demo (CONTRIBUTING.md)")
    limited = os.environ.get("KUBECONFIG_LIMITED")
    return ClusterUnderTest(Path(kubeconfig), Path(limited) if limited else None)


def _simulated(directory: Path) -> Iterator[ClusterUnderTest]:
    """The cluster in a thread with an event loop of its own: the cases block theirs while they wait for curl."""
    ready: queue.Queue[asyncio.AbstractEventLoop] = queue.Queue()
    done = asyncio.Event()

    async def serve() -> None:
        async with SimCluster() as cluster:
            cluster.kubeconfig(directory / "kubeconfig")
            cluster.kubeconfig(directory / "kubeconfig.limited", user="limited")
            ready.put(asyncio.get_running_loop())
            await done.wait()

    with ThreadPoolExecutor(1) as executor:
        serving = executor.submit(asyncio.run, serve())
        try:
            loop = ready.get(timeout=20)
            yield ClusterUnderTest(directory / "kubeconfig", directory / "kubeconfig.limited")
        finally:
            loop.call_soon_threadsafe(done.set)
            serving.result(20)


@pytest.fixture(scope="session")
def tunnel(cluster: ClusterUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    with Tunnel(tmp_path_factory.mktemp("confdir"), kubeconfig=cluster.kubeconfig) as tunnel:
        yield tunnel
        assert "Traceback" not in tunnel.log, tunnel.log


@pytest.fixture(scope="session")
def limited_tunnel(cluster: ClusterUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """As a user who may read pods, services and endpoints of `demo`, and nothing else."""
    if cluster.limited_kubeconfig is None:
        pytest.skip("KUBECONFIG_LIMITED is not set: no limited user on this cluster")
    with Tunnel(tmp_path_factory.mktemp("confdir"), kubeconfig=cluster.limited_kubeconfig) as tunnel:
        yield tunnel
