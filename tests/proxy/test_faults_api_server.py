"""The API server goes away in each of the ways that it can, and comes back: requests work within 3 s, with no restart.

"Away" is also what a suspended machine wakes up to: every connection is dead, and no FIN says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.faults import Protocols
from tests.proxy.test_troubles import get, told
from tests.relay import Relay
from tests.tunnel import Answer, Tunnel

pytestmark = pytest.mark.alone

BACK_S = 3.0  # the contract of issue 4: from the cluster's being back to the first request that works


@pytest_asyncio.fixture
async def relay(sim: SimCluster) -> AsyncIterator[Relay]:
    async with Relay("127.0.0.1", sim.port) as relay:
        yield relay


@pytest_asyncio.fixture
async def tunnel(sim: SimCluster, relay: Relay, start_tunnel: Callable[..., Any], tmp_path: Path) -> Tunnel:
    """A tunnel whose connections to the API server go through the relay."""
    started: Tunnel = await start_tunnel(relay.kubeconfig(sim.kubeconfig(tmp_path / "kubeconfig")))
    return started


async def warm_up(tunnel: Tunnel, *, count: int = 6) -> None:
    """Uses both pods, and opens a few connections of each kind."""
    answers = await asyncio.gather(*(get(tunnel, limit_s=10) for _ in range(count)))
    assert [answer.status for answer in answers] == [200] * count


async def back(tunnel: Tunnel, *hosts: str) -> None:
    """Asks for each host, one after the other, as a person would who asks again when it failed."""
    started = time.monotonic()
    for host in hosts:
        while (answer := await get(tunnel, host, limit_s=10)).status != 200:
            assert time.monotonic() - started < BACK_S, (answer.text, answer.stderr)
        assert time.monotonic() - started < BACK_S, answer.total_s


async def failed_in_time(answer: Answer) -> str:
    """A refusal within the contract's 2 s, and which."""
    assert answer.exit_code == 0, answer.stderr
    assert answer.total_s < 4.0, "2 s, and what a loaded machine adds"
    assert answer.reason is not None, answer.text
    return answer.reason


@pytest.mark.parametrize("protocols", [Protocols.MODERN, Protocols.SPDY, Protocols.V4])
async def test_connections_that_died_in_silence(
    sim: SimCluster, relay: Relay, tunnel: Tunnel, protocols: Protocols
) -> None:
    sim.faults.protocols = protocols
    await warm_up(tunnel)
    relay.fall_silent()
    relay.resume()
    await back(tunnel, "echo.demo", "pair.demo", "echo.demo")


async def test_pods_were_replaced_while_the_machine_slept(sim: SimCluster, relay: Relay, tunnel: Tunnel) -> None:
    await warm_up(tunnel)
    relay.fall_silent()
    await sim.roll_deployment("demo", "echo")
    await sim.replace_pod("demo", "pair")
    relay.resume()
    await back(tunnel, "echo.demo", "pair.demo")
    # and the watches know of it again: what comes now arrives without a detour over a pod that is gone
    await back(tunnel, *["echo.demo"] * 5)


async def test_an_outage_with_requests_and_then_the_cluster_is_back(
    sim: SimCluster, relay: Relay, tunnel: Tunnel
) -> None:
    await warm_up(tunnel)
    await relay.stop()
    started = time.monotonic()
    while time.monotonic() - started < 4.0:  # backoffs grow meanwhile
        answers = await asyncio.gather(get(tunnel, limit_s=10), get(tunnel, "pair.demo", limit_s=10))
        for answer in answers:
            assert await failed_in_time(answer) == "ClusterUnreachable"
    await relay.listen()
    await back(tunnel, "echo.demo", "pair.demo", "echo-sts.demo:8080")


async def test_an_api_server_that_takes_connections_and_never_answers(
    sim: SimCluster, relay: Relay, tunnel: Tunnel
) -> None:
    await warm_up(tunnel)
    relay.fall_silent()
    for host in ("echo.demo", "pair.demo"):
        assert await failed_in_time(await get(tunnel, host, limit_s=10)) in ("Timeout", "ClusterUnreachable")
    relay.resume()
    await back(tunnel, "echo.demo", "pair.demo")


async def test_a_name_of_the_api_server_that_does_not_resolve(
    sim: SimCluster, relay: Relay, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    path = sim.kubeconfig(tmp_path / "kubeconfig")
    tunnel = await start_tunnel(relay.kubeconfig(path, server="https://no-such-host.invalid:6443"))
    detail = told(await get(tunnel, limit_s=10), "ClusterUnreachable")
    assert "no-such-host.invalid" in detail
    relay.kubeconfig(path)
    await back(tunnel, "echo.demo")
