"""The same cases on the simulated cluster and on a real one with the same objects (marker `cluster`, $KUBECONFIG)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kubetunnel.sim.cluster import SimCluster
from tests.simulated import simulated
from tests.tunnel import InstalledTunnel, Tunnel


@dataclass(frozen=True)
class ClusterUnderTest:
    """Where the cases run. `app_ca`: of the certificate that the pods of demo/echo show."""

    kubeconfig: Path
    limited_kubeconfig: Path | None
    app_ca: Path | None


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
    app_ca = Path(os.environ.get("KUBECONFIG_APP_CA") or Path(kubeconfig).parent / "pki" / "app-ca.crt")
    return ClusterUnderTest(Path(kubeconfig), Path(limited) if limited else None, app_ca if app_ca.is_file() else None)


def _simulated(directory: Path) -> Iterator[ClusterUnderTest]:
    under_test = ClusterUnderTest(directory / "kubeconfig", directory / "kubeconfig.limited", directory / "app-ca.crt")

    async def write_files(cluster: SimCluster) -> None:
        cluster.kubeconfig(directory / "kubeconfig")
        cluster.kubeconfig(directory / "kubeconfig.limited", user="limited")
        (directory / "app-ca.crt").write_text(cluster.app_authority_pem)

    with simulated(write_files):
        yield under_test


@pytest.fixture(scope="session")
def tunnel(cluster: ClusterUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    with InstalledTunnel(tmp_path_factory.mktemp("confdir"), kubeconfig=cluster.kubeconfig) as tunnel:
        yield tunnel
        assert "Traceback" not in tunnel.log, tunnel.log


@pytest.fixture(scope="session")
def http2_tunnel(cluster: ClusterUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """Speaks HTTP/2 to every pod, and leaves TLS to demo/echo:443 alone."""
    options = ["--set", "kube_force_http2=true", "--set", "kube_services=echo.demo:443 passthrough=true"]
    with InstalledTunnel(tmp_path_factory.mktemp("confdir"), kubeconfig=cluster.kubeconfig, options=options) as tunnel:
        yield tunnel
        assert "Traceback" not in tunnel.log, tunnel.log


@pytest.fixture(scope="session")
def http1_tunnel(cluster: ClusterUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """Knows of demo/echo:80 that it speaks HTTP/1.1 only."""
    options = ["--set", "kube_services=echo.demo:80 app_protocol=http"]
    with InstalledTunnel(tmp_path_factory.mktemp("confdir"), kubeconfig=cluster.kubeconfig, options=options) as tunnel:
        yield tunnel
        assert "Traceback" not in tunnel.log, tunnel.log


@pytest.fixture(scope="session")
def limited_tunnel(cluster: ClusterUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """As a user who may read pods, services and endpoints of `demo`, and nothing else."""
    if cluster.limited_kubeconfig is None:
        pytest.skip("KUBECONFIG_LIMITED is not set: no limited user on this cluster")
    with InstalledTunnel(tmp_path_factory.mktemp("confdir"), kubeconfig=cluster.limited_kubeconfig) as tunnel:
        yield tunnel
