"""The router and its cluster against the simulated one: fail-over, changed settings, ends, and defects of our own."""

from __future__ import annotations

import asyncio
import random
import shlex
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from kubetunnel.core.errors import ClusterUnreachable, NoReadyEndpoints, NotAServiceName, PodGone, PortNotExposed
from kubetunnel.core.ports import PortRequest
from kubetunnel.core.settings import ClusterSettings, RetrySettings, ServiceSettings, Settings, ZoneSettings
from kubetunnel.proxy.clusters import Cluster, Clusters
from kubetunnel.proxy.greeting import commands_to_try
from kubetunnel.proxy.routing import Destination, Router, Upstream
from kubetunnel.sim.cluster import SimCluster
from tests.tunnel import ADDON

HTTP = PortRequest(80, explicit=False, scheme="http")


@pytest_asyncio.fixture
async def clusters(sim: SimCluster, tmp_path: Path) -> AsyncIterator[Clusters]:
    kubeconfig = ClusterSettings(kubeconfig=str(sim.kubeconfig(tmp_path / "kubeconfig")))
    opened = Clusters(Settings(cluster=kubeconfig))
    yield opened
    await opened.aclose()


@pytest.fixture
def router(clusters: Clusters) -> Router:
    return Router(Settings(), clusters, random.Random(1))


async def find(router: Router, host: str) -> Destination:
    return await router.find(await router.parse(host), HTTP)


async def answer(upstream: Upstream) -> bytes:
    upstream.writer.write(b"GET /hostname HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        response = await upstream.reader.read()
    upstream.writer.close()
    return response.split()[-1]


async def test_a_pod_that_went_since_the_look_up_is_passed_by(sim: SimCluster, router: Router) -> None:
    destination = await find(router, "echo.demo")
    gone = destination.targets[0].pod_port.pod
    await sim.kill_pod("demo", gone)
    for _ in range(6):  # ties are broken at random
        upstream = await router.open(destination)
        assert upstream.target.pod_port.pod != gone
        assert (await answer(upstream)).decode() == upstream.target.pod_port.pod


async def test_when_all_pods_went_the_service_is_looked_up_again(sim: SimCluster, router: Router) -> None:
    destination = await find(router, "echo.demo")
    await sim.roll_deployment("demo", "echo")
    upstream = await router.open(destination)
    assert upstream.target not in destination.targets
    assert upstream.retries >= 1
    assert (await answer(upstream)).decode() == upstream.target.pod_port.pod


async def test_a_burst_is_spread_over_the_pods(router: Router) -> None:
    destination = await find(router, "echo.demo")
    opened = await asyncio.gather(*(router.open(destination) for _ in range(20)))
    assert sorted(Counter(upstream.target.pod_port.pod for upstream in opened).values()) == [10, 10]
    for upstream in opened:
        upstream.writer.close()


async def test_tries_are_as_many_as_configured(sim: SimCluster, clusters: Clusters) -> None:
    router = Router(Settings(retry=RetrySettings(max=0)), clusters)
    destination = await find(router, "pair.demo")
    await sim.kill_pod("demo", "pair")
    with pytest.raises(PodGone):
        await router.open(destination)
    with pytest.raises(NoReadyEndpoints):
        await Router(Settings(), clusters).open(destination)


async def test_a_refusal_names_the_kubeconfig_in_its_command(sim: SimCluster, router: Router, tmp_path: Path) -> None:
    with pytest.raises(PortNotExposed) as refused:
        await router.find(await router.parse("echo.demo"), PortRequest(81, explicit=True, scheme="http"))
    assert refused.value.command == f"kubectl --kubeconfig {tmp_path / 'kubeconfig'} -n demo get service echo"


@pytest.mark.parametrize("host", ["www.example.com", "10.0.0.1", "", "a.b.c.d.e"])
async def test_a_name_that_is_none_of_ours_names_the_kubeconfig_too(router: Router, tmp_path: Path, host: str) -> None:
    """Also before the kubeconfig was read, which such a name does not need."""
    command = f"kubectl --kubeconfig {tmp_path / 'kubeconfig'} get services --all-namespaces"
    for _ in range(2):
        with pytest.raises(NotAServiceName) as refused:
            await router.parse(host)
        assert refused.value.command == command
        await find(router, "echo.demo")


@pytest.mark.parametrize("given", [{"context": "production"}, {"kubeconfig": "/etc/my config", "context": "b"}, {}])
async def test_flags_that_were_given_are_in_the_command(given: dict[str, str]) -> None:
    unopened = Clusters(Settings(cluster=ClusterSettings(**given)))
    with pytest.raises(NotAServiceName) as refused:
        Router(Settings(), unopened).split_authority(":80")
    flags = [part for name in ("kubeconfig", "context") if name in given for part in (f"--{name}", given[name])]
    assert refused.value.command == shlex.join(["kubectl", *flags, "get", "services", "--all-namespaces"])
    await unopened.aclose()


async def test_settings_that_change_while_the_kubeconfig_is_read_win(sim: SimCluster, tmp_path: Path) -> None:
    first = ClusterSettings(kubeconfig=str(sim.kubeconfig(tmp_path / "first", context="first")))
    second = ClusterSettings(kubeconfig=str(sim.kubeconfig(tmp_path / "second", context="second")))
    cluster = Cluster(first)
    opening = asyncio.create_task(cluster.session())
    await asyncio.sleep(0)  # it waits for the kubeconfig by now
    cluster.configure(second, None)
    assert (await opening).access.context == "second"
    cluster.configure(first, None)
    assert (await cluster.session()).access.context == "first"
    await cluster.aclose()
    with pytest.raises(ClusterUnreachable):
        await cluster.session()


async def test_a_vanished_pods_upstreams_are_drained(sim: SimCluster, clusters: Clusters, router: Router) -> None:
    upstream = await router.open(await find(router, "pair.demo"))
    forwards = (await clusters.first.session()).forwards
    await sim.kill_pod("demo", "pair")
    async with asyncio.timeout(5):
        while any(facts.state == "open" for facts in forwards.upstreams()):  # noqa: ASYNC110 - tells nobody
            await asyncio.sleep(0.01)
    upstream.writer.close()


async def test_a_pod_in_clear_is_asked_once_whether_it_speaks_http_2(clusters: Clusters, router: Router) -> None:
    destination = await find(router, "echo.demo")
    asked = await asyncio.gather(*(router.http_version(destination, client_http2=True) for _ in range(5)))
    assert {version.name for version in asked} == {"HTTP2"}
    forwards = (await clusters.first.session()).forwards
    assert sum(facts.streams_opened for facts in forwards.upstreams()) == 1
    plain = await router.find(await router.parse("echo.demo"), PortRequest(7, explicit=True, scheme=""))
    assert (await router.http_version(plain, client_http2=True)).name == "HTTP1"


async def test_a_port_that_refused_once_is_asked_again_and_all_who_ask_are_told(
    sim: SimCluster, clusters: Clusters, router: Router
) -> None:
    destination = await find(router, "echo.demo")
    sim.faults.set(port=8080, refuse=True)
    asked = [router.http_version(destination, client_http2=True) for _ in range(5)]
    async with asyncio.timeout(3):
        told = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(error).__name__ for error in told} == {"ConnectionRefused"}
    sim.faults.clear()
    assert (await router.http_version(destination, client_http2=True)).name == "HTTP2"


