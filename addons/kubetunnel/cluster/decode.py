"""API objects as they come over the wire, the needed fields only, and their translation to the catalog's data classes.

Sources: the API reference of core/v1 Service, Endpoints and Pod, and of discovery.k8s.io/v1 EndpointSlice. Where a list
is empty the API server writes null or leaves the field out. msgspec decodes a thousand pods in a few milliseconds; the
`kubernetes` package's models take more than a second for them, in which the event loop stands still.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from kubetunnel.core.catalog import Endpoint, EndpointPort, EndpointSlice, Service, ServicePort


class Struct(msgspec.Struct, rename="camel", frozen=True):
    """Fields of an API object. Unknown ones are skipped."""


class Metadata(Struct, frozen=True):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None


class ApiObject(Protocol):
    """Any of the below: it has metadata."""

    @property
    def metadata(self) -> Metadata: ...


class Named(Struct, frozen=True):
    """Any object, of which the metadata are all that counts."""

    metadata: Metadata = Metadata()


class ServicePortFields(Struct, frozen=True):
    port: int
    name: str = ""
    protocol: str = "TCP"
    target_port: int | str = 0
    app_protocol: str | None = None


class ServiceSpec(Struct, frozen=True):
    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(name="clusterIP", default="")
    external_name: str = ""
    selector: dict[str, str] | None = None
    session_affinity: str = "None"
    publish_not_ready_addresses: bool = False
    ports: list[ServicePortFields] | None = None


class ServiceObject(Struct, frozen=True):
    metadata: Metadata
    spec: ServiceSpec = ServiceSpec()


class TargetRef(Struct, frozen=True):
    kind: str = ""
    name: str = ""
    namespace: str = ""


class Conditions(Struct, frozen=True):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class SliceEndpoint(Struct, frozen=True):
    addresses: list[str] | None = None
    conditions: Conditions = Conditions()
    hostname: str | None = None
    target_ref: TargetRef | None = None
    node_name: str | None = None
    zone: str | None = None


class SlicePort(Struct, frozen=True):
    port: int | None = None  # nil: "all ports", which names none that could be forwarded to
    name: str | None = None
    protocol: str | None = None
    app_protocol: str | None = None


class SliceObject(Struct, frozen=True):
    metadata: Metadata
    address_type: str = "IPv4"
    endpoints: list[SliceEndpoint] | None = None
    ports: list[SlicePort] | None = None


class EndpointAddress(Struct, frozen=True):
    ip: str
    hostname: str | None = None
    node_name: str | None = None
    target_ref: TargetRef | None = None


class Subset(Struct, frozen=True):
    addresses: list[EndpointAddress] | None = None
    not_ready_addresses: list[EndpointAddress] | None = None
    ports: list[SlicePort] | None = None


class EndpointsObject(Struct, frozen=True):
    metadata: Metadata
    subsets: list[Subset] | None = None


class ContainerPort(Struct, frozen=True):
    container_port: int
    name: str = ""
    protocol: str = "TCP"


class Container(Struct, frozen=True):
    ports: list[ContainerPort] | None = None
    restart_policy: str | None = None


class PodSpec(Struct, frozen=True):
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None
    hostname: str = ""
    subdomain: str = ""
    node_name: str = ""
    host_network: bool = False


class PodCondition(Struct, frozen=True):
    type: str
    status: str = "Unknown"


class PodStatus(Struct, frozen=True):
    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    conditions: list[PodCondition] | None = None


class PodObject(Struct, frozen=True):
    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def ended(self) -> bool:
        return self.status.phase in ("Succeeded", "Failed")


def service(found: ServiceObject) -> Service:
    """The catalog's Service."""
    spec = found.spec
    return Service(
        namespace=found.metadata.namespace,
        name=found.metadata.name,
        ports=tuple(
            ServicePort(p.port, p.name, p.protocol, p.target_port or p.port, p.app_protocol) for p in spec.ports or ()
        ),
        type=spec.type,
        cluster_ip=spec.cluster_ip,
        external_name=spec.external_name,
        selector=spec.selector or {},
        session_affinity=spec.session_affinity,
        publish_not_ready_addresses=spec.publish_not_ready_addresses,
    )


