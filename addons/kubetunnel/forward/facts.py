"""What there is to know of the forward to one pod, as plain data for status pages, and as one log line a change."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger(__name__)

POD_ENDS = "its pod ends"  # why a forward drains, mostly

type State = Literal["opening", "ready", "draining", "broken", "closed"]


@dataclass(frozen=True, slots=True)
class ForwardFacts:
    """A forward at one moment. Times are Unix seconds.

    Attributes:
        state: "opening" (the first upstream is being dialled), "ready", "draining" (the pod ends; what runs goes on),
            "broken", "closed" (its last upstream ended, and nobody used it: the next stream opens it again).
        reason: why it came to this state, and `since` when.
        protocol: what its last upstream speaks, "" before the first.
        upstreams: upgraded connections that are open, spares too.
        streams: open now; `streams_opened`: so far.
        bytes_sent, bytes_received: payload of its streams, as far as they are counted: up to a burst behind.
        dials: attempts to open an upstream; of these `retries` followed a failed one, and `redials` an upstream that
            was cut while it was in use.
    """

    namespace: str
    pod: str
    state: State
    reason: str
    since: float
    protocol: str
    upstreams: int
    streams: int
    streams_opened: int
    bytes_sent: int
    bytes_received: int
    dials: int
    retries: int
    redials: int
    last_error: str
    last_error_at: float | None


class ForwardBooks:
    """The state of one forward and its counters over all upstreams that it ever had.

    Args:
        of_context: in which cluster, for the log; "" where there is no other.
    """

    def __init__(self, namespace: str, pod: str, of_context: Callable[[], str] = str) -> None:
        self.namespace = namespace
        self.pod = pod
        self._of_context = of_context
        self.state: State = "opening"
        self.reason = "a stream is wanted"
        self.since = time.time()
        self.protocol = ""
        self.streams_opened = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.dials = 0
        self.retries = 0
        self.redials = 0
        self.last_error = ""
        self.last_error_at: float | None = None
        self._cut = False
        self._failed = False

    def __str__(self) -> str:
        return f"Forward to {self.namespace}/{self.pod}{self._of_context()}"

    def facts(self, *, upstreams: int, streams: int, bytes_sent: int, bytes_received: int) -> ForwardFacts:
        """A copy of what there is to know, with what is open now and the bytes of that."""
        return ForwardFacts(
            namespace=self.namespace,
            pod=self.pod,
            state=self.state,
            reason=self.reason,
            since=self.since,
            protocol=self.protocol,
            upstreams=upstreams,
            streams=streams,
            streams_opened=self.streams_opened,
            bytes_sent=self.bytes_sent + bytes_sent,
            bytes_received=self.bytes_received + bytes_received,
            dials=self.dials,
            retries=self.retries,
            redials=self.redials,
            last_error=self.last_error,
            last_error_at=self.last_error_at,
        )

    def change(self, state: State, reason: str) -> None:
        """The forward is in this state; a line is logged where it was in another."""
        if state == self.state:
            return
        was_broken = self.state == "broken"
        self.state, self.reason, self.since = state, reason, time.time()
        # who was warned is to hear of the end, too
        warned = state == "broken" or (was_broken and state == "ready")
        level = logging.DEBUG if state == "opening" else logging.WARNING if warned else logging.INFO
        logger.log(level, "%s %s: %s", self, state, reason.rstrip("."))

    def drained(self) -> None:
        """Nothing is open any more, which is the end of one that drains."""
        if self.state == "draining":
            self.change("closed", self.reason)

    def dialling(self) -> None:
        """An upstream is being dialled."""
        self.dials += 1
        self.retries += self._failed
        self.redials += self._cut
        self._cut = self._failed = False

    def dial_failed(self, reason: str) -> None:
        """A dial failed: the next one is a retry."""
        self._failed = True
        self.failed(reason)

    def cut(self, reason: str) -> None:
        """An upstream was cut while it was in use."""
        self._cut = True
        self.failed(reason)

    def failed(self, reason: str) -> None:
        """Something went wrong that a user may want to hear of."""
        self.last_error, self.last_error_at = reason, time.time()
