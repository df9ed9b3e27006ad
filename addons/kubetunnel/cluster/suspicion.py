"""Doubts about connections that are open: dead ones say nothing when a machine slept or its network changed.

TCP finds out after minutes, its keepalive after half a minute, and behind a proxy that keeps its side open neither
does. So whoever has proof that one connection died in silence says so here, and all others are opened anew. That
the machine was suspended is seen by a clock that went on meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

SUSPENDED_S = 5.0  # shorter naps outlive no NAT entry
REPEAT_S = 5.0  # doubts that come in a burst have one cause

# both go on while the machine is suspended, and time.monotonic() does not (clock_gettime(2); macOS has only the other)
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _time_with_suspensions_s() -> float:
    return time.clock_gettime(_CLOCK)


class Suspicion:
    """Tells those who hold connections to one API server when these may be dead.

    Args:
        of_context: which server, for the log; "" where there is no other.
        monotonic: seconds of a clock that stops while the machine is suspended.
        running: seconds of one that goes on.
    """

    def __init__(
        self,
        of_context: Callable[[], str] = str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        running: Callable[[], float] = _time_with_suspensions_s,
    ) -> None:
        self._of_context = of_context
        self._monotonic = monotonic
        self._running = running
        self._offset_s = running() - monotonic()
        self._voiced_at = float("-inf")
        self._callbacks: list[Callable[[str], None]] = []

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call `callback(reason)` when what is open now may be dead.

        Returns:
            What ends the subscription.
        """
        entry: Callable[[str], None] = lambda reason: callback(reason)  # noqa: E731 - one of its own for each
        self._callbacks.append(entry)
        return lambda: self._callbacks.remove(entry) if entry in self._callbacks else None

    def voice(self, reason: str) -> None:
        """A connection was found dead that had not ended, or something else says that others may be. `reason`: a
        clause, e.g. "an upstream answers no pings"."""
        now = self._monotonic()
        if now - self._voiced_at < REPEAT_S:
            return
        self._voiced_at = now
        logger.info("Connections to the API server%s are opened anew: %s", self._of_context(), reason)
        for callback in list(self._callbacks):
            callback(reason)

    def look(self) -> None:
        """At each use: was the machine suspended since the last one?"""
        offset_s = self._running() - self._monotonic()
        gap_s, self._offset_s = offset_s - self._offset_s, offset_s
        if gap_s >= SUSPENDED_S:
            self._voiced_at = float("-inf")
            self.voice(f"the machine was suspended for {gap_s:.0f} s")
