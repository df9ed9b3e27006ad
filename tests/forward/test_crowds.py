"""Many connections at once and one after the other: what they leave behind, and what they do to each other."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kubetunnel.cluster.access import load_access
from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import ConnectionRefused, KubeTunnelError, UpstreamReset
from kubetunnel.forward.errors import StreamFailed
from kubetunnel.forward.lane import Lane
from kubetunnel.forward.pod_forward import PodForward
from kubetunnel.forward.policy import IDLE_TIMEOUT_S
from kubetunnel.forward.pool import PortForwards
from kubetunnel.forward.stream import ForwardStream
from kubetunnel.forward.upstream import Upstream
from kubetunnel.sim.cluster import SimCluster
from tests.forward.apiserver import ECHO, FLOODS, REFUSED, RESETS, Access, ApiServer
from tests.forward.test_streams import Recorder, failure_of, to, until

pytestmark = pytest.mark.alone

OURS = (ForwardStream, Lane, Upstream, PodForward)


def alive() -> int:
    gc.collect()
    return sum(isinstance(each, OURS) for each in gc.get_objects())


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def one_of_many(forwards: PortForwards, number: int) -> None:
    """A connection that ends in one of the ways that they end in."""
    port = (ECHO, ECHO, FLOODS, REFUSED, RESETS)[number % 5]
    reader, writer = await forwards.open_connection(to(port), shared=number % 2 == 0)
    try:
        writer.write(b"x")
        if port == ECHO:
            assert await reader.readexactly(1) == b"x"
        elif number % 3:
            await reader.read(100_000)
    except StreamFailed:
        assert port in (REFUSED, RESETS)
    finally:
        if number % 7:
            writer.close()
        else:
            writer.transport.abort()


async def a_thousand(api: ApiServer, forwards: PortForwards) -> None:
    tasks = asyncio.all_tasks()
    for batch in range(20):
        coming = [asyncio.create_task(one_of_many(forwards, 50 * batch + number)) for number in range(50)]
        for task in coming[batch::7]:
            task.cancel()
        results = await asyncio.gather(*coming, return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
    await until(lambda: not any(facts.streams for facts in forwards.forwards()))
    (facts,) = forwards.forwards()
    assert facts.streams_opened >= 700
    await until(lambda: asyncio.all_tasks() - tasks - api._tasks == {forwards._looking})
    now = asyncio.get_running_loop().time()
    for pod in forwards._pods.values():
        pod.tick(now + IDLE_TIMEOUT_S + 1)
    await until(lambda: not forwards.upstreams() and not api.sessions)
    await forwards.aclose()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")
async def test_a_thousand_connections_opened_and_dropped_leave_nothing_behind(api: ApiServer, access: Access) -> None:
    objects, files, tasks = alive(), descriptors(), asyncio.all_tasks()
    await a_thousand(api, PortForwards(access))
    await until(lambda: descriptors() == files)
    assert asyncio.all_tasks() == tasks
    assert alive() == objects


class Crowd:
    """200 connections to a pod: 20 whose reader stops, 20 that the pod resets, 10 refused, 150 that are fine."""

    def __init__(self, forwards: PortForwards, namespace: str, pod: str) -> None:
        self.forwards = forwards
        self.at = partial(PodPort, namespace, pod)
        self.fine: list[asyncio.StreamWriter] = []
        self.stopped: list[Recorder] = []

    async def run(self, *, exchanges: int) -> None:
        kinds: list[Callable[[], Coroutine[Any, Any, None]]] = [self._stop, self._reset] * 20 + [self._refuse] * 10
        kinds += [partial(self._exchange, exchanges, shared=shared) for shared in [True, False] * 75]
        random.Random(4).shuffle(kinds)
        async with asyncio.TaskGroup() as group:
            for kind in kinds:
                group.create_task(kind())
                await asyncio.sleep(0.01)  # as they come: a hundred a second

    def end(self) -> None:
        for recorder in self.stopped:
            recorder.transport.abort()
        for writer in self.fine:
            writer.close()

    def upstreams(self, stream: asyncio.WriteTransport) -> int:
        number: int = stream.get_extra_info("upstream").number
        return number

    async def _stop(self) -> None:
        _, recorder = await self.forwards.open(self.at(9004), lambda: Recorder(pause=True))
        self.stopped.append(recorder)

    async def _reset(self) -> None:
        await self._fails(9002, UpstreamReset)

    async def _refuse(self) -> None:
        await self._fails(9999, ConnectionRefused)

    async def _fails(self, port: int, expected: type[KubeTunnelError]) -> None:
        reader, writer = await self.forwards.open_connection(self.at(port))
        writer.write(b"x")
        assert isinstance((await failure_of(reader)).error, expected)
        writer.close()

    async def _exchange(self, count: int, *, shared: bool) -> None:
        reader, writer = await self.forwards.open_connection(self.at(8080), shared=shared)
        for _ in range(count):
            writer.write(b"GET /hostname HTTP/1.1\r\nHost: echo\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            await reader.readline()
            await asyncio.sleep(0.05)
        self.fine.append(writer)


async def crowd_on(forwards: PortForwards, namespace: str, pod: str) -> None:
    crowd = Crowd(forwards, namespace, pod)
    async with asyncio.timeout(30):
        await crowd.run(exchanges=10)  # raises what any of the 150 failed with
    assert len(crowd.fine) == 150
    assert all(recorder.received == 0 for recorder in crowd.stopped)
    # the delay of one is what lies before it on its upstream: a stopped one's bytes lie before nobody
    behind = {crowd.upstreams(recorder.transport) for recorder in crowd.stopped}
    assert len(behind) > 1, "on a busy machine some of those wait behind one another"
    assert not behind & {crowd.upstreams(writer.transport) for writer in crowd.fine}
    crowd.end()


async def test_of_200_connections_50_in_trouble_hurt_nobody(tmp_path: Path) -> None:
    async with SimCluster() as cluster:
        access = await load_access(kubeconfig=str(cluster.kubeconfig(tmp_path / "kubeconfig")))
        forwards = PortForwards(access)
        pod = cluster.pods("demo", app="echo")[0]
        await crowd_on(forwards, "demo", pod.name)
        await forwards.aclose()
        await access.aclose()
