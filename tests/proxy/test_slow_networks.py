"""A cluster at the other end of a slow link: what kubectl can do there, the tunnel can do as well."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.delay_relay import delayed
from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.faults import Protocols
from tests.proxy.test_troubles import get, told
from tests.relay import Relay
from tests.tunnel import Answer, Tunnel

LIMIT_S = 40.0
ROUND_TRIP_S = 1.6


@pytest.mark.parametrize("protocols", [Protocols.MODERN, Protocols.V4])
async def test_a_cluster_that_is_far_away(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path, protocols: Protocols
) -> None:
    sim.faults.protocols = protocols
    path = sim.kubeconfig(tmp_path / "kubeconfig")
    async with delayed("127.0.0.1", sim.port, ROUND_TRIP_S / 2) as port:
        tunnel: Tunnel = await start_tunnel(Relay("127.0.0.1", sim.port).kubeconfig(path, server=address(port)))
        # the first ones, one on what is open by now, and a look-up alone
        first = await asyncio.gather(*(get(tunnel, limit_s=LIMIT_S) for _ in range(3)))
        assert [answer.status for answer in first] == [200] * 3, [answer.text for answer in first]
        again = await get(tunnel, limit_s=LIMIT_S)
        assert (again.status, again.exit_code) == (200, 0), again.text
        told(await get(tunnel, "nobody.demo", limit_s=LIMIT_S), "ServiceNotFound")
        assert "died in silence" not in tunnel.log, "a long way is no death"
        if protocols is not Protocols.V4:  # which needs a connection for each stream
            assert again.total_s < 3 * ROUND_TRIP_S + 2.0, "one that is open is used again"
        await asyncio.to_thread(tunnel.close)


async def test_http2_in_clear_is_recognised_far_away(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    """The pod is asked whether it speaks HTTP/2, and its answer takes its time."""
    path = sim.kubeconfig(tmp_path / "kubeconfig")
    async with delayed("127.0.0.1", sim.port, ROUND_TRIP_S / 2) as port:
        tunnel: Tunnel = await start_tunnel(Relay("127.0.0.1", sim.port).kubeconfig(path, server=address(port)))
        answer: Answer = await asyncio.to_thread(
            tunnel.get, "echo.demo", "/hostname", "--http2-prior-knowledge", timeout_s=LIMIT_S
        )
        assert answer.status == 200, answer.text
        assert "echo.demo.svc.cluster.local:80 speaks HTTP" in tunnel.log
        await asyncio.to_thread(tunnel.close)


async def test_a_cluster_that_was_never_reached_and_does_not_answer(
    sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path
) -> None:
    """Long enough for one that is far away, and once only."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        path = sim.kubeconfig(tmp_path / "kubeconfig")
        server = address(silent.getsockname()[1])
        tunnel: Tunnel = await start_tunnel(Relay("127.0.0.1", sim.port).kubeconfig(path, server=server))
        answer = await get(tunnel, limit_s=LIMIT_S)
        told(answer, "ClusterUnreachable")
        assert 2 * ROUND_TRIP_S < answer.total_s < 14.0
        answer = await get(tunnel, limit_s=LIMIT_S)
        assert answer.reason in ("ClusterUnreachable", "Timeout")
        assert answer.total_s < 4.0, "2 s, and what a loaded machine adds"


def address(port: int) -> str:
    return f"https://127.0.0.1:{port}"
