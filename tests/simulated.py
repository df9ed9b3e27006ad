"""The simulated cluster in a thread with an event loop of its own: for cases that block theirs while they wait."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from kubetunnel.sim.cluster import SimCluster

START_TIMEOUT_S = 20.0


@contextlib.contextmanager
def simulated(prepare: Callable[[SimCluster], Awaitable[None]]) -> Iterator[SimCluster]:
    """Runs a cluster until the end of the block. Its methods are for `prepare`, which is awaited before."""
    ready: queue.Queue[tuple[asyncio.AbstractEventLoop, SimCluster]] = queue.Queue()
    done = asyncio.Event()

    async def serve() -> None:
        async with SimCluster() as cluster:
            await prepare(cluster)
            ready.put((asyncio.get_running_loop(), cluster))
            await done.wait()

    with ThreadPoolExecutor(1) as executor:
        serving = executor.submit(asyncio.run, serve())
        loop, cluster = ready.get(timeout=START_TIMEOUT_S)
        try:
            yield cluster
        finally:
            loop.call_soon_threadsafe(done.set)
            serving.result(START_TIMEOUT_S)
