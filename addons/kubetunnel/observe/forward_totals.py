"""Port-forwards as they are now, and totals over all that ever were: one that is closed takes its counts along."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kubetunnel.forward.facts import ForwardFacts
from kubetunnel.observe.event_log import EventLog, Level
from kubetunnel.proxy.clusters import Session

_COUNTED = ("streams_opened", "bytes_sent", "bytes_received", "dials", "retries", "redials")
_LEVELS: Mapping[str, Level] = {"broken": "error", "draining": "warning"}


class ForwardKey(NamedTuple):
    """Which forward."""

    zone: str
    namespace: str
    pod: str


class ForwardTotals:
    """To be told of the sessions once a second. What a forward counts in the last moment before its end is missed."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self.now: dict[ForwardKey, ForwardFacts] = {}
        self.totals: dict[str, Counter[str]] = {}  # by zone

    def sample(self, sessions: Mapping[str, Session]) -> None:
        """Takes the facts of all forwards."""
        before, self.now = self.now, {}
        for zone, session in sessions.items():
            for facts in session.forwards.forwards():
                key = ForwardKey(zone, facts.namespace, facts.pod)
                self.now[key] = facts
                self._count(zone, before.get(key), facts)
                if key not in before or before[key].state != facts.state:
                    self._tell(facts, session.access.of_context)

    def has_streams(self, zone: str, namespace: str, pods: Iterable[str | None]) -> bool:
        """Whether one of these pods has a stream."""
        found = (self.now.get(ForwardKey(zone, namespace, pod or "")) for pod in pods)
        return any(facts is not None and facts.streams for facts in found)

    def _count(self, zone: str, before: ForwardFacts | None, now: ForwardFacts) -> None:
        totals = self.totals.setdefault(zone, Counter())
        started_anew = before is None or before.streams_opened > now.streams_opened or before.dials > now.dials
        for name in _COUNTED:
            earlier = 0 if started_anew else getattr(before, name)
            totals[name] += max(0, getattr(now, name) - earlier)

    def _tell(self, facts: ForwardFacts, of_context: str) -> None:
        if facts.state == "opening":
            return
        level = _LEVELS.get(facts.state, "info")
        text = f"Forward to {facts.namespace}/{facts.pod}{of_context} {facts.state}: {facts.reason.rstrip('.')}"
        self._events.add(level, text, pod=facts.pod)
