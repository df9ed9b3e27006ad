"""What happened, for people who look now: the last events, and a stream of new ones for each who listens."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kubetunnel.observe.traffic import ServiceKey

MAX_EVENTS = 200
REPEAT_S = 5.0  # the same again is no news for so long: a Service that fails does so with each request
_MAX_TEXT_CHARS = 500

type Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `at`: Unix seconds; `command`: shows or mends it."""

    at: float
    level: Level
    text: str
    service: ServiceKey | None = None
    pod: str | None = None
    command: str | None = None


class EventLog:
    """The last `MAX_EVENTS` events; `number` of them there have been.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.number = 0

    def add(
        self,
        level: Level,
        text: str,
        *,
        service: ServiceKey | None = None,
        pod: str | None = None,
        command: str | None = None,
    ) -> None:
        """Something happened; nothing where the very same did a moment ago."""
        now = self._clock()
        event = Event(now, level, text[:_MAX_TEXT_CHARS], service, pod, command)
        for earlier in reversed(self._events):
            if now - earlier.at > REPEAT_S:
                break
            if (earlier.text, earlier.service, earlier.pod) == (event.text, service, pod):
                return
        self._events.append(event)
        self.number += 1

    def last(self) -> list[Event]:
        """The oldest first."""
        return list(self._events)

    def since(self, number: int) -> list[Event]:
        """Those after the first `number`, as far as they are remembered."""
        new = self.number - number
        return list(self._events)[-new:] if new > 0 else []