async def test_a_pod_by_address_is_spoken_to_in_tls_at_the_usual_ports(sim: SimCluster, router: Router) -> None:
    name = await router.parse(f"{sim.pod('demo', 'pair').address.replace('.', '-')}.demo.pod.cluster.local")
    for port, tls in ((8443, True), (8080, False)):
        assert (await router.find(name, PortRequest(port, explicit=True, scheme="https"))).spoken.tls is tls


async def test_a_ca_file_for_a_port_means_tls(clusters: Clusters) -> None:
    router = Router(Settings(services=(ServiceSettings("echo.demo", 80, ca_file="/ca.pem"),)), clusters)
    assert (await find(router, "echo.demo")).spoken.tls


async def test_what_the_user_knows_of_a_service_wins(clusters: Clusters) -> None:
    services = (ServiceSettings("echo.*", 80, app_protocol="https"), ServiceSettings("*", app_protocol="http"))
    router = Router(Settings(services=services), clusters)
    assert (await find(router, "echo.demo")).spoken.tls
    assert not (await find(router, "pair.demo")).spoken.tls


async def test_the_greeting_opens_nothing_and_finds_a_service_elsewhere(sim: SimCluster, tmp_path: Path) -> None:
    config = sim.kubeconfig(tmp_path / "kubeconfig", namespace="default")
    cluster = Cluster(ClusterSettings(kubeconfig=str(config)))
    commands = await commands_to_try(await cluster.session(), "cluster.local", "[::1]:8080")
    assert commands[0] == "curl -H 'Host: echo.demo.svc.cluster.local' http://[::1]:8080/"
    by_name = await commands_to_try(await cluster.session(), "cluster.local", "[::1]:8080", by_name=True)
    assert by_name == ["curl http://echo.demo.svc.cluster.local/", *commands]
    assert not sim.count_requests("watch")
    await cluster.aclose()


