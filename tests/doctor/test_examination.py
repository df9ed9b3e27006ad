"""The whole examination on the simulated cluster, with what may be wrong there; and on a real one."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from kubetunnel.core.errors import Timeout
from kubetunnel.core.settings import DnsSettings, ProxySettings, Settings
from kubetunnel.doctor.cluster import Choice
from kubetunnel.doctor.examination import Subject, examine, supervised
from kubetunnel.doctor.verdict import Level, Verdict
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.rbac import Rule


@pytest_asyncio.fixture
async def sim() -> AsyncIterator[SimCluster]:
    async with SimCluster() as cluster:
        yield cluster


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


async def examined(kubeconfig: Path | str, confdir: Path, **choice: str) -> dict[str, Verdict]:
    settings = Settings(proxy=ProxySettings(free_port()), dns=DnsSettings(port=free_port()))
    subject = Subject(Choice(str(kubeconfig), **choice), settings, confdir=confdir, environ={})
    return {verdict.check: verdict for verdict in await examine(subject)}


OF_THE_CLUSTER = (
    "kubeconfig", "API server", "clock", "credentials", "right: services", "right: endpoints", "right: pods",
    "right: port-forward", "port-forward protocols",
)  # fmt: skip


async def test_all_is_well(sim: SimCluster, tmp_path: Path) -> None:
    found = await examined(sim.kubeconfig(tmp_path / "kubeconfig"), tmp_path)
    assert {name: found[name].level for name in OF_THE_CLUSTER} == dict.fromkeys(OF_THE_CLUSTER, Level.OK), found
    assert "admin" in found["credentials"].found
    assert "SPDY in WebSocket, SPDY/3.1, WebSocket v4 taken" in found["port-forward protocols"].found
    for name in ("tunnel's port", "DNS port", "versions", "proxy variables"):
        assert found[name].level is Level.OK, found[name]


async def test_the_limited_user(sim: SimCluster, tmp_path: Path) -> None:
    found = await examined(sim.kubeconfig(tmp_path / "kubeconfig", user="limited"), tmp_path)
    levels = {name: found[name].level for name in OF_THE_CLUSTER}
    assert levels == dict.fromkeys(OF_THE_CLUSTER, Level.OK) | {
        "right: endpoints": Level.WARN,
        "right: port-forward": Level.FAIL,
        "port-forward protocols": Level.FAIL,
    }
    assert "--user=limited" in found["right: port-forward"].mend


async def test_another_namespace_is_another_right(sim: SimCluster, tmp_path: Path) -> None:
    found = await examined(sim.kubeconfig(tmp_path / "kubeconfig", user="limited"), tmp_path, namespace="other")
    assert found["right: services"].level is Level.FAIL
    assert "-n other create role" in found["right: services"].mend
    assert found["port-forward protocols"].level is Level.SKIP


async def test_a_namespace_without_a_pod(sim: SimCluster, tmp_path: Path) -> None:
    found = await examined(sim.kubeconfig(tmp_path / "kubeconfig"), tmp_path, namespace="empty")
    assert found["port-forward protocols"].level is Level.SKIP
    assert found["port-forward protocols"].found == "no pod to try it with: none runs in namespace empty"


async def test_get_alone_of_port_forward(sim: SimCluster, tmp_path: Path) -> None:
    reader = Rule(["get", "list", "watch"], ["pods", "services", "endpointslices"])
    sim.user("getter", [reader, Rule(["get"], ["pods/portforward"])])
    found = await examined(sim.kubeconfig(tmp_path / "kubeconfig", user="getter"), tmp_path)
    assert found["right: port-forward"].level is Level.WARN
    protocols = found["port-forward protocols"]
    assert (protocols.level, "SPDY/3.1: a right is missing" in protocols.found) == (Level.OK, True)


async def test_nobody(sim: SimCluster, tmp_path: Path) -> None:
    found = await examined(sim.kubeconfig(tmp_path / "kubeconfig", auth="none"), tmp_path)
    assert found["kubeconfig"].level is Level.OK
    assert (found["credentials"].level, "right: services" in found) == (Level.FAIL, False)


async def test_a_refused_token(sim: SimCluster, tmp_path: Path) -> None:
    kubeconfig = sim.kubeconfig(tmp_path / "kubeconfig")
    token = sim.token()
    sim.expire_credentials(renew=False)
    found = await examined(kubeconfig, tmp_path)
    assert found["credentials"].level is Level.FAIL
    assert token not in str(found)


async def test_nobody_there(tmp_path: Path, sim: SimCluster) -> None:
    kubeconfig = sim.kubeconfig(tmp_path / "kubeconfig")
    kubeconfig.write_text(kubeconfig.read_text().replace(f":{sim.port}", f":{free_port()}"))
    found = await examined(kubeconfig, tmp_path)
    assert found["API server"].level is Level.FAIL
    assert "cluster-info" in found["API server"].mend
    assert found["tunnel's port"].level is Level.OK


async def test_a_silent_api_server(tmp_path: Path, sim: SimCluster) -> None:
    kubeconfig = sim.kubeconfig(tmp_path / "kubeconfig")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        kubeconfig.write_text(kubeconfig.read_text().replace(f":{sim.port}", f":{port}"))
        async with asyncio.timeout(15):
            found = await examined(kubeconfig, tmp_path)
    assert found["API server"].level is Level.FAIL
    assert "no answer within" in found["API server"].found


@pytest.mark.parametrize(
    ("content", "told"), [("clusters: [", "not valid YAML"), ("apiVersion: v1", "current-context"), (None, "not exist")]
)
async def test_a_broken_kubeconfig(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "kubeconfig").write_text(content)
    found = await examined(tmp_path / "kubeconfig", tmp_path)
    assert (found["kubeconfig"].level, told in found["kubeconfig"].found) == (Level.FAIL, True), found["kubeconfig"]
    assert found["kubeconfig"].mend
    assert "API server" not in found


# -- the supervision point


async def test_a_check_that_breaks_is_a_line_of_its_own() -> None:
    async def broken() -> list[Verdict]:
        raise ZeroDivisionError("by zero")

    [found] = await supervised("ports", broken())
    assert (found.check, found.level) == ("ports", Level.FAIL)
    assert "ZeroDivisionError: by zero" in found.found


async def test_a_check_that_is_refused() -> None:
    async def refused() -> list[Verdict]:
        raise Timeout("No answer.", command="kubectl version")

    [found] = await supervised("rights", refused())
    assert (found.found, found.mend) == ("No answer.", "kubectl version")


async def test_one_of_several_questions_is_refused() -> None:
    async def refused() -> list[Verdict]:
        raise ExceptionGroup("", [Timeout("No answer.", command="kubectl version"), ValueError()])

    [found] = await supervised("rights", refused())
    assert (found.found, found.mend) == ("No answer.", "kubectl version")


async def test_a_check_that_does_not_end() -> None:
    async def endless() -> list[Verdict]:
        await asyncio.Event().wait()
        return []

    [found] = await supervised("rights", endless(), timeout_s=0.01)
    assert (found.level, "0.01 s" in found.found) == (Level.FAIL, True)


async def test_a_cancelled_check_is_cancelled() -> None:
    waiting = asyncio.Event()

    async def endless() -> list[Verdict]:
        waiting.set()
        await asyncio.Event().wait()
        return []

    task = asyncio.create_task(supervised("rights", endless()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- a real cluster


@pytest.mark.cluster
async def test_a_real_cluster(tmp_path: Path) -> None:
    found = await examined(os.environ["KUBECONFIG"], tmp_path)
    assert {found[name].level for name in OF_THE_CLUSTER} == {Level.OK}, found


@pytest.mark.cluster
async def test_the_limited_user_of_a_real_cluster(tmp_path: Path) -> None:
    limited = os.environ.get("KUBECONFIG_LIMITED")
    if not limited:
        pytest.skip("KUBECONFIG_LIMITED is not set: no limited user on this cluster")
    found = await examined(limited, tmp_path)
    assert found["right: services"].level is Level.OK
    assert found["right: port-forward"].level is Level.FAIL
    assert found["port-forward protocols"].level is Level.FAIL
