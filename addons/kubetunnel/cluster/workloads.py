"""What a local forward can be for: a Service, a Pod, or what runs Pods; and the ready pods behind it.

`svc/…` is kept fresh by Discovery's watch. The others are looked up as `kubectl port-forward` does it (a Pod by its
name, the rest by the selector of their spec: apps/v1, batch/v1), but at each use and not only at the first, so that a
rollout is followed. A selector never changes in the life of its object (apps/v1: `spec.selector` is immutable), so one
list is all that a later use costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from kubetunnel.cluster import decode
from kubetunnel.cluster.access import ClusterAccess
from kubetunnel.cluster.api import ApiServer
from kubetunnel.cluster.decode import Metadata, PodObject, Struct
from kubetunnel.cluster.discovery import Discovery
from kubetunnel.cluster.resource import PODS, Query, Resource
from kubetunnel.cluster.single_flight import SingleFlight
from kubetunnel.core.catalog import Service, ServicePort
from kubetunnel.core.endpoints import Target, targets
from kubetunnel.core.errors import KubeTunnelError, NoReadyEndpoints, PortNotExposed, ServiceNotFound, Timeout
from kubetunnel.core.local_forward import Kind, ObjectRef
from kubetunnel.core.ports import PortRequest, choose_port, refuse_external_name

MEMORY_S = 1.0  # a burst of connections costs one list

_WITH_SELECTOR = {
    Kind.DEPLOYMENT: Resource("deployments", group="apps"),
    Kind.STATEFUL_SET: Resource("statefulsets", group="apps"),
    Kind.REPLICA_SET: Resource("replicasets", group="apps"),
    Kind.DAEMON_SET: Resource("daemonsets", group="apps"),
    Kind.JOB: Resource("jobs", group="batch"),
}


@dataclass(frozen=True, slots=True)
class Reachable:
    """The pods' ports that a new connection may go to, at least one. `sticky`: sessionAffinity is ClientIP."""

    targets: tuple[Target, ...]
    sticky: bool = False

    @property
    def port(self) -> int:
        """The port as the object itself has it: a Service's own, else the pods'."""
        return self.targets[0].service_port.port


class _Expression(Struct, frozen=True):
    key: str = ""
    operator: str = ""
    values: list[str] | None = None


class _Selector(Struct, frozen=True):
    match_labels: dict[str, str] | None = None
    match_expressions: list[_Expression] | None = None


class _Spec(Struct, frozen=True):
    selector: _Selector | None = None


class _Selecting(Struct, frozen=True):
    metadata: Metadata
    spec: _Spec = _Spec()


