"""A simulated cluster in the test's own event loop, to turn its switches, and a real mitmdump on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio

from kubetunnel.sim.cluster import SimCluster
from tests.tunnel import Tunnel


@pytest_asyncio.fixture
async def sim() -> AsyncIterator[SimCluster]:
    async with SimCluster() as cluster:
        yield cluster


@pytest_asyncio.fixture
async def start_tunnel(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Starts tunnels while the cluster's event loop runs on; ends them with the test."""
    started: list[Tunnel] = []

    async def start(kubeconfig: Path | str | None, **arguments: Any) -> Tunnel:
        tunnel = await asyncio.to_thread(Tunnel, tmp_path, kubeconfig=kubeconfig, **arguments)
        started.append(tunnel)
        return tunnel

    yield start
    for tunnel in started:
        await asyncio.to_thread(tunnel.close)
        assert "Traceback" not in tunnel.log, tunnel.log


@pytest_asyncio.fixture
async def tunnel(sim: SimCluster, start_tunnel: Callable[..., Any], tmp_path: Path) -> Tunnel:
    """A tunnel to the simulated cluster, as admin."""
    started: Tunnel = await start_tunnel(sim.kubeconfig(tmp_path / "kubeconfig"))
    return started
