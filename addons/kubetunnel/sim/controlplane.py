"""What the kubelet, the namespace and the Service controllers of a cluster do, as far as the simulated one needs it:
pods are started, get ready, terminate; EndpointSlices and Endpoints follow. (rollouts.py: Deployments, StatefulSets.)

The order of events is Kubernetes': a pod is Pending, Running, then Ready; one that is deleted is `terminating` in its
slices while it still serves, and is gone from them when its containers are.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kubetunnel.sim import objects
from kubetunnel.sim.endpoints import EndpointsController
from kubetunnel.sim.objects import Identities, ServiceSpec
from kubetunnel.sim.pods import Json, PodTemplate, SimPod
from kubetunnel.sim.store import Store

if TYPE_CHECKING:
    from kubetunnel.sim.workloads import Workload

logger = logging.getLogger(__name__)

FIRST_POD_ADDRESS = ipaddress.IPv4Address("10.244.0.10")
FIRST_SERVICE_ADDRESS = ipaddress.IPv4Address("10.96.0.10")

type StartWorkload = Callable[[SimPod], Awaitable[Workload]]


@dataclass(frozen=True, slots=True)
class Membership:
    """What a Deployment or a StatefulSet gives to a pod of its own."""

    owner: Json | None = None  # the ownerReference
    labels: Mapping[str, str] = field(default_factory=dict)
    subdomain: str = ""  # the governing Service of a StatefulSet: the pod's hostname is its name


SINGLE = Membership()


class ControlPlane:
    """Changes `store`; `start_workload` runs a pod's containers."""

    def __init__(self, store: Store, identities: Identities, start_workload: StartWorkload) -> None:
        self.pods: dict[tuple[str, str], SimPod] = {}
        self._store = store
        self._identities = identities
        self._start_workload = start_workload
        self._endpoints = EndpointsController(store, identities)
        self._pod_addresses = 0
        self._service_addresses = 0

    async def aclose(self) -> None:
        """Stop every workload."""
        pods = list(self.pods.values())
        self.pods.clear()
        await asyncio.gather(*(_stop(pod) for pod in pods))

    # Namespaces and Services

    def add_namespace(self, name: str) -> None:
        self._store.put("namespaces", objects.namespace(self._identities.metadata("", name)))

    async def remove_namespace(self, name: str) -> None:
        """Remove a Namespace with all that is in it."""
        for service in self._store.items("services", name):
            self.remove_service(name, service["metadata"]["name"])
        await asyncio.gather(*(self.remove_pod(pod) for pod in list(self.pods.values()) if pod.namespace == name))
        self._store.delete("namespaces", "", name)

    def add_service(self, spec: ServiceSpec) -> Json:
        """Add a Service, or replace the one of that name (its address stays). Returns the core/v1 Service."""
        before = self._store.get("services", spec.namespace, spec.name)
        address = spec.cluster_ip
        if not address and not spec.external_name:
            address = before["spec"].get("clusterIP", "") if before else ""
            address = address or self._service_address()
        metadata = self._identities.metadata(spec.namespace, spec.name, spec.labels)
        if before:
            metadata |= {key: before["metadata"][key] for key in ("uid", "creationTimestamp")}
        service = self._store.put("services", objects.service(metadata, spec, address))
        self._endpoints.sync(service, self.pods.values())
        return service

    def remove_service(self, namespace: str, name: str) -> None:
        """Remove a Service, its EndpointSlices and Endpoints."""
        self._store.delete("services", namespace, name)
        self._endpoints.remove(namespace, name)

    # Pods

    async def add_pod(
        self, namespace: str, name: str, template: PodTemplate, *, member: Membership = SINGLE, ready: bool = True
    ) -> SimPod:
        """Start a pod; returns when it runs, and is ready unless `ready` is false or its probe fails for ever."""
        pod = SimPod(
            namespace=namespace,
            name=name,
            uid=self._identities.uid(),
            address=self._pod_address(),
            created=self._identities.now(),
            template=template,
            labels=dict(template.labels) | dict(member.labels),
            owner=member.owner,
            hostname=name if member.subdomain else "",
            subdomain=member.subdomain,
        )
        self.pods[namespace, name] = pod
        self._show(pod)
        pod.workload = await self._start_workload(pod)
        pod.running = True
        self._show(pod)
        pod.ready = ready and not template.never_ready
        self._show(pod)
        logger.info("pod %s started at %s", pod, pod.address)
        return pod

    def set_ready(self, pod: SimPod, ready: bool) -> None:
        """Let the pod's readiness probe succeed or fail from now on."""
        pod.ready = ready
        self._show(pod)

    def terminate(self, pod: SimPod) -> None:
        """Begin to delete a pod: it is `terminating` and serves on, until `remove_pod`."""
        pod.deleted = self._identities.now()
        self._show(pod)
        logger.info("pod %s terminating", pod)

    async def restart(self, pod: SimPod) -> None:
        """Start the containers of a pod again whose program has ended (restartPolicy Always); the pod stays."""
        if pod.workload is None or pod.gone.is_set():
            return
        ready, pod.ready = pod.ready, False
        self._show(pod)
        await pod.workload.aclose()
        pod.workload = await self._start_workload(pod)
        pod.restarts += 1
        pod.ready = ready
        self._show(pod)
        logger.info("pod %s restarted its containers", pod)

    async def remove_pod(self, pod: SimPod) -> None:
        """End a pod at once: its connections are cut, then it is gone from the API."""
        await _stop(pod)
        if self.pods.get((pod.namespace, pod.name)) is not pod:
            return  # somebody else has removed it meanwhile
        if pod.deleted is not None:
            self.set_ready(pod, ready=False)  # the kubelet says that the containers have ended, then lets go of the pod
        del self.pods[pod.namespace, pod.name]
        self._store.delete("pods", pod.namespace, pod.name)
        self._sync(pod.namespace)
        logger.info("pod %s gone", pod)

    def _show(self, pod: SimPod) -> None:
        self._store.put("pods", pod.object())
        self._sync(pod.namespace)

    def _sync(self, namespace: str) -> None:
        for service in self._store.items("services", namespace):
            self._endpoints.sync(service, self.pods.values())

    def _pod_address(self) -> str:
        """The next address in turn: one that was freed is not used again soon (CNI's host-local plugin)."""
        self._pod_addresses += 1
        return str(FIRST_POD_ADDRESS + self._pod_addresses - 1)

    def _service_address(self) -> str:
        self._service_addresses += 1
        return str(FIRST_SERVICE_ADDRESS + self._service_addresses - 1)


async def _stop(pod: SimPod) -> None:
    pod.gone.set()
    if pod.workload is not None:
        await pod.workload.aclose()