def endpoint_slice(found: SliceObject) -> EndpointSlice:
    """The catalog's EndpointSlice."""
    return EndpointSlice(
        name=found.metadata.name,
        endpoints=tuple(_slice_endpoint(e, found.metadata.namespace) for e in found.endpoints or () if e.addresses),
        ports=_ports(found.ports),
        address_type=found.address_type,
    )


def slices_of_endpoints(found: EndpointsObject) -> tuple[EndpointSlice, ...]:
    """An Endpoints object as EndpointSlices, one a subset and address family."""
    slices = []
    for index, subset in enumerate(found.subsets or ()):
        namespace = found.metadata.namespace
        endpoints = [_address(a, namespace, ready=True) for a in subset.addresses or ()]
        endpoints += [_address(a, namespace, ready=False) for a in subset.not_ready_addresses or ()]
        for family in ("IPv4", "IPv6"):
            if members := tuple(e for e in endpoints if _family(e.address) == family):
                name = f"{found.metadata.name}-{index}-{family.lower()}"
                slices.append(EndpointSlice(name, members, _ports(subset.ports), family))
    return tuple(slices)


def slices_of_pods(of: Service, pods: list[PodObject]) -> tuple[EndpointSlice, ...]:
    """What the endpoint controller would make of a Service's Pods; one slice a Pod, as named ports may differ."""
    return tuple(
        EndpointSlice(
            name=pod.metadata.name,
            endpoints=(pod_endpoint(pod, of),),
            ports=tuple(
                EndpointPort(number, port.name, port.protocol, port.app_protocol)
                for port in of.ports
                if (number := _target_number(pod, port)) is not None
            ),
            address_type=_family(pod.status.pod_ip),
        )
        for pod in pods
        if pod.status.pod_ip and not pod.ended
    )


def pod_endpoint(pod: PodObject, of: Service | None = None) -> Endpoint:
    """A Pod as an endpoint, of a Service where one is given."""
    terminating = pod.metadata.deletion_timestamp is not None
    serving = any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ())
    published = of is not None and of.publish_not_ready_addresses
    return Endpoint(
        address=pod.status.pod_ip,
        pod=pod.metadata.name,
        hostname=pod.spec.hostname if of is not None and pod.spec.subdomain == of.name else "",
        node=pod.spec.node_name,
        ready=published or (serving and not terminating),
        serving=serving,
        terminating=terminating,
    )


def _slice_endpoint(found: SliceEndpoint, namespace: str) -> Endpoint:
    conditions = found.conditions
    ready = conditions.ready is not False  # "nil should be interpreted as true"
    return Endpoint(
        address=(found.addresses or [""])[0],  # "consumers should only use the first"
        pod=_pod_name(found.target_ref, namespace),
        hostname=found.hostname or "",
        node=found.node_name or "",
        zone=found.zone or "",
        ready=ready,
        serving=ready if conditions.serving is None else conditions.serving,
        terminating=conditions.terminating is True,
    )


def _address(found: EndpointAddress, namespace: str, *, ready: bool) -> Endpoint:
    return Endpoint(
        address=found.ip,
        pod=_pod_name(found.target_ref, namespace),
        hostname=found.hostname or "",
        node=found.node_name or "",
        ready=ready,
        serving=ready,
    )


def _pod_name(ref: TargetRef | None, namespace: str) -> str | None:
    if ref is None or ref.kind != "Pod" or ref.namespace not in ("", namespace):
        return None
    return ref.name or None


def _ports(found: list[SlicePort] | None) -> tuple[EndpointPort, ...]:
    return tuple(
        EndpointPort(p.port, p.name or "", p.protocol or "TCP", p.app_protocol)
        for p in found or ()
        if p.port is not None
    )


def _target_number(pod: PodObject, port: ServicePort) -> int | None:
    if isinstance(port.target_port, int):
        return port.target_port
    # a sidecar is an init container that is restarted always (KEP-753)
    sidecars = [c for c in pod.spec.init_containers or () if c.restart_policy == "Always"]
    for container in [*(pod.spec.containers or ()), *sidecars]:
        ports: list[ContainerPort] = container.ports or []
        for candidate in ports:
            if candidate.name == port.target_port and candidate.protocol == port.protocol:
                return candidate.container_port
    return None


def _family(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"
