"""The books of an upstream: what is known of it, of each of its streams, and who is told of changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kubetunnel.forward.stream import ForwardStream

if TYPE_CHECKING:
    from kubetunnel.forward.upstream import Upstream


@dataclass(slots=True)
class UpstreamFacts:
    """What there is to know of one upstream, as plain data. Times are Unix seconds."""

    number: int
    namespace: str
    pod: str
    protocol: str
    opened_at: float
    state: str = "open"  # then "draining", "closed"
    streams: int = 0
    streams_opened: int = 0

    def __str__(self) -> str:
        return f"{self.number} to {self.namespace}/{self.pod}"


class Owner(Protocol):
    """Who is told of an upstream's changes: the pool."""

    def stream_ended(self, upstream: Upstream) -> None: ...
    def upstream_changed(self, upstream: Upstream) -> None: ...
    def upstream_lost(self, upstream: Upstream, reason: str) -> None: ...


@dataclass(slots=True, eq=False)
class Lane:
    """One stream as its upstream sees it."""

    stream: ForwardStream
    unheard_bytes: int = 0  # sent since the pod's last byte
    sent_at: float = 0.0
    finished_at: float | None = None  # our FIN: the client is gone, the runtime is about to end it
    finished_bytes: int = 0  # that came after it
    counted: bool = True  # in the pool's books
