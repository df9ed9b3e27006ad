"""Local listeners that were asked for while the tunnel runs, by a command; those of the settings are beside them."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from kubetunnel.configured_forwards import ConfiguredForwards
from kubetunnel.core.settings import RetrySettings
from kubetunnel.forward.listener import LocalListener
from kubetunnel.forward_specs import parse_entry
from kubetunnel.proxy.clusters import Clusters

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class AskedForward:
    """One of them: `listeners` once it is open, else why it is not (yet)."""

    entry: str
    listeners: tuple[LocalListener, ...] = ()
    failure: str = ""


class AskedForwards(ConfiguredForwards):
    """Opens and closes listeners on request, and keeps trying for those that cannot be opened yet."""

    def __init__(self, clusters: Clusters, *, address: str = "127.0.0.1", retry: RetrySettings | None = None) -> None:
        super().__init__(clusters)
        self._address = address
        self._retry = retry or RetrySettings()
        self._asked: list[str] = []
        self._tried = False
        self._keeping: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def configure(self, *, address: str, retry: RetrySettings) -> None:
        """Takes other settings; listeners are made anew where they differ."""
        self._address, self._retry = address, retry

    def ask(self, entry: str) -> None:
        """Has a listener from soon on: `svc/api -n shop 5432`. Raises ValueError, what was given and what goes."""
        parse_entry(entry)
        if entry not in self._asked:
            self._asked.append(entry)
        self._failed.pop(entry, None)  # who asks again wants another try now
        self._look()

    def withdraw(self, entry: str) -> None:
        """Has it no more; its connections end within seconds. Raises KeyError where nobody asked for it."""
        if entry not in self._asked:
            raise KeyError(entry)
        self._asked.remove(entry)
        self._look()

    def forwards(self) -> list[AskedForward]:
        """Those that are asked for."""
        no_cluster = "There is no cluster yet; the log says why." if self._tried and self._session is None else ""
        return [
            AskedForward(entry, self._open.get(entry, ()), self._failed.get(entry, (no_cluster, 0.0))[0])
            for entry in self._asked
        ]

    async def aclose(self) -> None:
        task, self._keeping = self._keeping, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await super().aclose()

    def _look(self) -> None:
        self._changed.set()
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.get_running_loop().create_task(self._keep(), name="asked forwards")
            self._keeping.add_done_callback(_report_crash)

    async def _keep(self) -> None:
        while self._asked or self._open:
            self._changed.clear()
            await self.apply(tuple(self._asked), self._address, self._retry)
            self._tried = True
            try:
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._changed.wait()
            except TimeoutError:
                continue


def _report_crash(task: asyncio.Task[None]) -> None:
    """Supervision point: a task that nobody awaits tells of its end."""
    if not task.cancelled() and (error := task.exception()):
        logger.error("The task %r failed.", task.get_name(), exc_info=error)
