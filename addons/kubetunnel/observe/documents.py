"""The JSON documents of the API: what is known, as plain data. Their schema is openapi.json."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from kubetunnel import __version__
from kubetunnel.core.catalog import Endpoint, ServiceState
from kubetunnel.core.endpoints import show_pods, takes_requests
from kubetunnel.core.health import HealthRecord, pod_health, service_health
from kubetunnel.core.names import ServiceName
from kubetunnel.local_ports import LocalPort, LocalPorts
from kubetunnel.observe.event_log import Event, EventLog
from kubetunnel.observe.forward_totals import ForwardKey, ForwardTotals
from kubetunnel.observe.health_checks import HealthChecks
from kubetunnel.observe.known_services import KnownServices, endpoints
from kubetunnel.observe.sources import NamingFacts, Sessions
from kubetunnel.observe.traffic import SHOWN_S, ServiceKey, ServiceTraffic, Traffic

type Json = dict[str, Any]


class Documents:
    """Makes them.

    Args:
        clock: seconds, monotonic, the same as of `traffic`.
    """

    def __init__(
        self,
        clusters: Sessions,
        traffic: Traffic,
        known: KnownServices,
        forwards: ForwardTotals,
        checks: HealthChecks,
        naming: NamingFacts,
        local_ports: LocalPorts,
        events: EventLog,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clusters = clusters
        self._traffic = traffic
        self._known = known
        self._forwards = forwards
        self._checks = checks
        self._naming = naming
        self._local_ports = local_ports
        self._events = events
        self._clock = clock

    def tunnel(self) -> Json:
        sessions = self._clusters.sessions()
        first = sessions.get(self._clusters.zones[0])
        return {
            "version": __version__,
            "started_at": self._traffic.started_at,
            "context": first.access.context if first else None,
            "namespace": first.access.namespace if first else None,
            "zones": list(self._clusters.zones),
        }

    def services(self) -> list[Json]:
        """Of all Services in use, by namespace and name."""
        self._known.follow(self._clusters.sessions())  # one may have been opened a moment ago
        keys = {*self._known.states, *(each.key for each in self._traffic if self._is_shown(each))}
        return [self._service(key) for key in sorted(keys)]

    def service(self, key: ServiceKey) -> Json | None:
        """Of one; None where it is not in use."""
        self._known.follow(self._clusters.sessions())
        traffic = self._traffic.get(key)
        if key not in self._known.states and (traffic is None or not self._is_shown(traffic)):
            return None
        return self._service(key)

    def forwards(self) -> list[Json]:
        return [self.forward(key) for key in sorted(self._forwards.now)]

    def forward(self, key: ForwardKey) -> Json:
        return {"zone": key.zone, **asdict(self._forwards.now[key])}

    def listeners(self) -> list[Json]:
        return [self.listener(port) for port in self._local_ports.ports() if port.listener is not None or port.failure]

    def listener(self, port: LocalPort) -> Json:
        """Of one that is open, or cannot be yet."""
        listener = port.listener
        ref = listener.ref if listener is not None else port.ref
        return {
            "id": port.id,
            "address": port.addresses[0] if listener is not None else "",
            "target": str(ref),
            "zone": port.zone or self._clusters.zones[0],
            "namespace": ref.namespace,
            "port": (listener is not None and listener.port) or port.pair.remote,
            "asked_by": port.asked_by,
            "failure": port.failure,
        }

    def dns(self) -> Json | None:
        """None where there is no DNS server."""
        facts, address = self._naming.dns_facts(), self._naming.dns_address
        if facts is None or address is None:
            return None
        answers = [{"type": t, "code": c, "count": n} for (t, c), n in sorted(facts.answers.items())]
        queries = [{"at": q.at, "name": q.name, "type": q.type, "code": q.code} for q in self._naming.dns_queries()]
        counts = {name: getattr(facts, name) for name in ("cached", "forwarded", "dropped", "limited")}
        host, port = address
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return {"addresses": [shown], "answers": answers, **counts, "queries": queries}

    def events(self) -> list[Json]:
        return [event_json(event) for event in self._events.last()]

    def flows(self) -> Json:
        by_protocol: Counter[str] = Counter()
        by_code: Counter[str] = Counter()
        failures = 0
        for service in self._traffic:
            failures += service.failures
            for protocol, traffic in service.by_protocol.items():
                by_protocol[protocol] += sum(traffic.codes.values())
                by_code.update({f"{protocol} {code}": count for code, count in traffic.codes.items()})
        last = [
            {
                "at": shown.at, **_key_json(shown.key), "method": shown.method, "protocol": shown.done.protocol,
                "code": shown.done.code, "failed": shown.done.failed, "ms": _ms(shown.done.duration_s),
                "request_bytes": shown.done.request_bytes, "response_bytes": shown.done.response_bytes,
                "pod": shown.pod or None, "reason": shown.reason or None,
            }
            for shown in self._traffic.last
        ]  # fmt: skip
        return {
            "total": by_protocol.total(), "failures": failures, "by_protocol": dict(by_protocol),
            "by_code": dict(by_code), "refusals": dict(self._traffic.refusals), "last": last,
        }  # fmt: skip

    def status(self) -> Json:
        """Of /health/status: each Service with its checks."""
        services = []
        for document in self.services():
            key = ServiceKey(document["zone"], document["namespace"], document["service"])
            checks = [
                {"pod": pod_port.pod, "port": pod_port.port, **self._record(record)}
                for pod_port, record in self._checks.records(key).items()
            ]
            wanted = ("zone", "namespace", "service", "health", "as_of", "ready", "total", "streams", "pods")
            ok, failed = self._checks.totals.get(key, (0, 0))
            services.append(
                {name: document[name] for name in wanted}
                | {"healthy": document["health"] != "unhealthy", "checks": ok + failed, "failures": failed}
                | {"latency_ms": max((c["latency_ms"] for c in checks if c["latency_ms"] is not None), default=None)}
                | {"checked": checks}
            )
        return {"services": services}

    def _service(self, key: ServiceKey) -> Json:
        state, traffic = self._known.states.get(key), self._traffic.get(key)
        as_of = self._known.as_of(key)
        # how pods were says nothing of how they are
        by_pod, failing = (self._checks.of_pods(key), self._checks.failing(key)) if as_of is None else ({}, {})
        pods: list[Json] = []
        if state is not None:
            for each in endpoints(state):
                pod = each.pod or ""
                found = {"health": pod_health(by_pod.get(pod, ())), "failing": failing.get(pod)}
                pods.append(self._pod(key, state, each) | found)
        ready = [pod for pod in pods if pod["ready"]]
        has_pods = state is not None and state.service.type != "ExternalName"
        is_known = has_pods and as_of is None
        health = service_health([by_pod.get(pod["pod"], ()) for pod in ready]) if is_known else "unknown"
        if self._known.is_deleted(key):
            health = "unhealthy"  # as one without a pod
        ports = state.service.ports if state else ()
        return {
            **_key_json(key),
            "address": self._naming.assigned(str(ServiceName(key.service, key.namespace, key.zone))),
            "ports": [{"port": p.port, "name": p.name, "protocol": p.protocol} for p in ports],
            "health": health,
            "as_of": as_of,
            "pods": pods,
            "ready": len(ready),
            "total": len(pods),
            "streams": sum(pod["streams"] for pod in pods),
            "command": self._aimed(key.zone, _shows(key, state)),
            **self._rates(traffic),
        }

    def _aimed(self, zone: str, command: str) -> str:
        """The kubectl command with the zone's kubeconfig and context, where they were given."""
        kubectl = self._clusters.of(zone).kubectl if zone in self._clusters.zones else "kubectl"
        return kubectl + command.removeprefix("kubectl")

    def _is_shown(self, traffic: ServiceTraffic) -> bool:
        return traffic.key.is_of_one and traffic.is_used(self._clock(), SHOWN_S)

    def _rates(self, traffic: ServiceTraffic | None) -> Json:
        if traffic is None:
            nothing = {"requests_total": 0, "requests_per_s": 0.0, "error_rate": 0.0, "p50_ms": None, "p99_ms": None}
            return {**nothing, "sparkline": [0] * 60, "last_error": None}
        now_s = self._clock()
        rate, error_rate = traffic.window.rates(now_s)
        p50_s, p99_s = traffic.window.percentiles_s(now_s, 0.5, 0.99)
        return {
            "requests_total": traffic.requests,
            "requests_per_s": round(rate, 2),
            "error_rate": round(error_rate, 4),
            "p50_ms": _ms(p50_s),
            "p99_ms": _ms(p99_s),
            "sparkline": traffic.window.sparkline(now_s),
            "last_error": asdict(traffic.last_error) if traffic.last_error else None,
        }

    def _pod(self, key: ServiceKey, state: ServiceState, endpoint: Endpoint) -> Json:
        """All but its health."""
        pod = endpoint.pod or ""
        forward = self._forwards.now.get(ForwardKey(key.zone, key.namespace, pod))
        return {
            "pod": pod or endpoint.address,
            "ready": takes_requests(state.service, endpoint),
            "state": forward.state if forward else "terminating" if endpoint.terminating else "idle",
            "streams": forward.streams if forward else 0,
            "node": endpoint.node,
        }

    def _record(self, record: HealthRecord) -> Json:
        ago_s = self._clock() - record.checked_s if record.checked_s is not None else None
        return {
            "health": record.state, "checks": record.checks, "failures": record.failures,
            "failures_in_row": record.failures_in_row, "detail": record.detail, "latency_ms": _ms(record.latency_s),
            "checked_ago_s": round(ago_s, 1) if ago_s is not None else None,
        }  # fmt: skip


def event_json(event: Event) -> Json:
    return {
        "at": event.at,
        "level": event.level,
        "text": event.text,
        "service": _key_json(event.service) if event.service else None,
        "pod": event.pod,
        "command": event.command,
    }


def _key_json(key: ServiceKey) -> Json:
    return key._asdict()


def _shows(key: ServiceKey, state: ServiceState | None) -> str:
    if state is None or state.service.type == "ExternalName":
        return f"kubectl -n {key.namespace} get service {key.service}"
    return show_pods(state.service)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
