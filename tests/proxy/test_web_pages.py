"""Pages of strangers at the tunnel's own port, at a virtual IP and at the shared address: told nothing."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kubetunnel.sim.cluster import SimCluster
from tests.proxy.test_recorded_flows import NO_CLUSTER, replay_of
from tests.proxy.virtual_network import (
    ECHO,
    IN_NAMESPACE,
    PAIR,
    SHARED,
    World,
    redirect_to_the_tunnel,
    world,
)
from tests.tunnel import Answer, Tunnel, curl

PAGE = ("-H", "Accept-Language: en")
H2C = "--http2-prior-knowledge"
IN_IT = "test_redirected_from_the_shared_address"


def assert_told_nothing(answer: Answer) -> None:
    assert (answer.status, answer.reason) == (400, "NotAServiceName"), answer
    assert answer.json["detail"] == "Web pages may not ask by this name. The tunnel's log says more."
    assert "command" not in answer.json


async def ask(tunnel: Tunnel, host: str, *arguments: str) -> Answer:
    return await asyncio.to_thread(tunnel.get, host, "/hostname", *arguments, timeout_s=5)


@pytest.mark.parametrize("version", ["--http1.1", H2C])
async def test_short_forms_with_a_dot_at_the_tunnels_port(tunnel: Tunnel, version: str) -> None:
    for host in ("echo.demo", "echo.demo:80", "no-such.demo", "evil.example", "a.b.c.d.example", "bad_host.example"):
        assert_told_nothing(await ask(tunnel, host, version, *PAGE))
    for host in ("echo.demo.svc", "echo.demo.svc.cluster.local", "echo"):
        assert (await ask(tunnel, host, version, *PAGE)).status == 200
    assert (await ask(tunnel, "echo.demo", version)).status == 200, "a program"
    for mark in ("Referer: http://echo.demo/", "Upgrade-Insecure-Requests: 1", "Origin: null", "Sec-Fetch-Mode: cors"):
        assert_told_nothing(await ask(tunnel, "echo.demo", version, "-H", mark))


async def test_the_log_has_what_the_page_is_not_told(tunnel: Tunnel) -> None:
    for host in ("shop.example", "shop.example", "$(reboot).example"):
        assert_told_nothing(await ask(tunnel, host, *PAGE))
    tunnel.wait_for(r"(?m)'shop\.example' asks for a Service .* kube-tunnel --set kube_hosts=shop\.example$")
    tunnel.wait_for(r"(?m)'\$\(reboot\)\.example' asks for a Service .* say so: http\.hosts$")
    assert tunnel.log.count("DNS rebinding") == 2, "once a host"


async def test_what_a_proxy_is_asked_for_is_the_users_wish(tunnel: Tunnel) -> None:
    for through in (["-x", tunnel.url], ["-p", "-x", tunnel.url], ["--socks5-hostname", f"127.0.0.1:{tunnel.port}"]):
        answer = await asyncio.to_thread(curl, *through, *PAGE, "http://echo.demo/hostname", timeout_s=5)
        assert answer.status == 200, (through, answer)


async def test_each_request_of_a_connection_is_looked_at(tunnel: Tunnel) -> None:
    def statuses() -> list[int]:
        connection = http.client.HTTPConnection("127.0.0.1", tunnel.port, timeout=5)
        found = []
        for target, host in (
            ("http://echo.demo/hostname", "echo.demo"),
            ("/hostname", "echo.demo.svc"),
            ("/hostname", "echo.demo"),
            ("/hostname", "echo.demo.svc"),
        ):
            connection.putrequest("GET", target, skip_host=True)
            connection.putheader("Host", host)
            connection.putheader("Accept-Language", "en")
            connection.endheaders()
            response = connection.getresponse()
            response.read()
            found.append(response.status)
        connection.close()
        return found

    assert await asyncio.to_thread(statuses) == [200, 200, 400, 200]


async def test_a_host_that_is_the_users(sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path) -> None:
    tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=["--set", "kube_hosts=echo.demo"])
    assert (await ask(tunnel, "echo.demo", *PAGE)).status == 200
    assert_told_nothing(await ask(tunnel, "pair.demo", *PAGE))


async def test_recorded_answers_are_not_for_strangers(start_tunnel: Callable[..., Any]) -> None:
    options = [*replay_of("http1"), "--set", "server_replay_reuse=true", "--set", "server_replay_ignore_host=true"]
    tunnel = await start_tunnel(None, env=NO_CLUSTER, options=options)
    assert (await ask(tunnel, "echo.demo.svc.cluster.local", *PAGE)).status == 200
    assert_told_nothing(await ask(tunnel, "echo.demo", *PAGE))


@pytest.fixture(scope="module")
def virtual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("virtual"), loopback_range="127.74.0.0/24") as found:
        yield found


def test_at_a_virtual_ip(virtual: World) -> None:
    url = virtual.url(PAIR, 80) + "/hostname"
    for host in ("evil.example", "pair.demo"):
        answer = curl(url, "-H", f"Host: {host}", *PAGE)
        assert_told_nothing(answer)
        assert "pair" not in answer.text
    virtual.tunnel.wait_for(rf"'evil\.example' asks for {PAIR} ")
    assert curl(url, "-H", "Host: evil.example").status == 200, "a program"
    assert curl(url, *PAGE).status == 200, "the address itself"
    assert curl(url, "-H", f"Host: {ECHO}", *PAGE).status == 200


@pytest.mark.skipif(bool(os.environ.get(IN_NAMESPACE)), reason="is in the namespace")
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root, for a network namespace")
@pytest.mark.skipif(not (shutil.which("nft") and shutil.which("ip")), reason="needs nft and ip")
def test_at_the_shared_address() -> None:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{IN_IT}"],
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2],
        env={**os.environ, IN_NAMESPACE: "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not os.environ.get(IN_NAMESPACE), reason="the shared address is redirected from")
def test_redirected_from_the_shared_address(tmp_path: Path) -> None:
    redirect_to_the_tunnel()
    with world(tmp_path, shared=True):
        for scheme, port in (("http", 80), ("https", 443)):
            for host, status in (("pair.demo", 400), (PAIR, 200), ("pair.demo.svc", 200)):
                to_shared = ["-k", "--connect-to", f"::{SHARED}:{port}", *PAGE]
                answer = curl(*to_shared, f"{scheme}://{host}/hostname")
                assert answer.status == status, (scheme, host, answer)
                if status == 400:
                    assert_told_nothing(answer)
            assert curl("-k", "--connect-to", f"::{SHARED}:{port}", f"{scheme}://pair.demo/hostname").status == 200
