"""What a Service is and where its requests go: the data.

Field names are those of the Kubernetes API (core/v1 Service, discovery.k8s.io/v1 EndpointSlice); `cluster/` fills them
in from whatever API the user may read. What is decided on them is in `ports.py` (which port) and `endpoints.py` (which
pod).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One of `Service.spec.ports`."""

    port: int
    name: str = ""  # "" only where the Service has a single port
    protocol: str = "TCP"
    target_port: int | str = 0
    app_protocol: str | None = None

    def __str__(self) -> str:
        """`80 (http)`, `53/UDP (dns)`, `5432`"""
        number = str(self.port) if self.protocol == "TCP" else f"{self.port}/{self.protocol}"
        return f"{number} ({self.name})" if self.name else number


@dataclass(frozen=True, slots=True)
class Service:
    """The fields of a core/v1 Service that routing needs."""

    namespace: str
    name: str
    ports: tuple[ServicePort, ...] = ()
    type: str = "ClusterIP"
    cluster_ip: str = ""  # "None" for a headless Service
    external_name: str = ""
    selector: Mapping[str, str] = field(default_factory=dict)
    session_affinity: str = "None"
    publish_not_ready_addresses: bool = False

    @property
    def headless(self) -> bool:
        return self.cluster_ip == "None"


@dataclass(frozen=True, slots=True)
class EndpointPort:
    """One of an EndpointSlice's `ports`: the number that the pod listens on."""

    port: int
    name: str = ""
    protocol: str = "TCP"
    app_protocol: str | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of an EndpointSlice. `pod` is its Pod's name, None where the targetRef is no Pod."""

    address: str
    pod: str | None = None
    hostname: str = ""
    node: str = ""
    zone: str = ""
    ready: bool = True  # conditions.ready, nil counts as true (API reference)
    serving: bool = True
    terminating: bool = False


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """Endpoints that all listen on the same ports. What comes as Endpoints or as Pods is turned into these too."""

    name: str
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[EndpointPort, ...] = ()
    address_type: str = "IPv4"


@dataclass(frozen=True, slots=True)
class ServiceState:
    """A Service and all its EndpointSlices at one moment."""

    service: Service
    slices: tuple[EndpointSlice, ...] = ()


@dataclass(frozen=True, slots=True)
class PodPort:
    """Where a port-forward ends: a TCP port of a pod. `address` is the pod's, for display."""

    namespace: str
    pod: str
    port: int
    address: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}:{self.port}"
