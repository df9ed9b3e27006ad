"""The metrics, and how they come about at a scrape: from counts that are kept elsewhere.

Names and units follow Prometheus' conventions (prometheus.io/docs/practices/naming). Nothing is registered in the
library's global registry: mitmproxy's process may hold others' metrics.
"""

from __future__ import annotations

import asyncio
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from kubetunnel import __version__
from kubetunnel.observe.forward_totals import ForwardTotals
from kubetunnel.observe.health_checks import HealthChecks
from kubetunnel.observe.known_services import KnownServices, endpoints, ready_count
from kubetunnel.observe.sources import NamingFacts
from kubetunnel.observe.traffic import Histogram, ServiceTraffic, Traffic

type Kind = Literal["counter", "gauge", "histogram"]
type Samples = Iterable[tuple[tuple[str, ...], float | Histogram]]

_OF_A_SERVICE = ("zone", "namespace", "service")


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric as docs/metrics.md has it; a counter's name without `_total`."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str

    @property
    def exposed(self) -> tuple[str, ...]:
        """The names of its samples."""
        if self.kind == "counter":
            return (f"{self.name}_total",)
        if self.kind == "histogram":
            return (f"{self.name}_bucket", f"{self.name}_count", f"{self.name}_sum")
        return (self.name,)


def _spec(name: str, kind: Kind, labels: tuple[str, ...], text: str) -> MetricSpec:
    return MetricSpec(f"kube_tunnel_{name}", kind, labels, text)


BUILD = _spec("build_info", "gauge", ("version", "python"), "Always 1; the labels tell the version.")
REQUESTS = _spec(
    "requests", "counter", (*_OF_A_SERVICE, "protocol", "code"), "Requests and raw connections that are over."
)
DURATIONS = _spec(
    "request_duration_seconds", "histogram", (*_OF_A_SERVICE, "protocol"),
    "From a request's first byte to its answer's last one; a raw connection's life.",
)  # fmt: skip
REQUEST_SIZES = _spec(
    "request_size_bytes", "histogram", (*_OF_A_SERVICE, "protocol"), "Bodies of requests; bytes to the pod."
)
RESPONSE_SIZES = _spec(
    "response_size_bytes", "histogram", (*_OF_A_SERVICE, "protocol"), "Bodies of answers; bytes from the pod."
)
REFUSALS = _spec("refusals", "counter", ("reason",), "Requests that the tunnel answered with an error of its own.")
SETUPS = _spec(
    "forward_setup_seconds", "histogram", _OF_A_SERVICE, "To open a stream to a pod, with look-up and retries."
)
RETRIES = _spec("upstream_retries", "counter", _OF_A_SERVICE, "Further attempts to open a stream to a pod.")
STREAMS = _spec("streams", "gauge", ("zone",), "Streams to pods that are open.")
STREAMS_OPENED = _spec("streams_opened", "counter", ("zone",), "Streams to pods that were opened.")
TRANSPORTS = _spec("transports", "gauge", ("zone", "protocol"), "Upgraded connections to the API server that are open.")
FORWARDS = _spec("forwards", "gauge", ("zone", "state"), "Pods that are forwarded to, by the forward's state.")
DIALS = _spec("transport_dials", "counter", ("zone",), "Attempts to open an upgraded connection.")
DIAL_RETRIES = _spec("transport_retries", "counter", ("zone",), "Of these, attempts that followed a failed one.")
RECONNECTS = _spec("transport_reconnects", "counter", ("zone",), "Of these, for one that was cut while in use.")
SENT = _spec("stream_sent_bytes", "counter", ("zone",), "Payload to pods.")
RECEIVED = _spec("stream_received_bytes", "counter", ("zone",), "Payload from pods.")
ENDPOINTS = _spec(
    "endpoints", "gauge", (*_OF_A_SERVICE, "ready"), "Endpoints of the Services in use, as long as they are watched."
)
WATCH_RESTARTS = _spec("watch_restarts", "counter", ("zone",), "Watches that ended and were begun again.")
DNS_ANSWERS = _spec("dns_answers", "counter", ("type", "code"), "DNS questions, by type and the answer's code.")
DNS_CACHED = _spec("dns_cached", "counter", (), "Of these, answered from memory.")
DNS_FORWARDED = _spec("dns_forwarded", "counter", (), "Of these, passed on to the system's resolvers.")
DNS_DROPPED = _spec("dns_dropped", "counter", (), "Packets to the DNS server that got no answer.")
DNS_LIMITED = _spec("dns_limited", "counter", (), "DNS questions refused because too many were open.")
CHECKS = _spec("health_checks", "counter", (*_OF_A_SERVICE, "result"), "Health checks of pods.")
UNHEALTHY = _spec("unhealthy_pods", "gauge", _OF_A_SERVICE, "Pods with a port whose health checks fail.")

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, MetricSpec))


