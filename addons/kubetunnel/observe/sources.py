"""What the parts of this package ask of the rest of the tunnel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from kubetunnel.core.health import Check, parse_check
from kubetunnel.core.settings import Settings
from kubetunnel.observe.traffic import ServiceKey
from kubetunnel.proxy.clusters import Cluster, Session
from netsetup.dns_responder import DnsFacts


class Sessions(Protocol):
    """The clusters."""

    @property
    def zones(self) -> tuple[str, ...]:
        """Their zones; short names are in the first."""
        ...

    @property
    def first(self) -> Cluster:
        """That of the first zone."""
        ...

    def of(self, zone: str) -> Cluster:
        """That of one of `zones`."""
        ...

    def sessions(self) -> Mapping[str, Session]:
        """Those that are open, by their zones; nothing is opened by asking."""
        ...


class AskedName(Protocol):
    """A question that the DNS server was asked. `at`: Unix seconds."""

    @property
    def at(self) -> float: ...
    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def code(self) -> str: ...


class NamingFacts(Protocol):
    """What names resolve to."""

    @property
    def dns_address(self) -> tuple[str, int] | None:
        """Where the DNS server listens; None while there is none."""
        ...

    def dns_facts(self) -> DnsFacts | None:
        """Its counters."""
        ...

    def dns_queries(self) -> Sequence[AskedName]:
        """Its last questions, the oldest first, not many."""
        ...

    def assigned(self, name: str) -> str | None:
        """The virtual IP of a full name, where it has one."""
        ...


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """How health is checked.

    Attributes:
        skip: what the checks find is shown, and has no effect on which pod is used.
        idle_timeout_s: a Service that nobody used for so long is not checked any more.
    """

    enabled: bool = True
    interval_s: float = 30.0
    timeout_s: float = 2.0
    max_failures: int = 3
    skip: bool = False
    idle_timeout_s: float = 300.0

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As the settings have it."""
        health, idle_timeout_s = settings.health, settings.pool.idle_timeout_s
        return cls(
            health.enabled, health.interval_s, health.timeout_s, health.max_failures, health.skip, idle_timeout_s
        )


def check_of(settings: Settings, key: ServiceKey, port: int) -> Check:
    """How the settings have a port of a Service checked."""
    return parse_check(settings.of_service(key.service, key.namespace, port).health)
