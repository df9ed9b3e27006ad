"""Local listeners lead past mitmproxy, so what they are used for is asked of them; and the health of their pods where
there is nothing but listeners, as for `kube-tunnel forward`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence

from kubetunnel.core.catalog import PodPort
from kubetunnel.core.local_forward import Kind
from kubetunnel.core.settings import Settings
from kubetunnel.forward.listener import LocalListener
from kubetunnel.forward.pod_streams import PodStreams
from kubetunnel.observe.event_log import EventLog
from kubetunnel.observe.health_checks import HealthChecks
from kubetunnel.observe.sources import HealthPolicy, check_of
from kubetunnel.observe.traffic import ServiceKey, Traffic
from kubetunnel.proxy.clusters import Clusters
from kubetunnel.proxy.routing import Router

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0


class ListenerUse:
    """Makes a local listener's connections use of its Service."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._looked_s = float("-inf")

    def look(self, listeners: Iterable[tuple[str, LocalListener]]) -> None:
        """To be called about once a second with all that are open, and the zones of their clusters."""
        now_s = time.monotonic()
        for zone, listener in listeners:
            if listener.ref.kind is Kind.SERVICE and listener.is_used_since(self._looked_s):
                key = ServiceKey(zone, listener.ref.namespace, listener.ref.name)
                self._traffic.of(key).use(listener.port, now_s)
        self._looked_s = now_s


class ListenerHealth:
    """Checks the pods of the Services that the first cluster's listeners are used for."""

    def __init__(self, settings: Settings, clusters: Clusters, listeners: Sequence[LocalListener]) -> None:
        self._listeners = [(clusters.zones[0], listener) for listener in listeners]
        traffic = Traffic()
        self._use = ListenerUse(traffic)
        policy = HealthPolicy.of(settings)
        self._checks = HealthChecks(
            Router(settings, clusters), traffic, EventLog(), lambda: policy,
            lambda key, port: check_of(settings, key, port),
        )  # fmt: skip

    def is_unhealthy(self, forwards: PodStreams, pod_port: PodPort) -> bool:
        """Whether new connections had better go to another pod."""
        return self._checks.is_unhealthy(forwards, pod_port)

    async def run(self) -> None:
        """Until it is cancelled. Supervision point: a defect costs one look, not the listeners."""
        try:
            while True:
                try:
                    self._use.look(self._listeners)
                    self._checks.look()
                except Exception:
                    logger.exception("Looking after the health of pods failed; it goes on.")
                await asyncio.sleep(LOOK_INTERVAL_S)
        finally:
            await self._checks.aclose()