class Metrics(Collector):
    """All metrics.

    Args:
        watch_restarts: how often the watches of each zone were begun again.
    """

    def __init__(
        self,
        traffic: Traffic,
        forwards: ForwardTotals,
        known: KnownServices,
        checks: HealthChecks,
        naming: NamingFacts,
        watch_restarts: Callable[[], dict[str, int]],
    ) -> None:
        self._traffic = traffic
        self._forwards = forwards
        self._known = known
        self._checks = checks
        self._naming = naming
        self._watch_restarts = watch_restarts
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    async def expose(self, accept: str) -> tuple[bytes, str]:
        """The exposition in the format that an Accept header asks for, and its content type.

        With 200 Services that is more than a megabyte, and a tenth of a second; it is written in a thread.
        """
        encode, content_type = choose_encoder(accept)
        text: bytes = await asyncio.to_thread(encode, _Collected(list(self.registry.collect())))
        return text, content_type

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        yield _family(BUILD, [((__version__, platform.python_version()), 1.0)])
        yield from self._of_traffic()
        yield from self._of_forwards()
        yield from self._of_services()
        yield from self._of_dns()

    def totals(self) -> dict[str, dict[str, float]]:
        """All counters and gauges, added up over what they are labelled with but for the last label."""
        totals: dict[str, dict[str, float]] = {}
        for family in self.collect():
            sums: dict[str, float] = {}
            for sample in family.samples:
                if not sample.name.endswith("_bucket"):
                    suffix = sample.name.removeprefix(family.name).removeprefix("_total").lstrip("_")
                    by = "" if suffix in ("count", "sum") else next(reversed(sample.labels.values()), "")
                    entry = "_".join(filter(None, [by, suffix])) or "total"
                    sums[entry] = sums.get(entry, 0.0) + sample.value
            totals[family.name.removeprefix("kube_tunnel_")] = sums
        return totals

    def _of_traffic(self) -> Iterator[Metric]:
        services = list(self._traffic)
        yield _family(
            REQUESTS,
            (
                ((*service.key, protocol, code), float(count))
                for service in services
                for protocol, traffic in service.by_protocol.items()
                for code, count in traffic.codes.items()
            ),
        )
        yield _family(DURATIONS, _by_protocol(services, "durations"))
        yield _family(REQUEST_SIZES, _by_protocol(services, "request_sizes"))
        yield _family(RESPONSE_SIZES, _by_protocol(services, "response_sizes"))
        yield _family(REFUSALS, (((reason,), float(count)) for reason, count in self._traffic.refusals.items()))
        yield _family(SETUPS, ((tuple(service.key), service.setups) for service in services))
        yield _family(RETRIES, ((tuple(service.key), float(service.retries)) for service in services))

    def _of_forwards(self) -> Iterator[Metric]:
        now, totals = self._forwards.now, self._forwards.totals
        streams: Counter[str] = Counter(dict.fromkeys(totals, 0))
        transports: Counter[tuple[str, str]] = Counter()
        states: Counter[tuple[str, str]] = Counter()
        for key, facts in now.items():
            streams[key.zone] += facts.streams
            states[key.zone, facts.state] += 1
            if facts.protocol:
                transports[key.zone, facts.protocol] += facts.upstreams
        yield _family(STREAMS, (((zone,), float(count)) for zone, count in streams.items()))
        yield _family(TRANSPORTS, ((labels, float(count)) for labels, count in transports.items()))
        yield _family(FORWARDS, ((labels, float(count)) for labels, count in states.items()))
        for spec, counted in (
            (STREAMS_OPENED, "streams_opened"), (SENT, "bytes_sent"), (RECEIVED, "bytes_received"), (DIALS, "dials"),
            (DIAL_RETRIES, "retries"), (RECONNECTS, "redials"),
        ):  # fmt: skip
            yield _family(spec, [((zone,), float(counts[counted])) for zone, counts in totals.items()])

    def _of_services(self) -> Iterator[Metric]:
        counted: list[tuple[tuple[str, ...], float]] = []
        for key, state in self._known.states.items():
            if state.service.type == "ExternalName":
                continue  # an alias is not without endpoints: it has nothing to do with them
            if self._known.as_of(key) is not None:
                continue  # what it had once is no news
            ready = ready_count(state)
            counted += [((*key, "true"), float(ready)), ((*key, "false"), float(len(endpoints(state)) - ready))]
        yield _family(ENDPOINTS, counted)
        restarts = self._watch_restarts()
        yield _family(WATCH_RESTARTS, (((zone,), float(count)) for zone, count in restarts.items()))
        checked: list[tuple[tuple[str, ...], float]] = []
        for key, (ok, failed) in self._checks.totals.items():
            checked += [((*key, "ok"), float(ok)), ((*key, "failed"), float(failed))]
        yield _family(CHECKS, checked)
        yield _family(UNHEALTHY, ((tuple(key), float(n)) for key, n in self._checks.unhealthy_counts().items()))

    def _of_dns(self) -> Iterator[Metric]:
        facts = self._naming.dns_facts()
        yield _family(DNS_ANSWERS, ((labels, float(n)) for labels, n in facts.answers.items()) if facts else ())
        for spec, value in (
            (DNS_CACHED, facts.cached if facts else 0), (DNS_FORWARDED, facts.forwarded if facts else 0),
            (DNS_DROPPED, facts.dropped if facts else 0), (DNS_LIMITED, facts.limited if facts else 0),
        ):  # fmt: skip
            yield _family(spec, [((), float(value))])


class _Collected(Collector):
    """Metrics as they were at one moment."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _by_protocol(services: list[ServiceTraffic], attribute: str) -> Samples:
    return (
        ((*service.key, protocol), getattr(traffic, attribute))
        for service in services
        for protocol, traffic in service.by_protocol.items()
    )


def _family(spec: MetricSpec, samples: Samples) -> Metric:
    if spec.kind == "histogram":
        histogram = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
        for labels, value in samples:
            if isinstance(value, Histogram):
                histogram.add_metric(labels, value.cumulative(), value.total)
        return histogram
    make = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    family = make(spec.name, spec.help, labels=spec.labels)
    for labels, value in samples:
        if isinstance(value, float):
            family.add_metric(labels, value)
    return family
