"""The counts of all requests by Service, made to be cheap to add to: metrics, the API and JSON totals read them.

What is counted by is bounded: names only of Services that exist, at most `MAX_SERVICES` of them, and codes that their
protocol knows. Prometheus' own advice ("Do not use labels to store dimensions with high cardinality").
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kubetunnel.core.names import Name, PodAddressName, ServiceName
from kubetunnel.observe.sliding import Sliding

MAX_SERVICES = 500  # more share the name OTHER
MAX_PORTS = 8  # of a Service, that are checked
SHOWN_S = 3600.0  # a Service that nobody used for so long is shown no more
MAX_LAST = 100  # requests that are remembered one by one
OTHER = "other"
UNKNOWN = "unknown"  # the name is none, or nobody could be asked
POD = "(pod)"  # a Pod by its address belongs to no Service

# prometheus-client's defaults, and some above them for slow answers
DURATION_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZE_BUCKETS_BYTES = (100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9)
SETUP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class ServiceKey(NamedTuple):
    """Which Service."""

    zone: str
    namespace: str
    service: str

    @property
    def is_of_one(self) -> bool:
        """Whether it is one Service's, and no collective name."""
        return self.zone not in (UNKNOWN, OTHER) and self.service != POD


UNKNOWN_KEY = ServiceKey(UNKNOWN, UNKNOWN, UNKNOWN)
OTHER_KEY = ServiceKey(OTHER, OTHER, OTHER)


class Histogram:
    """Counts of values by the least bound that they do not exceed."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """As Prometheus has them: (`le`, count), the last one `+Inf`."""
        seen, found = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            found.append(("+Inf" if bound == float("inf") else str(bound), float(seen)))
        return found


@dataclass(frozen=True, slots=True)
class LastError:
    """What a client was told last, in words of ours; `at`: Unix seconds."""

    reason: str
    detail: str
    command: str | None
    at: float


class ProtocolTraffic:
    """Of one Service and one protocol."""

    __slots__ = ("codes", "durations", "request_sizes", "response_sizes")

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.durations = Histogram(DURATION_BUCKETS_S)
        self.request_sizes = Histogram(SIZE_BUCKETS_BYTES)
        self.response_sizes = Histogram(SIZE_BUCKETS_BYTES)


@dataclass(slots=True)
class ServiceTraffic:
    """Of one Service.

    Attributes:
        used_s: when it was asked for last, monotonic; `ports`: which ports, and when.
        upstreams: connections to its pods that are open.
    """

    key: ServiceKey
    window: Sliding
    used_s: float
    by_protocol: dict[str, ProtocolTraffic] = field(default_factory=dict)
    setups: Histogram = field(default_factory=lambda: Histogram(SETUP_BUCKETS_S))
    requests: int = 0
    failures: int = 0
    retries: int = 0
    ports: dict[int, float] = field(default_factory=dict)
    upstreams: int = 0
    last_error: LastError | None = None

    def use(self, port: int, now_s: float) -> None:
        """Somebody uses this port of it."""
        self.used_s = now_s
        self.ports.pop(port, None)
        self.ports[port] = now_s
        if len(self.ports) > MAX_PORTS:
            del self.ports[next(iter(self.ports))]

    def is_used(self, now_s: float, within_s: float) -> bool:
        """Whether somebody used it so lately, or still does: a database's connection is asked for once a day."""
        return self.upstreams > 0 or now_s - self.used_s < within_s


class Done(NamedTuple):
    """One request, or one raw connection, that is over. `latency_s`: to the head of the answer."""

    protocol: str
    code: str
    failed: bool
    duration_s: float
    latency_s: float | None = None
    request_bytes: int = 0
    response_bytes: int = 0


class Shown(NamedTuple):
    """The same for people; `at`: Unix seconds. Neither path nor client is kept."""

    at: float
    key: ServiceKey
    method: str
    done: Done
    pod: str
    reason: str


class Traffic:
    """All of it.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, max_services: int = MAX_SERVICES) -> None:
        self.started_at = time.time()
        self.refusals: dict[str, int] = {}
        self.last: deque[Shown] = deque(maxlen=MAX_LAST)
        self._clock = clock
        self._max_services = max_services
        self._services: dict[ServiceKey, ServiceTraffic] = {}

    def __iter__(self) -> Iterator[ServiceTraffic]:
        return iter(list(self._services.values()))

    def get(self, key: ServiceKey) -> ServiceTraffic | None:
        return self._services.get(key)

    def of(self, key: ServiceKey) -> ServiceTraffic:
        """The counts of a Service; those of OTHER_KEY where there are too many."""
        found = self._services.get(key)
        if found is None:
            if len(self._services) >= self._max_services:
                key = OTHER_KEY
            now_s = self._clock()
            found = self._services.setdefault(key, ServiceTraffic(key, Sliding(now_s), now_s))
        return found

    def add(self, service: ServiceTraffic, done: Done, now_s: float) -> None:
        """A request is over, now."""
        protocol = service.by_protocol.get(done.protocol)
        if protocol is None:
            protocol = service.by_protocol[done.protocol] = ProtocolTraffic()
        service.requests += 1
        service.failures += done.failed
        protocol.codes[done.code] = protocol.codes.get(done.code, 0) + 1
        protocol.durations.add(done.duration_s)
        protocol.request_sizes.add(done.request_bytes)
        protocol.response_sizes.add(done.response_bytes)
        service.window.add(now_s, done.latency_s, failed=done.failed)

    def refuse(self, reason: str) -> None:
        """A client was told an error of ours."""
        self.refusals[reason] = self.refusals.get(reason, 0) + 1


def key_of(name: Name) -> ServiceKey:
    """Which Service a name belongs to."""
    match name:
        case ServiceName(service=service, namespace=namespace, zone=zone):
            return ServiceKey(zone, namespace, service)
        case PodAddressName(namespace=namespace, zone=zone):
            return ServiceKey(zone, namespace, POD)
        case _:
            return key_of(name.service)
