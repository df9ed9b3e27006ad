"""What goes wrong is told within 2 s, and the next request works when the cause is gone, with no restart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.objects import Port, ServiceSpec
from tests.tunnel import Answer, Tunnel

LIMIT_S = 2.0
HOST = "echo.demo.svc.cluster.local"


async def get(tunnel: Tunnel, host: str = HOST, *arguments: str, limit_s: float = LIMIT_S) -> Answer:
    return await asyncio.to_thread(tunnel.get, host, "/hostname", *arguments, timeout_s=limit_s)


def told(answer: Answer, reason: str) -> str:
    assert answer.exit_code == 0, answer.stderr
    assert answer.reason == reason, answer.body
    detail: str = answer.json["detail"]
    return detail


async def test_no_kubeconfig_then_one(sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "later"
    tunnel = await start_tunnel(None, env={"KUBECONFIG": str(path)})
    assert str(path) in told(await get(tunnel), "ClusterUnreachable")
    sim.kubeconfig(path)
    assert (await get(tunnel)).status == 200


async def test_a_broken_kubeconfig_then_a_mended_one(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "kubeconfig"
    good = sim.kubeconfig(path).read_text()
    tunnel = await start_tunnel(path)
    path.write_text("apiVersion: v1\nkind: Config\nclusters: [")
    broken = await start_tunnel(path)
    assert str(path) in told(await get(broken), "ClusterUnreachable")
    path.write_text('{"apiVersion": "v1", "kind": "Config", "current-context": "gone"}')
    detail = told(await get(broken), "ClusterUnreachable")
    assert str(path) in detail
    assert "gone" in detail
    path.write_text(good)
    assert (await get(broken)).status == 200
    assert (await get(tunnel)).status == 200, "the one that had read the good file is not disturbed"


async def test_the_api_server_goes_and_comes_back(sim: SimCluster, tunnel: Tunnel) -> None:
    assert (await get(tunnel)).status == 200
    await sim.stop_api()
    detail = told(await get(tunnel), "ClusterUnreachable")
    assert sim.server in detail
    assert "ClusterUnreachable" in (await get(tunnel, "pair.demo")).headers["x-kube-tunnel-error"]
    await sim.start_api()
    assert (await get(tunnel)).status == 200
    assert (await get(tunnel, "pair.demo")).status == 200


async def test_expired_credentials_then_new_ones(sim: SimCluster, tunnel: Tunnel, tmp_path: Path) -> None:
    assert (await get(tunnel)).status == 200
    sim.expire_credentials()
    await sim.cut_connections()
    told(await get(tunnel, "pair.demo"), "Unauthenticated")
    sim.kubeconfig(tmp_path / "kubeconfig")
    assert (await get(tunnel, "pair.demo")).status == 200


async def test_an_exec_plugin_renews_expired_credentials_unnoticed(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig", auth="exec"))
    assert (await get(tunnel)).status == 200
    sim.expire_credentials()
    await sim.cut_connections()
    assert (await get(tunnel, "pair.demo")).status == 200
    assert (await get(tunnel)).status == 200


async def test_a_credential_plugin_that_is_not_there_is_told_each_time(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    config = json.loads(sim.kubeconfig(tmp_path / "kubeconfig", auth="exec").read_text())
    config["users"][0]["user"]["exec"]["command"] = "no-such-plugin"
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    tunnel = await start_tunnel(tmp_path / "kubeconfig")
    for _ in range(3):
        assert "no-such-plugin is not installed" in told(await get(tunnel), "Unauthenticated")


async def test_a_service_that_appears_is_there_for_the_next_request(sim: SimCluster, tunnel: Tunnel) -> None:
    told(await get(tunnel, "late.demo"), "ServiceNotFound")
    await sim.add_service(ServiceSpec("demo", "late", ports=(Port(80, "http", 8080),), selector={"app": "pair"}))
    assert await until(tunnel, "late.demo", 200) == "pair\n"
    await sim.remove_service("demo", "late")
    await until_refused(tunnel, "late.demo", "ServiceNotFound")


async def until(tunnel: Tunnel, host: str, status: int) -> str:
    """A refusal is kept for half a second, and a watch takes a moment to bring the news."""
    async with asyncio.timeout(10):
        while (answer := await get(tunnel, host)).status != status:  # noqa: ASYNC110 - only asking tells
            await asyncio.sleep(0.05)
    return answer.text


async def until_refused(tunnel: Tunnel, host: str, reason: str) -> None:
    """Watches take a moment to bring the news; ten looks are enough."""
    for _ in range(10):
        if (await get(tunnel, host)).reason == reason:
            return
    raise AssertionError(f"{host} was not refused with {reason}")


async def test_a_pod_that_becomes_ready_and_unready(sim: SimCluster, tunnel: Tunnel) -> None:
    for pod in ("echo-sts-0", "echo-sts-1"):
        await sim.set_ready("demo", pod, False)
    assert "2" in told(await get(tunnel, "echo-sts.demo"), "NoReadyEndpoints")
    await sim.set_ready("demo", "echo-sts-1", True)
    for _ in range(10):
        answer = await get(tunnel, "echo-sts.demo")
        if answer.status == 200:
            break
    assert answer.text == "echo-sts-1\n"


async def test_after_a_rollout_requests_go_to_the_new_pods(sim: SimCluster, tunnel: Tunnel) -> None:
    before = {pod.name for pod in sim.pods("demo", app="echo")}
    assert (await get(tunnel)).text.strip() in before
    await sim.roll_deployment("demo", "echo")
    after = {pod.name for pod in sim.pods("demo", app="echo")}
    assert not before & after
    for _ in range(5):
        assert (await get(tunnel)).text.strip() in after


async def test_a_first_request_costs_three_kinds_of_request(sim: SimCluster, tunnel: Tunnel) -> None:
    await asyncio.to_thread(tunnel.wait_for, "Try:")
    sim.requests.clear()
    assert (await get(tunnel, "echo.other")).status == 200
    asked = [request for request in sim.requests if request.verb != "watch"]
    assert {(request.verb, request.path.rpartition("/")[2]) for request in asked} == {
        ("list", "services"),
        ("list", "endpointslices"),
        ("get", "portforward"),  # a WebSocket upgrade
    }
    assert len(asked) == 3
    before = len(sim.requests)
    assert (await get(tunnel, "echo.other")).status == 200
    assert not [request for request in sim.requests[before:] if request.verb in ("get", "list")]


async def test_one_failing_client_does_not_disturb_another(sim: SimCluster, tunnel: Tunnel) -> None:
    async def refused() -> Answer:
        return await get(tunnel, "echo.demo:9999", limit_s=10)

    async def answered() -> Answer:
        return await get(tunnel, "echo.demo", limit_s=10)

    answers = await asyncio.gather(*(request() for _ in range(10) for request in (refused, answered)))
    assert [answer.reason for answer in answers[::2]] == ["ConnectionRefused"] * 10
    assert [answer.status for answer in answers[1::2]] == [200] * 10