class Workloads:
    """The objects of one cluster that forwards go to.

    Args:
        access: how to reach the API server. Not closed by `aclose`, nor is `discovery`.
        api: in place of one with the usual timeouts.
    """

    def __init__(self, access: ClusterAccess, discovery: Discovery, *, api: ApiServer | None = None) -> None:
        self._access = access
        self._discovery = discovery
        self._api = api or ApiServer(access)
        self._selectors: dict[ObjectRef, str] = {}
        self._pods: dict[ObjectRef, tuple[float, tuple[PodObject, ...]]] = {}
        self._lookups: SingleFlight[ObjectRef, tuple[PodObject, ...]] = SingleFlight(
            patience_s=lambda: access.reach.patience_s,
            out_of_patience=self._out_of_patience,
            obtaining=lambda: access.obtaining,
        )

    async def reachable(self, ref: ObjectRef, port: int | str, *, fresh: bool = False) -> Reachable:
        """The ready pods behind an object.

        Args:
            port: a number or a name; of a Service its own port, else one of the pods'.
            fresh: ask the API server in any case.

        Raises:
            ServiceNotFound, NamespaceNotFound: no such object.
            PortNotExposed, NoReadyEndpoints, NotForwardable
            Forbidden, Unauthenticated, ClusterUnreachable, Timeout
        """
        try:
            if ref.kind is Kind.SERVICE:
                return await self._of_service(ref, port, fresh=fresh)
            return self._of_pods(ref, await self._known_pods(ref, fresh=fresh), port)
        except KubeTunnelError as error:
            error.aim(self._access.kubectl())  # the core knows of no context
            raise

    @property
    def of_context(self) -> str:
        """As `ClusterAccess.of_context`."""
        return self._access.of_context

    def describe(self, ref: ObjectRef) -> str:
        """The command that shows an object with its ports and pods."""
        return self._access.kubectl("-n", ref.namespace, "describe", ref.kind.value, ref.name)

    async def aclose(self) -> None:
        await self._lookups.aclose()
        await self._api.aclose()

    async def _of_service(self, ref: ObjectRef, port: int | str, *, fresh: bool) -> Reachable:
        state = await self._discovery.service(ref.namespace, ref.name, fresh=fresh)
        service = state.service
        if isinstance(port, str):
            chosen = _named(service, port)
        else:
            chosen = choose_port(service, PortRequest(port, explicit=True, scheme="")).port
        return Reachable(targets(state, chosen), sticky=service.session_affinity == "ClientIP")

    async def _known_pods(self, ref: ObjectRef, *, fresh: bool) -> tuple[PodObject, ...]:
        until, pods = self._pods.get(ref, (0.0, ()))
        now = asyncio.get_running_loop().time()
        # a running Pod's ports stay what they are, and whether it is still there its port-forward tells
        lasting = ref.kind is Kind.POD and any(_takes_connections(pod, ref.kind) for pod in pods)
        if not fresh and (until > now or lasting):
            return pods
        return await self._lookups.run(ref, lambda: self._look_up(ref))

    async def _look_up(self, ref: ObjectRef) -> tuple[PodObject, ...]:
        if ref.kind is Kind.POD:
            found = await self._api.get_object(Query(PODS, PodObject, ref.namespace, ref.name))
            if found is None:
                raise self._not_found(ref)
            pods: tuple[PodObject, ...] = (found,)
        else:
            labels = await self._selector(ref)
            # no selector selects nothing, while a list without one lists everything
            listing = (
                await self._api.list_objects(Query(PODS, PodObject, ref.namespace, labels=labels)) if labels else None
            )
            pods = listing.items if listing else ()
        self._pods[ref] = (asyncio.get_running_loop().time() + MEMORY_S, pods)
        return pods

    async def _selector(self, ref: ObjectRef) -> str:
        if ref not in self._selectors:
            query = Query(_WITH_SELECTOR[ref.kind], _Selecting, ref.namespace, ref.name)
            found = await self._api.get_object(query)
            if found is None:
                raise self._not_found(ref)
            self._selectors[ref] = _label_selector(found.spec.selector or _Selector())
        return self._selectors[ref]

    def _of_pods(self, ref: ObjectRef, pods: Sequence[PodObject], port: int | str) -> Reachable:
        ready = [pod for pod in pods if _takes_connections(pod, ref.kind)]
        if not ready:
            self._selectors.pop(ref, None)  # deleted and made anew, it may have another one
            raise self._none_ready(ref, pods)
        numbers = [(pod, _number(pod, port)) for pod in ready]
        found = [
            Target.of_pod(ref.namespace, decode.pod_endpoint(pod), number)
            for pod, number in numbers
            if number is not None
        ]
        if found:
            return Reachable(tuple(found))
        named = sorted({str(port) for pod in ready for port in _container_ports(pod)})
        raise PortNotExposed(
            f"No pod of {ref} in namespace {ref.namespace} has a TCP port named {port}. They name "
            f"{', '.join(named) or 'none'}; any port goes by its number.",
            command=self._show_pods(ref),
        )

    def _none_ready(self, ref: ObjectRef, pods: Sequence[PodObject]) -> NoReadyEndpoints:
        if ref.kind is Kind.POD:
            detail = f"Pod {ref.namespace}/{ref.name} is not running: its phase is {pods[0].status.phase or 'unknown'}."
        elif pods:
            names = ", ".join(sorted(pod.metadata.name for pod in pods)[:10])
            detail = f"None of the {len(pods)} pods of {ref} in namespace {ref.namespace} is ready ({names})."
        else:
            detail = f"{ref} in namespace {ref.namespace} has no pods."
        return NoReadyEndpoints(detail, command=self._show_pods(ref))

    def _not_found(self, ref: ObjectRef) -> ServiceNotFound:
        return ServiceNotFound(
            f"Namespace {ref.namespace} of context {self._access.context} has no {ref}.",
            command=self._access.kubectl("-n", ref.namespace, "get", f"{ref.kind.value}s"),
        )

    def _show_pods(self, ref: ObjectRef) -> str:
        selector = self._selectors.get(ref)
        which = ("-l", selector) if selector else (ref.name,) if ref.kind is Kind.POD else ()
        return self._access.kubectl("-n", ref.namespace, "get", "pods", *which)

    def _out_of_patience(self, patience_s: float) -> Timeout:
        return Timeout(
            f"The API server {self._access.server} of context {self._access.context} has not answered after "
            f"{patience_s:.3g} s; it is still being asked.",
            command=self._access.kubectl("get", "--raw", "/readyz?verbose"),
        )


def _named(service: Service, name: str) -> ServicePort:
    refuse_external_name(service)
    found = next((port for port in service.ports if port.name == name and port.protocol == "TCP"), None)
    if found is None:
        raise PortNotExposed(
            f"Service {service.namespace}/{service.name} has no TCP port named {name}. It has "
            f"{', '.join(map(str, service.ports)) or 'no ports'}.",
            command=f"kubectl -n {service.namespace} get service {service.name}",
        )
    return found


def _takes_connections(pod: PodObject, kind: Kind) -> bool:
    if kind is Kind.POD:  # who names a Pod wants it ready or not, as with kubectl
        return pod.status.phase == "Running"
    return decode.pod_endpoint(pod).ready and not pod.ended


def _container_ports(pod: PodObject) -> list[ServicePort]:
    containers = [*(pod.spec.containers or ()), *(pod.spec.init_containers or ())]
    return [
        ServicePort(port.container_port, port.name)
        for container in containers
        for port in container.ports or ()
        if port.protocol == "TCP"
    ]


def _number(pod: PodObject, port: int | str) -> int | None:
    if isinstance(port, int):
        return port
    return next((each.port for each in _container_ports(pod) if each.name == port), None)


def _label_selector(selector: _Selector) -> str:
    """As a list's parameter (metav1.LabelSelectorAsSelector)."""
    terms = [f"{key}={value}" for key, value in (selector.match_labels or {}).items()]
    for expression in selector.match_expressions or ():
        values = ",".join(expression.values or ())
        match expression.operator:
            case "In":
                terms.append(f"{expression.key} in ({values})")
            case "NotIn":
                terms.append(f"{expression.key} notin ({values})")
            case "Exists":
                terms.append(expression.key)
            case "DoesNotExist":
                terms.append(f"!{expression.key}")
    return ",".join(terms)
