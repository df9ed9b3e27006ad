"""Credentials that end in mid-session, plugins that fail, hang or print rubbish, told until mended, and slow ones."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubetunnel.sim.cluster import SimCluster
from tests.proxy.test_troubles import get, told, until
from tests.tunnel import Tunnel

CURL_TIMED_OUT = 28
LIMIT_S = 4.0  # the contract's 2 s, and what a loaded machine adds


def broken_plugin(kubeconfig: Path, script: str) -> None:
    document = json.loads(kubeconfig.read_text())
    document["users"][0]["user"]["exec"] |= {"command": "sh", "args": ["-c", script]}
    kubeconfig.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo no login for you >&2; exit 3", "exit code 3: no login for you"),
        ("echo rubbish", "printed no ExecCredential"),
        ("head -c 3000000 /dev/zero", "printed no ExecCredential"),
        (
            'echo \'{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {}}\'',
            "neither",
        ),
        ("kill -9 $$", "exit code -9"),
    ],
    ids=["fails", "rubbish", "much rubbish", "nothing in it", "killed"],
)
async def test_a_plugin_that_is_broken_then_mended(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path, script: str, says: str
) -> None:
    path = sim.kubeconfig(tmp_path / "kubeconfig", auth="exec")
    good = path.read_text()
    broken_plugin(path, script)
    tunnel = await start_tunnel(path)
    answers = await asyncio.gather(*(get(tunnel, limit_s=LIMIT_S) for _ in range(3)))
    for answer in answers:
        assert says in told(answer, "Unauthenticated")
    path.write_text(good)
    assert (await get(tunnel, limit_s=LIMIT_S)).status == 200


async def test_a_slow_plugin_is_waited_for(sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path) -> None:
    """As with kubectl: 3 s in which many ask cost one run, and no request."""
    path = sim.kubeconfig(tmp_path / "kubeconfig", auth="exec")
    document = json.loads(path.read_text())
    plugin = document["users"][0]["user"]["exec"]
    slow = shlex.join([plugin["command"], *plugin["args"]])
    broken_plugin(path, f"sleep 3; exec {slow}")
    tunnel: Tunnel = await start_tunnel(path)
    answers = await asyncio.gather(*(get(tunnel, host, limit_s=30) for host in ("echo.demo", "pair.demo") * 3))
    assert [answer.status for answer in answers] == [200] * 6, [answer.text for answer in answers]
    assert sim.plugin_runs() == 1
    # refused in mid-session, it is run once more, and waited for too
    sim.expire_credentials()
    await sim.cut_connections()
    answers = await asyncio.gather(*(get(tunnel, "echo.other", limit_s=30) for _ in range(3)))
    assert [answer.status for answer in answers] == [200] * 3, [answer.text for answer in answers]
    assert "is at work; requests wait for it" in tunnel.log


async def test_a_plugin_that_hangs_leaves_once_it_is_mended(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    path = sim.kubeconfig(tmp_path / "kubeconfig", auth="exec")
    good = path.read_text()
    broken_plugin(path, "sleep 600")
    tunnel: Tunnel = await start_tunnel(path)
    assert (await get(tunnel, limit_s=2)).exit_code == CURL_TIMED_OUT, "it is waited for, as by kubectl"
    path.write_text(good)
    assert (await get(tunnel, limit_s=30)).status == 200


async def test_credentials_that_expire_while_requests_run(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    """The plugin is run again once, though gets, watches and port-forwards are all refused at the same time."""
    tunnel: Tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig", auth="exec"))
    hosts = ("echo.demo", "pair.demo", "echo-sts.demo:8080", "echo.other")
    for host in hosts[:2]:
        assert (await get(tunnel, host, limit_s=LIMIT_S)).status == 200
    for _ in range(2):
        runs = sim.plugin_runs()
        sim.expire_credentials()
        await sim.cut_connections()
        answers = await asyncio.gather(*(get(tunnel, host, limit_s=LIMIT_S) for host in hosts * 3))
        assert [answer.status for answer in answers] == [200] * 12, [answer.text for answer in answers]
        assert sim.plugin_runs() - runs <= 2, "one for what waits, at most one for the background"


async def test_a_token_file_that_is_rotated_is_read_again(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    tunnel: Tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig", auth="token-file"))
    assert (await get(tunnel)).status == 200
    sim.expire_credentials(renew=False)
    await sim.cut_connections()
    told(await get(tunnel, "pair.demo", limit_s=LIMIT_S), "Unauthenticated")
    sim.renew_credentials()
    await until(tunnel, "pair.demo", 200)
    assert (await get(tunnel)).status == 200
