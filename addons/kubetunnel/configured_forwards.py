"""The local listeners of the setting `forwards`, on the first cluster, for as long as the setting has them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from kubetunnel.cluster.workloads import Workloads
from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.core.settings import RetrySettings
from kubetunnel.forward.listener import LocalForwards, LocalListener
from kubetunnel.forward_specs import parse_entry
from kubetunnel.proxy.clusters import Clusters, Session

logger = logging.getLogger(__name__)

RETRY_INTERVAL_S = 10.0  # of an entry that could not be opened: its cluster, its object or its port may come


class ConfiguredForwards:
    """Opens and closes listeners as the setting changes."""

    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters
        self._session: Session | None = None
        self._workloads: Workloads | None = None
        self._forwards: LocalForwards | None = None
        self._open: dict[str, tuple[LocalListener, ...]] = {}
        self._failed: dict[str, tuple[str, float]] = {}
        self._made_for: tuple[str, RetrySettings] | None = None
        self._changing = asyncio.Lock()

    async def apply(self, entries: Sequence[str], address: str, retry: RetrySettings) -> None:
        """Makes the listeners those of the entries. What cannot be opened is told of once, and tried again."""
        async with self._changing:
            if not entries and self._session is None:
                return
            try:
                session = await self._clusters.first.session()
            except KubeTunnelError:
                return  # told of by the cluster; what was open went with its session
            if session is not self._session or self._made_for != (address, retry):
                await self._end()
                self._begin(session, address, retry)
            for entry in [entry for entry in self._open if entry not in entries]:
                await self._close(entry)
            self._failed = {entry: failure for entry, failure in self._failed.items() if entry in entries}
            for entry in entries:
                if entry not in self._open:
                    await self._try(entry)

    async def aclose(self) -> None:
        """Closes all of them."""
        async with self._changing:
            await self._end()

    def _begin(self, session: Session, address: str, retry: RetrySettings) -> None:
        self._session, self._made_for = session, (address, retry)
        self._workloads = Workloads(session.access, session.discovery)
        self._forwards = LocalForwards(
            self._workloads, session.forwards, addresses=(address,), retries=retry.max, retry_delay_s=retry.delay_s
        )

    async def _end(self) -> None:
        if self._forwards is not None and self._workloads is not None:
            await self._forwards.aclose()
            await self._workloads.aclose()
        self._open.clear()
        self._failed.clear()
        self._session = self._forwards = self._workloads = None

    async def _close(self, entry: str) -> None:
        for listener in self._open.pop(entry):
            if self._forwards is not None:
                await self._forwards.close(listener)
        logger.info("The forward %r is closed: the settings have it no more.", entry)

    async def _try(self, entry: str) -> None:
        told, tried_at = self._failed.get(entry, ("", float("-inf")))
        if self._forwards is None or self._session is None or time.monotonic() - tried_at < RETRY_INTERVAL_S:
            return
        spec = parse_entry(entry).in_namespace(self._session.access.namespace)
        try:
            self._open[entry] = await self._forwards.open(spec.ref, spec.pairs, check=False)
        except (KubeTunnelError, OSError) as e:
            if str(e) != told:
                logger.warning("The forward %r cannot be opened yet: %s", entry, e)
            self._failed[entry] = str(e), time.monotonic()
        else:
            self._failed.pop(entry, None)
