"""A node, or the runtime on it, is silently gone: found out within 10 s, and requests go to the other pod meanwhile."""

from __future__ import annotations

import asyncio
import time

import pytest

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.faults import Protocols
from tests.proxy.test_troubles import get
from tests.tunnel import Answer, Tunnel

DETECTED_S = 10.0
SLACK_S = 4.0  # the pool looks once a second, and the machine may be busy
HOLD = "/delay?ms=60000"


async def answering_pods(tunnel: Tunnel, count: int) -> set[str]:
    """The pods that answer so many requests at a time, all of which must be answered."""
    answers = await asyncio.gather(*(get(tunnel, limit_s=20) for _ in range(count)))
    assert [answer.status for answer in answers] == [200] * count, [answer.text for answer in answers]
    return {answer.text.strip() for answer in answers}


@pytest.mark.parametrize("fault", ["dead_node", "swallow"])
@pytest.mark.parametrize("protocols", [Protocols.MODERN, Protocols.SPDY])
async def test_a_node_that_is_silently_gone(sim: SimCluster, tunnel: Tunnel, protocols: Protocols, fault: str) -> None:
    """`dead_node`: the API server knows, and tells who asks anew. `swallow`: nobody says anything."""
    sim.faults.protocols = protocols
    assert len(await answering_pods(tunnel, 8)) == 2
    lost, other = (pod.name for pod in sim.pods("demo", app="echo"))
    sim.faults.set(f"demo/{lost}", **{fault: True})
    started = time.monotonic()
    # kept busy: what is asked while nothing is known yet may wait
    assert await answering_pods(tunnel, 4) == {other}
    assert time.monotonic() - started < DETECTED_S + SLACK_S
    started = time.monotonic()
    assert await answering_pods(tunnel, 4) == {other}
    assert time.monotonic() - started < DETECTED_S, "what is known by now is not found out again"
    sim.faults.clear()


async def test_a_call_under_way_is_told_of_its_dead_node(sim: SimCluster, tunnel: Tunnel) -> None:
    async def post() -> Answer:
        return await asyncio.to_thread(tunnel.get, "pair.demo", HOLD, "-d", "x", timeout_s=30)

    call = asyncio.create_task(post())
    async with asyncio.timeout(10):
        while not sim.faults.upgraded("demo/pair"):  # noqa: ASYNC110 - the cluster has no event for it
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.5)  # the request has arrived
    sim.faults.set("demo/pair", dead_node=True)
    answer = await call
    assert answer.exit_code == 0, answer.stderr
    assert answer.reason == "UpstreamReset", answer.text
    assert "demo/pair" in answer.json["detail"]
    assert answer.total_s < DETECTED_S + SLACK_S + 1.0
