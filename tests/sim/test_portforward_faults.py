"""The switches of faults.py, while port-forwards run."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from kubetunnel.sim.cluster import SimCluster
from kubetunnel.sim.faults import NO_FAULT, Faults
from tests.sim.clients import SPDY_HEADERS, spdy, tunnel, upgraded

POD, OTHER = "demo/echo-sts-0", "demo/echo-sts-1"


async def test_refuse_and_back(cluster: SimCluster) -> None:
    cluster.faults.set(POD, 9000, refuse=True)
    async with spdy(cluster, POD) as client:
        error, _ = await client.open(9000)
        await client.until(lambda: b"connection refused" in client.data[error])
        _, other_port = await client.open(9001)
        await client.until(lambda: client.data[other_port] == b"220 echo-sts-0 ready\r\n")
        cluster.faults.set(POD, 9000, refuse=False)
        _, stream = await client.open(9000, b"x")
        await client.until(lambda: client.data[stream] == b"x")


async def test_reset_new_and_running(cluster: SimCluster) -> None:
    async with spdy(cluster, POD) as client:
        error, stream = await client.open(9000, b"x")
        await client.until(lambda: client.data[stream] == b"x")
        cluster.faults.set(port=9000, reset=True)
        await client.send(stream, b"y")
        await client.until(lambda: b"connection reset by peer" in client.data[error])
        error, _ = await client.open(9000)
        await client.until(lambda: b"connection reset by peer" in client.data[error])


async def test_stall_and_go_on(cluster: SimCluster) -> None:
    cluster.faults.set(POD, 9000, stall=True)
    async with spdy(cluster, POD) as client:
        error, stream = await client.open(9000, b"x")
        await client.until(lambda: client.replied == {error, stream})
        assert await client.silent(for_s=0.1)
        cluster.faults.clear()
        await client.until(lambda: client.data[stream] == b"x")


@pytest.mark.parametrize("dial", [spdy, tunnel])
async def test_swallow_and_go_on(cluster: SimCluster, dial) -> None:
    async with dial(cluster, POD) as client, dial(cluster, OTHER) as other:
        cluster.faults.set(POD, swallow=True)
        _, stream = await client.open(9000, b"x")
        pings = await client.ping(2)
        assert await client.silent(for_s=0.1)
        _, undisturbed = await other.open(9000, b"y")
        await other.until(lambda: other.data[undisturbed] == b"y")
        cluster.faults.set(POD, swallow=False)
        await client.until(lambda: client.data[stream] == b"x" and pings <= client.pongs)


async def test_swallow_hangs_upgrades(cluster: SimCluster) -> None:
    cluster.faults.set(POD, swallow=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), upgraded(cluster, POD, SPDY_HEADERS):
            pass


async def test_dead_node(cluster: SimCluster) -> None:
    async with spdy(cluster, POD) as raw, tunnel(cluster, POD) as tunnelled:
        cluster.faults.set(POD, dead_node=True)
        await raw.until(lambda: raw.closed)
        await tunnelled.ping()
        assert await tunnelled.silent(for_s=0.1)
        async with upgraded(cluster, POD, SPDY_HEADERS) as (head, _, _):
            assert b" 500 " in head
        cluster.faults.clear()
        assert await tunnelled.silent(for_s=0.1), "it is gone, though nobody says so"


async def test_latency_is_a_round_trip_more(cluster: SimCluster) -> None:
    async with spdy(cluster, POD) as client:
        cluster.faults.set(latency_s=0.2)
        started = time.monotonic()
        _, stream = await client.open(9000, b"x")
        await client.until(lambda: client.data[stream] == b"x")
        assert time.monotonic() - started >= 0.19


async def test_cut(cluster: SimCluster) -> None:
    async with spdy(cluster, POD) as one, tunnel(cluster, POD) as two, spdy(cluster, OTHER) as other:
        await other.ping()
        await other.until(lambda: bool(other.pongs))
        assert cluster.faults.upgraded() == 3
        assert cluster.faults.cut(POD) == 2
        await one.until(lambda: one.closed)
        await two.until(lambda: two.closed)
        await other.ping()
        await other.until(lambda: len(other.pongs) == 2)


async def test_cut_a_share(cluster: SimCluster) -> None:
    """Each connection by its own draw, so that a seed gives the same number each time."""
    draws = random.Random(1)
    wanted = sum(draws.random() < 0.5 for _ in range(3))
    async with spdy(cluster, POD) as one, spdy(cluster, POD) as two, tunnel(cluster, OTHER) as other:
        assert cluster.faults.cut(share=0.0) == 0
        assert cluster.faults.cut(share=0.5, rng=random.Random(1)) == wanted
        assert 0 < wanted < 3
        clients = (one, two, other)
        await asyncio.gather(*(client.ping() for client in clients), return_exceptions=True)
        await asyncio.gather(*(client.until(lambda c=client: c.closed or c.pongs) for client in clients))
        assert sum(client.closed for client in clients) == wanted


def test_rules_add_up() -> None:
    faults = Faults()
    assert faults.at("a/b", 1) == NO_FAULT
    faults.set(stall=True)
    faults.set("a/b", latency_s=0.5)
    faults.set("a/b", 1, refuse=True)
    faults.set(port=1, reset=True)
    both = faults.at("a/b", 1)
    assert (both.refuse, both.reset, both.stall, both.latency_s) == (True, True, True, 0.5)
    assert not faults.at("a/c", 2).refuse
    assert not faults.at("a/c").reset
    assert faults.at("a/c").stall


def test_faults_of_connections_have_no_port() -> None:
    for change in ({"swallow": True}, {"dead_node": True}, {"latency_s": 1.0}):
        with pytest.raises(ValueError, match="whole connections"):
            Faults().set("a/b", 1, **change)
    with pytest.raises(TypeError):
        Faults().set("a/b", 1, refused=True)
