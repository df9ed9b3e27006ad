"""One call for all who ask the same at the same time; who goes away does not take it along.

After Go's golang.org/x/sync/singleflight. The call runs in a task of its own: a cancelled caller leaves it to the rest,
and a caller whose patience ends is refused while the call goes on. Who asks after that gets what it brings, or what a
call of his own brings where that is faster: the first one may be stuck on a connection that is dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable

from kubetunnel.cluster.patience import first_done
from kubetunnel.core.errors import ClusterUnreachable, KubeTunnelError, Timeout

UNTOLD_S = 5.0  # a refusal that somebody's patience was too short for is told to who asks again within it
UNTOLD_ENTRIES = 256


class SingleFlight[K: Hashable, V]:
    """Calls under way, by key.

    Args:
        patience_s: how long a caller waits.
        out_of_patience: what he is told then.
        obtaining: see `patience.first_done`.
    """

    def __init__(
        self,
        *,
        patience_s: Callable[[], float],
        out_of_patience: Callable[[float], KubeTunnelError],
        obtaining: Callable[[], asyncio.Future[None] | None] = lambda: None,
    ) -> None:
        self._patience_s = patience_s
        self._out_of_patience = out_of_patience
        self._obtaining = obtaining
        self._tasks: dict[K, list[asyncio.Task[V]]] = {}
        self._overdue: set[asyncio.Task[V]] = set()
        self._untold: dict[K, tuple[float, KubeTunnelError]] = {}
        self._closed = False

    async def run(self, key: K, call: Callable[[], Coroutine[None, None, V]]) -> V:
        """The result, or the error, of the call under way for `key`; starts one where there is none."""
        if self._closed:
            raise ClusterUnreachable("The tunnel is closing.")
        self._raise_untold(key)
        tasks = self._tasks.setdefault(key, [])
        if self._overdue.issuperset(tasks):
            task = asyncio.create_task(call(), name=f"kube-tunnel lookup {key}")
            tasks.append(task)
            # by callback, not at the task's end: an eager task may have ended before it was put into the table
            task.add_done_callback(lambda done: self._forget(key, done))
        return await self._first(key, set(tasks))

    async def aclose(self) -> None:
        """Cancel all calls and wait for their end."""
        self._closed = True
        tasks = {task for tasks in self._tasks.values() for task in tasks}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _first(self, key: K, waiting: set[asyncio.Task[V]]) -> V:
        """The first result; or the first error that another call cannot better, or the last one."""
        clock, patience_s = asyncio.get_running_loop().time, self._patience_s()
        give_up_at = clock() + patience_s
        while True:
            done = await first_done(waiting, give_up_at - clock(), self._obtaining)
            waiting = waiting - done
            if not done:
                self._overdue |= waiting
                raise self._out_of_patience(patience_s)
            self._untold.pop(key, None)
            for task in sorted(done, key=lambda task: task.cancelled() or task.exception() is not None):
                if task.cancelled():
                    raise ClusterUnreachable("The tunnel is closing.")
                if not waiting or not isinstance(task.exception(), ClusterUnreachable | Timeout):
                    return task.result()

    def _forget(self, key: K, task: asyncio.Task[V]) -> None:
        tasks = self._tasks[key]
        tasks.remove(task)
        if not tasks:
            del self._tasks[key]
        overdue = task in self._overdue
        self._overdue.discard(task)
        if task.cancelled():
            return
        error = task.exception()  # read in any case, or asyncio would complain where every caller has gone away
        if overdue and isinstance(error, KubeTunnelError):
            self._untold.pop(key, None)  # to the end: the oldest stands first
            self._untold[key] = (asyncio.get_running_loop().time() + UNTOLD_S, error)
            if len(self._untold) > UNTOLD_ENTRIES:
                del self._untold[next(iter(self._untold))]

    def _raise_untold(self, key: K) -> None:
        until, error = self._untold.pop(key, (0.0, None))
        # that there was no answer says nothing of the next attempt, and was told already
        if error is None or isinstance(error, Timeout) or asyncio.get_running_loop().time() >= until:
            return
        raise type(error)(error.detail, command=error.command) from error
