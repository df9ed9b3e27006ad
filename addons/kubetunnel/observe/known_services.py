"""The Services in use and their endpoints, as the clusters' watches tell them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial

from kubetunnel.core.catalog import Endpoint, ServiceState
from kubetunnel.core.endpoints import takes_requests
from kubetunnel.core.errors import KubeTunnelError, NamespaceNotFound, ServiceNotFound
from kubetunnel.observe.event_log import EventLog
from kubetunnel.observe.traffic import MAX_SERVICES, ServiceKey
from kubetunnel.proxy.clusters import Session

logger = logging.getLogger(__name__)

FETCH_TIMEOUT_S = 3.0
REFRESH_TIMEOUT_S = 5.0
STALE_S = 60.0  # who may not watch reads anew at each use and each check; a watch that breaks is soon back


class KnownServices:
    """Follows the discovery of each session that is open."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._states: dict[ServiceKey, ServiceState] = {}
        self._read_at: dict[ServiceKey, float] = {}
        self._deleted: set[ServiceKey] = set()
        self._followed: dict[str, tuple[Session, Callable[[], None]]] = {}
        self._refused: set[ServiceKey] = set()

    @property
    def states(self) -> Mapping[ServiceKey, ServiceState]:
        return self._states

    def as_of(self, key: ServiceKey) -> float | None:
        """Unix seconds of when the Service was as `states` has it, where that may be otherwise by now; None: it is so.

        It may be where nobody keeps it up since it was used last, and where its watches are broken for long.
        """
        read_at = self._read_at.get(key)
        if read_at is None or (self._kept_up_at(key) is not None and time.time() - read_at < STALE_S):
            return None
        return read_at

    def is_deleted(self, key: ServiceKey) -> bool:
        """Whether the Service was in use, and was deleted; False where nobody watches whether it is there again."""
        return key in self._deleted

    def look(self) -> None:
        """Notes how fresh all are. To be called about once a second."""
        for key in self._states:
            self._read_at[key] = self._kept_up_at(key) or self._read_at[key]
        self._deleted = {key for key in self._deleted if self._kept_up_at(key) is not None}

    def _kept_up_at(self, key: ServiceKey) -> float | None:
        followed = self._followed.get(key.zone)
        return followed[0].discovery.read_at(key.namespace, key.service) if followed is not None else None

    def follow(self, sessions: Mapping[str, Session]) -> None:
        """Takes up sessions that are new with what is known there, and forgets the Services of those that ended."""
        for zone, (session, unsubscribe) in list(self._followed.items()):
            if sessions.get(zone) is not session:
                unsubscribe()
                del self._followed[zone]
                for key in [key for key in self._states if key.zone == zone]:
                    self.forget(key)
                self._deleted = {key for key in self._deleted if key.zone != zone}
        for zone, session in sessions.items():
            if zone not in self._followed:
                self._followed[zone] = session, session.discovery.subscribe(partial(self._changed, zone))
                for (namespace, name), state in session.discovery.watched().items():
                    self._changed(zone, namespace, name, state)

    async def look_up(self, key: ServiceKey) -> None:
        """A Service that is used, and of which nothing is known: it was found before we listened."""
        followed = self._followed.get(key.zone)
        if followed is None or key in self._states or key in self._refused or not key.is_of_one:
            return
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                state = await followed[0].discovery.service(key.namespace, key.service)
        except (KubeTunnelError, TimeoutError) as error:
            logger.debug("%s/%s cannot be shown: %s", key.namespace, key.service, error)
            if len(self._refused) >= MAX_SERVICES:
                self._refused.clear()
            self._refused.add(key)
        else:
            self._changed(key.zone, key.namespace, key.service, state)

    async def refresh(self, key: ServiceKey) -> None:
        """Reads it anew, be it watched or not. Raises KubeTunnelError, TimeoutError: it cannot be read."""
        followed = self._followed.get(key.zone)
        if followed is None:
            return
        try:
            async with asyncio.timeout(REFRESH_TIMEOUT_S):
                state = await followed[0].discovery.service(key.namespace, key.service, fresh=True)
        except (ServiceNotFound, NamespaceNotFound):
            self._changed(key.zone, key.namespace, key.service, None)
            raise
        self._changed(key.zone, key.namespace, key.service, state)

    def forget(self, key: ServiceKey) -> None:
        """Nobody uses it."""
        self._states.pop(key, None)
        self._read_at.pop(key, None)

    def close(self) -> None:
        """Ends all subscriptions."""
        self.follow({})

    def _changed(self, zone: str, namespace: str, name: str, state: ServiceState | None) -> None:
        key = ServiceKey(zone, namespace, name)
        before = self._states.get(key)
        self._refused.discard(key)
        self._deleted.discard(key)
        if state is None:
            if key in self._states:
                self.forget(key)
                self._deleted.add(key)
                self._events.add("warning", "The Service was deleted.", service=key)
            return
        if before is None:
            if len(self._states) >= MAX_SERVICES:
                return
            self._events.add("info", f"In use from now on, {_readiness(state)}.", service=key)
        elif _readiness(before) != _readiness(state):
            level = "error" if ready_count(state) == 0 else "info"
            self._events.add(level, f"Now {_readiness(state)}.", service=key)  # type: ignore[arg-type]  # one of Level
        self._states[key], self._read_at[key] = state, time.time()


def endpoints(state: ServiceState) -> list[Endpoint]:
    """One for each pod (or address without one), by name."""
    found: dict[str, Endpoint] = {}
    for each in sorted(state.slices, key=lambda one: (one.address_type, one.name)):
        for endpoint in each.endpoints:
            found.setdefault(endpoint.pod or endpoint.address, endpoint)
    return [found[name] for name in sorted(found)]


def ready_count(state: ServiceState) -> int:
    return sum(takes_requests(state.service, endpoint) for endpoint in endpoints(state))


def _readiness(state: ServiceState) -> str:
    if state.service.type == "ExternalName":
        return f"an alias of {state.service.external_name}"
    total = len(endpoints(state))
    return f"{ready_count(state)} of {total} pod{'s' if total != 1 else ''} ready"
