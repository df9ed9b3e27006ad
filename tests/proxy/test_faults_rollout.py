"""Pods that go: replaced one by one under load, killed in the middle of a body. Nobody else notices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.faults import Protocols
from tests.proxy.test_troubles import get
from tests.tunnel import Answer, Tunnel

RATE = 50.0  # requests/s
LIMIT_S = 20.0
GRACE_S = 0.3  # a terminating pod serves on for so long
BIG = "/bytes?n=12m&rate=3m"  # far from its end when its pod is killed

type Ask = Callable[[], Awaitable[str]]


class Load:
    """GETs at a steady rate, each answer awaited on its own, so that a slow one holds up no other."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.answers: list[str] = []
        self.failures: list[str] = []

    async def run_during(self, happening: Awaitable[Any], *, after_s: float = 0.5, limit_s: float = LIMIT_S) -> None:
        """Ask until `happening` is over, and a moment longer."""
        over = asyncio.Event()

        async def happen() -> None:
            try:
                await happening
                await asyncio.sleep(after_s)
            finally:
                over.set()

        async with asyncio.timeout(limit_s), asyncio.TaskGroup() as group:
            group.create_task(happen())
            next_at = time.monotonic()
            while not over.is_set():
                group.create_task(self._one())
                next_at += 1 / RATE
                await asyncio.sleep(max(0.0, next_at - time.monotonic()))

    async def _one(self) -> None:
        try:
            self.answers.append(await self._ask())
        except (aiohttp.ClientError, TimeoutError) as error:
            self.failures.append(repr(error))


def asking(session: aiohttp.ClientSession, tunnel: Tunnel, host: str = "echo.demo") -> Ask:
    async def ask() -> str:
        async with session.get(f"{tunnel.url}/hostname", headers={"Host": host}) as response:
            text = await response.text()
            if response.status != 200:
                raise aiohttp.ClientPayloadError(f"{response.status} {text}")
            return text.strip()

    return ask


def client(*, keep_alive: bool) -> aiohttp.ClientSession:
    # aiohttp itself sends a GET again where a kept-alive connection ends: none of that here
    connector = aiohttp.TCPConnector(limit=0, force_close=not keep_alive)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=LIMIT_S / 2))


@pytest.mark.parametrize("keep_alive", [True, False], ids=["kept-alive", "each-its-own"])
@pytest.mark.parametrize("grace_s", [GRACE_S, 0.0], ids=["graceful", "at-once"])
async def test_a_rolling_restart_fails_no_request(
    sim: SimCluster, tunnel: Tunnel, keep_alive: bool, grace_s: float
) -> None:
    before = {pod.name for pod in sim.pods("demo", app="echo")}
    async with client(keep_alive=keep_alive) as session:
        load = Load(asking(session, tunnel))
        await load.run_during(sim.roll_deployment("demo", "echo", grace_s=grace_s))
    assert load.failures == []
    after = {pod.name for pod in sim.pods("demo", app="echo")}
    assert not before & after
    assert set(load.answers) <= before | after
    assert len(after & set(load.answers)) == 2, "both of the new pods are used"


@pytest.mark.parametrize("protocols", [Protocols.MODERN, Protocols.SPDY, Protocols.V4])
async def test_a_pod_killed_in_the_middle_of_a_body(sim: SimCluster, tunnel: Tunnel, protocols: Protocols) -> None:
    sim.faults.protocols = protocols
    downloads = [
        asyncio.create_task(asyncio.to_thread(tunnel.get, "echo.demo", BIG, timeout_s=LIMIT_S)) for _ in range(4)
    ]
    async with asyncio.timeout(LIMIT_S):
        while sim.faults.upgraded() < 4:  # noqa: ASYNC110 - the cluster has no event for it
            await asyncio.sleep(0.02)
    victim = (await get(tunnel, limit_s=LIMIT_S)).text.strip()
    async with client(keep_alive=True) as session:
        load = Load(asking(session, tunnel))
        await load.run_during(sim.kill_pod("demo", victim), after_s=1.0)
    assert load.failures == []
    answers: list[Answer] = await asyncio.gather(*downloads)
    cut = [answer for answer in answers if answer.headers["x-pod"] == victim]
    whole = [answer for answer in answers if answer.headers["x-pod"] != victim]
    assert cut
    assert whole
    for answer in cut:
        assert answer.exit_code == 18, "curl: transfer closed with outstanding read data remaining"
        assert answer.status == 200
        assert len(answer.body) < 12 << 20
    for answer in whole:
        assert (answer.exit_code, len(answer.body)) == (0, 12 << 20)


async def test_a_pod_killed_in_the_middle_of_a_chunked_body(sim: SimCluster, tunnel: Tunnel, tmp_path: Path) -> None:
    body = tmp_path / "body"
    arguments = ("pair.demo", f"{BIG}&chunked=1", "--no-buffer", "--output", str(body))
    download = asyncio.create_task(asyncio.to_thread(tunnel.get, *arguments, timeout_s=LIMIT_S))
    async with asyncio.timeout(LIMIT_S):
        while not body.exists() or not body.stat().st_size:  # noqa: ASYNC110 - curl tells of no beginning
            await asyncio.sleep(0.02)
    await sim.kill_pod("demo", "pair")
    answer = await download
    assert answer.exit_code == 18
    assert 0 < body.stat().st_size < 12 << 20