async def test_without_the_right_to_list_the_greeting_has_placeholders(sim: SimCluster, tmp_path: Path) -> None:
    sim.user("nobody", [])
    cluster = Cluster(ClusterSettings(kubeconfig=str(sim.kubeconfig(tmp_path / "kubeconfig", "nobody"))))
    commands = await commands_to_try(await cluster.session(), "cluster.local", "127.0.0.1:8080")
    assert "SERVICE.NAMESPACE.svc.cluster.local" in commands[0]
    await cluster.aclose()


async def test_a_defect_of_ours_is_told_and_not_waited_for(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    breaking = ["-s", str(ADDON.parents[1] / "tests" / "proxy" / "breaking.py")]
    tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=breaking)
    for host in ("pair.demo", "echo.demo"):
        told = await asyncio.to_thread(tunnel.get, host, timeout_s=5)
        assert (told.status, told.reason) == (502, "UpstreamProtocol")
        assert "ZeroDivisionError" in told.json["detail"]
    assert tunnel.log.count("Traceback") == 2
    tunnel.lines[:] = [line.replace("Traceback", "expected") for line in tunnel.lines]


async def test_a_zone_whose_context_does_not_exist_is_told_of_at_the_start(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    path = sim.kubeconfig(tmp_path / "kubeconfig", context="here")
    options = ("--set", "kube_zones=same.local=here", "--set", "kube_zones=gone.local=no-such-context")
    tunnel = await start_tunnel(path, options=options)
    async with asyncio.timeout(20):
        while "names in gone.local will be refused" not in tunnel.log:  # noqa: ASYNC110 - a log has no event
            await asyncio.sleep(0.05)
    (line,) = [line for line in tunnel.lines if "will be refused" in line]
    assert "no-such-context" in line
    assert "names in same.local" not in tunnel.log


async def test_another_zone_is_another_cluster(sim: SimCluster, clusters: Clusters, tmp_path: Path) -> None:
    async with SimCluster() as production:
        here_too = yaml.safe_load(sim.kubeconfig(tmp_path / "here").read_text())
        there = yaml.safe_load(production.kubeconfig(tmp_path / "there", context="production").read_text())
        there["users"][0]["name"] = there["contexts"][0]["context"]["user"] = "there"
        merged = here_too | {kind: here_too[kind] + there[kind] for kind in ("clusters", "users", "contexts")}
        (tmp_path / "merged").write_text(yaml.safe_dump(merged))
        settings = Settings(
            cluster=ClusterSettings(kubeconfig=str(tmp_path / "merged")),
            zones=(ZoneSettings("prod.local", "production"), ZoneSettings("gone.local", "no-such-context")),
        )
        both = Clusters(settings)
        router = Router(settings, both)
        try:
            await production.scale("demo", "echo", 1)
            here = await find(router, "echo.demo.svc.cluster.local")
            there_too = await find(router, "echo.demo.svc.prod.local")
            assert (len(here.targets), len(there_too.targets)) == (2, 1)
            assert here.session is not there_too.session
            assert (await answer(await router.open(there_too))).decode() == there_too.targets[0].pod_port.pod
            assert router.owns("echo.demo.svc.prod.local")
            with pytest.raises(ClusterUnreachable, match="no-such-context"):
                await find(router, "echo.demo.svc.gone.local")
            await find(router, "echo.demo.svc.cluster.local")

            place = {"service": "echo.demo.svc.prod.local", "port": 7}
            assert router.asked_for(there_too.name, 7) == {**place, "context": "production"}
            both.configure(Settings(cluster=settings.cluster), None)
            assert router.asked_for(there_too.name, 7) == place
            with pytest.raises(NotAServiceName):
                await find(router, "echo.demo.svc.prod.local")
            with pytest.raises(ClusterUnreachable):  # soon: it is ended by a task
                async with asyncio.timeout(5):
                    while True:
                        _, writer = await there_too.session.forwards.open_connection(there_too.targets[0].pod_port)
                        writer.close()
                        await asyncio.sleep(0.01)
        finally:
            await both.aclose()
