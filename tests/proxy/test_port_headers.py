"""`X-Original-Port` and `X-Forwarded-Port`: what a proxy before the tunnel says of the port, where it is trusted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kubetunnel.sim.cluster import SimCluster
from tests.tunnel import Tunnel

TRUST = ["--set", "kube_trust_port_headers=true"]
REFUSING = 9999


async def ask(tunnel: Tunnel, *headers: str) -> tuple[int, str | None]:
    arguments = [argument for header in headers for argument in ("-H", header)]
    answer = await asyncio.to_thread(tunnel.get, "echo.demo", "/hostname", *arguments, timeout_s=5)
    return answer.status, answer.reason


async def test_they_are_not_read_unless_asked_for(tunnel: Tunnel) -> None:
    assert await ask(tunnel, f"X-Forwarded-Port: {REFUSING}", f"X-Original-Port: {REFUSING}") == (200, None)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([f"X-Forwarded-Port: {REFUSING}"], (502, "ConnectionRefused")),
        (["X-Forwarded-Port: 80", f"X-Original-Port: {REFUSING}"], (502, "ConnectionRefused")),
        (["X-Forwarded-Port: 80"], (200, None)),
        (["X-Forwarded-Port: 81"], (404, "PortNotExposed")),
        (["X-Forwarded-Port: 0"], (400, "NotAServiceName")),
        (["X-Forwarded-Port: http"], (400, "NotAServiceName")),
        ([f"X-Forwarded-Port: {'9' * 5000}"], (400, "NotAServiceName")),
        ([], (200, None)),
    ],
)
async def test_the_port_is_theirs(
    sim: SimCluster,
    start_tunnel: Callable[..., Any],
    tmp_path: Path,
    headers: list[str],
    expected: tuple[int, str | None],
) -> None:
    tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"), options=TRUST)
    assert await ask(tunnel, *headers) == expected
