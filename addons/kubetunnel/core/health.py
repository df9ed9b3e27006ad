"""When a pod's port counts as healthy: outcomes of checks in, a state out, and what a state means for balancing.

Thresholds as in the kubelet's probes (`failureThreshold`, `successThreshold` 1): several failures in a row make it
unhealthy, one success makes it healthy again. What has not been checked yet is unknown, and is used as if healthy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

type Health = Literal["unknown", "healthy", "unhealthy"]
type ServiceHealth = Literal["unknown", "healthy", "degraded", "unhealthy"]
type CheckKind = Literal["tcp", "http", "grpc", "none"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one check.

    Attributes:
        detail: what was found, for people.
        latency_s: to the answer; None where there was none to wait for (a port that accepts in silence).
    """

    ok: bool
    detail: str
    latency_s: float | None = None


@dataclass(frozen=True, slots=True)
class HealthRecord:
    """What the checks of one pod's port came to. Times are seconds of the caller's clock.

    Attributes:
        since_s: when it came to this state, None for unknown.
        failures: of all `checks`; `failures_in_row`: of the last ones.
        detail, latency_s: of the last check.
    """

    state: Health = "unknown"
    since_s: float | None = None
    checked_s: float | None = None
    checks: int = 0
    failures: int = 0
    failures_in_row: int = 0
    detail: str = ""
    latency_s: float | None = None

    def after(self, outcome: Outcome, now_s: float, max_failures: int) -> HealthRecord:
        """The record after one more check; unhealthy after `max_failures` (at least 1) in a row."""
        in_row = 0 if outcome.ok else self.failures_in_row + 1
        state: Health = self.state
        if outcome.ok:
            state = "healthy"
        elif in_row >= max_failures:
            state = "unhealthy"
        return replace(
            self,
            state=state,
            since_s=now_s if state != self.state else self.since_s,
            checked_s=now_s,
            checks=self.checks + 1,
            failures=self.failures + (not outcome.ok),
            failures_in_row=in_row,
            detail=outcome.detail,
            latency_s=outcome.latency_s,
        )


@dataclass(frozen=True, slots=True)
class Check:
    """How a port is checked. `argument`: the path of an HTTP check, the name of a gRPC service ("": the server)."""

    kind: CheckKind = "tcp"
    argument: str = ""


def parse_check(text: str) -> Check:
    """`tcp`, `http:/healthz`, `grpc`, `grpc:package.Service` or `none`. Raises ValueError: what goes."""
    kind, colon, argument = text.partition(":")
    match kind:
        case "tcp" | "none" if not colon:
            return Check(kind)
        case "http" if (
            argument.startswith("/") and argument.isascii() and argument.isprintable() and " " not in argument
        ):
            return Check("http", argument)
        case "grpc" if not colon or argument.isprintable():
            return Check("grpc", argument)
    raise ValueError(f"{text!r} is no health check: tcp, http:/PATH, grpc, grpc:SERVICE or none")


def pod_health(ports: Collection[Health]) -> Health:
    """Of one pod by its ports: healthy where one is, for the others are a question of what listens there."""
    if "healthy" in ports:
        return "healthy"
    return "unhealthy" if "unhealthy" in ports else "unknown"


def service_health(pods: Collection[Collection[Health]]) -> ServiceHealth:
    """Of a Service by the ports of each pod that is ready; without any, nothing answers."""
    states = [pod_health(ports) for ports in pods]
    if all(state == "unhealthy" for state in states):
        return "unhealthy"
    if any("unhealthy" in ports for ports in pods):
        return "degraded"
    return "healthy" if "healthy" in states else "unknown"


def prefer_healthy[T](candidates: Sequence[T], is_unhealthy: Callable[[T], bool]) -> Sequence[T]:
    """Those that may get new streams: an unhealthy one only where there is no other."""
    return [candidate for candidate in candidates if not is_unhealthy(candidate)] or candidates
