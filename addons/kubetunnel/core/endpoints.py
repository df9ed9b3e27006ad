"""Which pod a request goes to: a Service's EndpointSlices in, targets out (the contract's sections 2.3 and 2.4).

An EndpointSlice brings the number that its pods listen on (`discovery.k8s.io/v1`), so that named target ports need no
look at a Pod. One endpoint may stand in several slices at a time (EndpointSlice API reference, "Duplicate endpoints"),
and a dual-stack pod stands in one for each address family: a pod's port is one target all the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from kubetunnel.core.catalog import Endpoint, EndpointSlice, PodPort, Service, ServicePort, ServiceState
from kubetunnel.core.errors import KubeTunnelError, NoReadyEndpoints, NotForwardable, ServiceNotFound
from kubetunnel.core.ports import port_not_exposed, refuse_external_name, tcp_port

_MAX_NAMED = 10


@dataclass(frozen=True, slots=True)
class Target:
    """A pod's port that a request for a Service's port may go to."""

    pod_port: PodPort
    endpoint: Endpoint
    service_port: ServicePort

    @classmethod
    def of_pod(cls, namespace: str, endpoint: Endpoint, number: int) -> Target:
        """A port of a Pod asked for by its address (`10-244-0-16.shop.pod.…`): no Service, so any port goes.

        Raises:
            NotForwardable: the endpoint is no Pod.
        """
        if endpoint.pod is None:
            raise NotForwardable(
                f"{endpoint.address} in Namespace {namespace} is no Pod, and a port-forward goes to one."
            )
        pod_port = PodPort(namespace, endpoint.pod, number, endpoint.address)
        return cls(pod_port, endpoint, ServicePort(port=number, target_port=number))


def targets(state: ServiceState, port: ServicePort | int, hostname: str | None = None) -> tuple[Target, ...]:
    """The ready endpoints of a Service's port that can be forwarded to: at least one, each pod once.

    Args:
        port: what `choose_port` chose, or a number. Where a Service is headless or a hostname is given, any number
            goes; one that the Service lists still means the pod's port behind it.
        hostname: the endpoint hostname of one Pod (`db-0` of `db-0.db.shop.svc.…`). An endpoint that has none goes by
            its address with dashes, as in CoreDNS.

    Raises:
        NoReadyEndpoints: there are none, or none is ready, or no ready one has the port; the detail says how many.
        NotForwardable: the ready ones are no Pods, the Service is an ExternalName, or the port is not TCP.
        ServiceNotFound: no endpoint has that hostname; the detail names those there are.
        PortNotExposed: a number that the Service has not got.
    """
    service = state.service
    refuse_external_name(service)
    any_port = service.headless or hostname is not None
    wanted = _service_port(service, port, any_port=any_port)
    listening = _listening(state.slices, wanted if wanted in service.ports else None)
    if hostname is not None:
        listening = _of_hostname(service, listening, hostname.lower())
    ready = [(endpoint, number) for endpoint, number in listening if takes_requests(service, endpoint)]
    if any_port and not any(number for _, number in ready):
        ready = [(endpoint, wanted.port) for endpoint, _ in ready]
    found: dict[tuple[str, int], Target] = {}
    for endpoint, number in ready:
        if endpoint.pod and number:
            pod_port = PodPort(service.namespace, endpoint.pod, number, endpoint.address)
            found.setdefault((endpoint.pod, number), Target(pod_port, endpoint, wanted))
    if found:
        return tuple(found.values())
    raise _refusal(state, wanted, [endpoint for endpoint, _ in listening], [endpoint for endpoint, _ in ready])


def choose_target(
    candidates: Sequence[Target],
    open_streams: Callable[[Target], int],
    rng: random.Random,
    client: str | None = None,
) -> Target:
    """The target for a new upstream connection: the one with the fewest open streams, ties at random.

    Args:
        candidates: what `targets` returned.
        open_streams: how many streams are open to a target.
        client: the client's address where the Service's `sessionAffinity` is ClientIP, else None. One client gets one
            pod as long as that pod is there; the others going does not move it, and nothing is remembered
            (rendezvous hashing: D. Thaler, C. Ravishankar, 1998). A new pod takes over its share of the clients.
    """
    if client is not None:
        return max(candidates, key=lambda target: _weight(client, target))
    load = [open_streams(target) for target in candidates]
    fewest = min(load)
    return rng.choice([target for target, streams in zip(candidates, load, strict=True) if streams == fewest])


def endpoint_hostname(endpoint: Endpoint) -> str:
    """The label that an endpoint has in DNS: its hostname, else its address with dashes (CoreDNS does so)."""
    return endpoint.hostname or endpoint.address.replace(".", "-").replace(":", "-")


def _service_port(service: Service, port: ServicePort | int, *, any_port: bool) -> ServicePort:
    if isinstance(port, ServicePort):
        if port.protocol != "TCP":
            raise NotForwardable(
                f"Port {port} of Service {service.namespace}/{service.name} cannot be forwarded to: a "
                "port-forward carries TCP alone."
            )
        if port in service.ports:
            return port
        port = port.port  # unlisted, or the Service has changed since it was chosen
    listed = tcp_port(service, port)
    if listed:
        return listed
    if not any_port:
        raise port_not_exposed(service, port)
    return ServicePort(port=port, target_port=port)


def _listening(slices: Sequence[EndpointSlice], port: ServicePort | None) -> list[tuple[Endpoint, int | None]]:
    """Every endpoint with the number that it listens on for a Service port, None where its slice lists none."""
    found: list[tuple[Endpoint, int | None]] = []
    # IPv4 first, for a steady choice of the address that is shown
    for endpoint_slice in sorted(slices, key=lambda each: (each.address_type, each.name)):
        numbers = (
            each.port
            for each in endpoint_slice.ports
            if port and (each.name, each.protocol) == (port.name, port.protocol)
        )
        number = next(numbers, None)
        found += [(endpoint, number) for endpoint in endpoint_slice.endpoints]
    return found


def _of_hostname(
    service: Service, listening: Sequence[tuple[Endpoint, int | None]], hostname: str
) -> list[tuple[Endpoint, int | None]]:
    found = [(endpoint, number) for endpoint, number in listening if endpoint_hostname(endpoint) == hostname]
    if found:
        return found
    hostnames = sorted({endpoint_hostname(endpoint) for endpoint, _ in listening})
    there = f"it has {_some(hostnames)}" if hostnames else "it has no endpoints"
    raise ServiceNotFound(
        f"Service {service.namespace}/{service.name} has no Pod with the hostname {hostname}: {there}.",
        command=show_pods(service),
    )


def takes_requests(service: Service, endpoint: Endpoint) -> bool:
    """Whether new requests may go to this endpoint of the Service."""
    # core/v1 publishNotReadyAddresses: "disregard any indications of ready/not-ready"
    return not endpoint.terminating and (endpoint.ready or service.publish_not_ready_addresses)


def _refusal(
    state: ServiceState, port: ServicePort, there: Sequence[Endpoint], ready: Sequence[Endpoint]
) -> KubeTunnelError:
    """Why no endpoint can be forwarded to."""
    service = state.service
    name = f"Service {service.namespace}/{service.name}"
    if ready and not any(endpoint.pod for endpoint in ready):
        addresses = sorted({endpoint.address for endpoint in ready})
        return NotForwardable(
            f"The endpoints of {name} are no Pods ({_some(addresses)} without a targetRef to one), and a port-forward "
            "goes to a Pod alone.",
            command=f"{_show_slices(service)} -o yaml",
        )
    if ready:
        listed = sorted({f"{each.port} ({each.name})" for each_slice in state.slices for each in each_slice.ports})
        return NoReadyEndpoints(
            f"{name} has {_count(ready)} ready, none of them with the port {port} (targetPort "
            f"{port.target_port}); the EndpointSlices list {_some(listed) or 'no ports'}.",
            command=f"{_show_slices(service)} -o yaml",
        )
    if not there:
        cause = "its selector matches no Pod" if service.selector else "it has no selector"
        return NoReadyEndpoints(f"{name} has no endpoints, 0 not ready: {cause}.", command=show_pods(service))
    terminating = {_identity(endpoint) for endpoint in there if endpoint.terminating}
    not_ready = {_identity(endpoint) for endpoint in there} - terminating
    return NoReadyEndpoints(
        f"{name} has {_count(there)}, none of them ready: {len(not_ready)} not ready, {len(terminating)} terminating "
        f"({_some(sorted(not_ready | terminating))}).",
        command=show_pods(service),
    )


def _identity(endpoint: Endpoint) -> str:
    return endpoint.pod or endpoint.address


def _count(endpoints: Sequence[Endpoint]) -> str:
    count = len({_identity(endpoint) for endpoint in endpoints})
    return f"{count} endpoint{'s' if count != 1 else ''}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _show_slices(service: Service) -> str:
    return f"kubectl -n {service.namespace} get endpointslices -l kubernetes.io/service-name={service.name}"


def show_pods(service: Service) -> str:
    """The command that shows what stands behind a Service.

    Pods rather than EndpointSlices where there is a selector: their list says why one is not ready.
    """
    if not service.selector:
        return _show_slices(service)
    selector = ",".join(f"{key}={value}" for key, value in sorted(service.selector.items()))
    return f"kubectl -n {service.namespace} get pods -l {selector}"


def _weight(client: str, target: Target) -> bytes:
    # the port is left out: all ports of a Service lead a client to one pod
    return blake2b(f"{client}\0{target.pod_port.namespace}/{target.pod_port.pod}".encode(), digest_size=8).digest()
