"""One call for all who ask the same at the same time (after Go's golang.org/x/sync/singleflight).

A client that repeats its question while the answer is on the way makes no second lookup, and cannot be used to have
many queries for one name under way at once (the birthday attack of RFC 5452 5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable


class SharedCalls[K: Hashable, V]:
    """Calls under way, by key. A call runs in a task of its own: it goes on when a caller goes away."""

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[V]] = {}

    async def run(self, key: K, call: Callable[[], Coroutine[None, None, V]]) -> V:
        """The result, or the error, of the call under way for `key`; starts one where there is none."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.create_task(call(), name=f"dns lookup {key!r:.80}")
            self._tasks[key] = task
            # by callback, not at the task's end: an eager task may have ended before it was put into the table
            task.add_done_callback(lambda done: self._forget(key, done))
        await asyncio.wait([task])  # unlike awaiting it, leaves it alone when the caller is cancelled
        return task.result()

    async def aclose(self) -> None:
        """Cancel all calls and wait for their end."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _forget(self, key: K, task: asyncio.Task[V]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled():
            task.exception()  # read in any case, or asyncio would complain where every caller has gone away
