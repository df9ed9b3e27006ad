"""The books of an upstream: what is known of it, and of each of its streams."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kubetunnel.forward.stream import ForwardStream

UPLOAD_BYTES = 64 * 1024  # sockets between us and a pod hold at least this much without the pod reading
BULK_BYTES = 128 * 1024  # of one answer: beyond it the copying costs more than the exchange
HEAVY_S = 10.0  # who was bulky is likely to be so again
IN_FLIGHT_S = 0.1  # an answer that came in pieces so lately may go on
FIRST_WORD_S = 5.0  # of a stream so young nobody can tell whether its server speaks first
NEVER = -math.inf


@dataclass(slots=True)
class UpstreamFacts:
    """What there is to know of one upstream, as plain data. Times are Unix seconds.

    Bytes are its streams' payload, and of an exchange under way they are counted when its direction turns.
    """

    number: int
    namespace: str
    pod: str
    protocol: str
    opened_at: float
    state: str = "open"  # then "draining", "closed"
    streams: int = 0
    streams_opened: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def __str__(self) -> str:
        return f"{self.number} to {self.namespace}/{self.pod}"


@dataclass(slots=True, eq=False)
class Lane:
    """One stream as its upstream sees it. Times are seconds of the loop's clock."""

    stream: ForwardStream
    opened_at: float
    unheard_bytes: int = 0  # sent since the pod's last byte
    heard_bytes: int = 0  # received since the client's last byte
    sent_at: float = 0.0
    heard_at: float = NEVER
    heavy: bool = False  # bulky, or its reader stopped: no good neighbour
    heavy_at: float = 0.0
    finished_at: float | None = None  # our FIN: the client is gone, the runtime is about to end it
    finished_bytes: int = 0  # that came after it
    counted: bool = True  # in the pool's books

    def weigh(self, now: float) -> bool:
        """Whether it is heavy: at the moment, or was so lately."""
        stopped = self.stream.paused and self.stream.held_bytes
        if stopped or self.unheard_bytes >= UPLOAD_BYTES or self.heard_bytes >= BULK_BYTES:
            self.heavy_at = now
            self.heavy = True
        elif self.heavy and now - self.heavy_at >= HEAVY_S:
            self.heavy = False
        return self.heavy

    def in_flight(self, now: float) -> bool:
        """Whether its client waits for bytes of the pod, as far as can be told without reading them."""
        if self.finished_at is not None or self.stream.paused:
            return False
        if self.heard_at == NEVER and now - self.opened_at < FIRST_WORD_S:
            return True
        return self.unheard_bytes > 0 or now - self.heard_at < IN_FLIGHT_S
