"""Watching the tunnel: counts, health, pages and their API, as one object to wire.

One task looks after it all once a second: what the forwards' counters are, which checks are due, and what has changed
for those who listen. For them another one asks whether the cluster can be reached, which may take its time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mitmproxy import http

from kubetunnel.core.catalog import PodPort
from kubetunnel.core.errors import KubeTunnelError
from kubetunnel.core.health import Check, ServiceHealth
from kubetunnel.forward.pod_streams import PodStreams
from kubetunnel.local_ports import LocalPorts
from kubetunnel.observe.api import Api
from kubetunnel.observe.documents import Documents
from kubetunnel.observe.event_log import EventLog
from kubetunnel.observe.feed import Feed
from kubetunnel.observe.forward_totals import ForwardTotals
from kubetunnel.observe.guard import Guard
from kubetunnel.observe.health_checks import HealthChecks
from kubetunnel.observe.known_services import KnownServices, endpoints
from kubetunnel.observe.listener_health import ListenerUse
from kubetunnel.observe.metrics import Metrics
from kubetunnel.observe.pages import Pages, api_description
from kubetunnel.observe.recording import Recording
from kubetunnel.observe.sources import HealthPolicy, NamingFacts, Sessions
from kubetunnel.observe.traffic import SHOWN_S, ServiceKey, Traffic
from kubetunnel.proxy.clusters import Session
from kubetunnel.proxy.routing import Router
from kubetunnel.proxy.upstreams import Upstreams

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
ALIVE_MEMORY_S = 5.0  # /health may be asked as often as anybody likes
_ALIVE_STALE_S = 60.0  # longer than it takes to ask a cluster that is far away


def _no_restarts() -> dict[str, int]:
    return {}


@dataclass(frozen=True, slots=True)
class _Alive:
    at_s: float
    document: dict[str, Any]


class Observe:
    """All of it.

    Args:
        health: how health is checked, as it is now.
        check_of: how the port of a Service is checked, as it is now.
        watch_restarts: by zone, how often watches were begun again.
        token: of the API's unsafe methods; by default another one at each start.
        open_to_others: whether other machines see everything without the token.
        permits: whether a request has the credentials that the proxy asks for, if it asks for any.
    """

    def __init__(
        self,
        clusters: Sessions,
        router: Router,
        upstreams: Upstreams,
        naming: NamingFacts,
        local_ports: LocalPorts,
        *,
        health: Callable[[], HealthPolicy] = HealthPolicy,
        check_of: Callable[[ServiceKey, int], Check] = lambda key, port: Check(),
        watch_restarts: Callable[[], dict[str, int]] = _no_restarts,
        token: str | None = None,
        open_to_others: bool = False,
        permits: Callable[[http.Request], bool] = lambda request: True,
    ) -> None:
        self._clusters = clusters
        self._local_ports = local_ports
        self._traffic = Traffic()
        self._listener_use = ListenerUse(self._traffic)
        self._events = EventLog()
        self._known = KnownServices(self._events)
        self._forwards = ForwardTotals(self._events)
        self._checks = HealthChecks(router, self._traffic, self._events, health, check_of)
        self._documents = Documents(
            clusters, self._traffic, self._known, self._forwards, self._checks, naming, local_ports, self._events
        )
        self._alive: _Alive | None = None
        self._feed = Feed(self._documents, self._events, self._known_alive)
        metrics = Metrics(self._traffic, self._forwards, self._known, self._checks, naming, watch_restarts)
        api = Api(clusters, self._documents, self._known, local_ports, self._checks, api_description())
        guard = Guard(token, open_to_others=open_to_others, permits=permits)
        self.token = guard.token
        self.addons = [
            Recording(self._traffic, self._events, router, upstreams),
            Pages(guard, api, self._documents, self._feed, metrics, self._is_alive),
        ]
        self._asking = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_ending = False

    def is_unhealthy(self, forwards: PodStreams, pod_port: PodPort) -> bool:
        """Whether new streams had better go to another pod: for the router."""
        return self._checks.is_unhealthy(forwards, pod_port)

    def health_of(self, zone: str, namespace: str, service: str) -> ServiceHealth:
        """How a Service is."""
        document = self._documents.service(ServiceKey(zone, namespace, service))
        health: ServiceHealth = document["health"] if document else "unknown"
        return health

    def dashboard_url(self, address: str) -> str:
        """For the start's log line. The fragment goes to no server.

        Args:
            address: host:port that the tunnel listens on.
        """
        return f"http://{address}/dashboard#token={self.token}"

    def start(self) -> None:
        """Begins to look."""
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(self._each_second(self._look_once), name="observing"),
                loop.create_task(self._each_second(self._ask_for_listeners), name="asking the cluster"),
            ]

    async def aclose(self) -> None:
        """Ends checks and event streams."""
        self._is_ending = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._feed.close()
        self._known.close()
        await self._checks.aclose()

    async def _each_second(self, look: Callable[[], Awaitable[None]]) -> None:
        """Supervision point: a defect here costs a look, not the tunnel."""
        while True:
            try:
                await look()
            except Exception:
                logger.exception("Looking at the tunnel's state failed.")
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def _look_once(self) -> None:
        sessions = self._clusters.sessions()
        self._known.follow(sessions)
        self._forwards.sample(sessions)
        self._listener_use.look(
            (port.zone or self._clusters.zones[0], port.listener)
            for port in self._local_ports.ports()
            if port.listener is not None
        )
        await self._look_at_use(sessions)
        self._checks.look()
        self._feed.look()

    async def _look_at_use(self, sessions: Mapping[str, Session]) -> None:
        """Services that were found before we listened, and those that nobody uses any more."""
        now_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for used in self._traffic:
                if used.is_used(now_s, 2 * LOOK_INTERVAL_S) and used.key not in self._known.states:
                    group.create_task(self._known.look_up(used.key))
        self._known.look()
        watched = {zone: session.discovery.watched().keys() for zone, session in sessions.items()}
        for key, state in list(self._known.states.items()):
            traffic = self._traffic.get(key)
            if not (
                (traffic is not None and traffic.is_used(now_s, SHOWN_S))
                or (key.namespace, key.service) in watched[key.zone]
                or self._forwards.has_streams(key.zone, key.namespace, (each.pod for each in endpoints(state)))
            ):
                self._known.forget(key)

    async def _is_alive(self) -> dict[str, Any]:
        """For /health: whether requests can reach the cluster now."""
        async with self._asking:
            now_s = time.monotonic()
            if self._alive is None or now_s - self._alive.at_s > ALIVE_MEMORY_S:
                self._alive = _Alive(now_s, await self._ask_cluster())
        if self._is_ending:
            return {"status": "ending", "detail": "The tunnel is ending."}
        return self._alive.document

    async def _ask_for_listeners(self) -> None:
        if self._feed.is_heard:
            await self._is_alive()

    def _known_alive(self) -> dict[str, Any]:
        """What /health told last, if it is not from long ago."""
        known = self._alive
        if known is None or time.monotonic() - known.at_s > _ALIVE_STALE_S:
            return {"status": "ok"}
        return known.document

    async def _ask_cluster(self) -> dict[str, Any]:
        try:
            session = await self._clusters.first.session()
            transport, _ = await session.access.connect(asyncio.Protocol)
        except KubeTunnelError as e:
            return {"status": "unreachable", "detail": e.detail, "reason": e.reason, "command": e.command}
        transport.close()
        return {"status": "ok", "context": session.access.context}
