"""One call for all who ask the same at the same time; who goes away does not take it along.

After Go's golang.org/x/sync/singleflight. The call runs in a task of its own: a cancelled caller leaves it to the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable

from kubetunnel.core.errors import ClusterUnreachable


class SingleFlight[K: Hashable, V]:
    """Calls under way, by key."""

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[V]] = {}
        self._closed = False

    async def run(self, key: K, call: Callable[[], Coroutine[None, None, V]]) -> V:
        """The result, or the error, of the call under way for `key`; starts one where there is none."""
        if self._closed:
            raise ClusterUnreachable("The tunnel is closing.")
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.create_task(call(), name=f"kube-tunnel lookup {key}")
            self._tasks[key] = task
            # by callback, not at the task's end: an eager task may have ended before it was put into the table
            task.add_done_callback(lambda done: self._forget(key, done))
        await asyncio.wait({task})
        if task.cancelled():
            raise ClusterUnreachable("The tunnel is closing.")
        return task.result()

    async def aclose(self) -> None:
        """Cancel all calls and wait for their end."""
        self._closed = True
        tasks = set(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _forget(self, key: K, task: asyncio.Task[V]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled():
            task.exception()  # read, or asyncio would complain where every caller has gone away
