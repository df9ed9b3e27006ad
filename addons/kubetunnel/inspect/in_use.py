"""What is in use now, for commands and content views: they are asked synchronously and must open nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kubetunnel.core.catalog import ServiceState
from kubetunnel.core.endpoints import takes_requests
from kubetunnel.forward.facts import ForwardFacts
from kubetunnel.proxy.clusters import Clusters, Session


@dataclass(frozen=True, slots=True)
class ServiceInUse:
    """A Service that was asked for lately.

    Attributes:
        name: the full one.
        pods: names of the pods behind it, the ready ones first; `ready` says how many are.
    """

    name: str
    zone: str
    session: Session
    state: ServiceState
    pods: tuple[str, ...]
    ready: int


def services(clusters: Clusters) -> Iterator[ServiceInUse]:
    """By zone, then Namespace and name."""
    for zone, session in clusters.sessions().items():
        for (namespace, name), state in sorted(session.discovery.watched().items()):
            ready: dict[str, bool] = {}
            for endpoint in (each for listed in state.slices for each in listed.endpoints if each.pod):
                key = endpoint.pod or ""
                ready[key] = ready.get(key, False) or takes_requests(state.service, endpoint)
            pods = tuple(sorted(ready, key=lambda pod: (not ready[pod], pod)))
            yield ServiceInUse(f"{name}.{namespace}.svc.{zone}", zone, session, state, pods, sum(ready.values()))


def forwards(clusters: Clusters) -> Iterator[tuple[Session, ForwardFacts]]:
    """The forwards to pods."""
    for session in clusters.sessions().values():
        for facts in sorted(session.forwards.forwards(), key=lambda each: (each.namespace, each.pod)):
            yield session, facts


def forward_to(clusters: Clusters, context: str, namespace: str, pod: str) -> ForwardFacts | None:
    """The forward to one pod; None where there is none now."""
    for session, facts in forwards(clusters):
        if (session.access.context, facts.namespace, facts.pod) == (context, namespace, pod):
            return facts
    return None
