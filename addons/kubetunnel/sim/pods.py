"""A pod of the simulated cluster: its API object and the workload that runs as its containers.

The runtime side of a port-forward (portforward.py) is handed a `SimPod`: `workload.listen_address(port)` is where a
port of the pod really listens, `gone` tells that the pod's network namespace is no more. Field names and the order
of the conditions are those of core/v1 Pod as a 1.33 API server shows them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kubetunnel.sim.workloads import Workload

NODE_NAME = "node1"
NODE_ADDRESS = "10.244.0.1"
ZONE = "zone-a"

type Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """One of a container's `ports`."""

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class Container:
    """The fields of a core/v1 Container that the demo uses; `readiness` is the command of an exec probe."""

    name: str
    image: str
    ports: tuple[ContainerPort, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    readiness: tuple[str, ...] = ()

    def spec(self) -> Json:
        """The container as in `pod.spec.containers`."""
        spec: Json = {"name": self.name, "image": self.image, "imagePullPolicy": "Never", "resources": {}}
        if self.command:
            spec["command"] = list(self.command)
        if self.env:
            spec["env"] = [{"name": name, "value": value} for name, value in self.env.items()]
        if self.ports:
            spec["ports"] = [{"name": p.name, "containerPort": p.number, "protocol": "TCP"} for p in self.ports]
        if self.readiness:
            probe: Json = {"exec": {"command": list(self.readiness)}, "timeoutSeconds": 1, "periodSeconds": 2}
            spec["readinessProbe"] = probe | {"successThreshold": 1, "failureThreshold": 3}
        return spec | {"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """What all pods of a Deployment or a StatefulSet have in common; a single pod has one of its own."""

    labels: Mapping[str, str]
    containers: tuple[Container, ...]
    never_ready: bool = False  # the readiness probe fails for ever

    def object(self) -> Json:
        """The template as in `deployment.spec.template`."""
        spec: Json = {"containers": [container.spec() for container in self.containers], "restartPolicy": "Always"}
        spec |= {"terminationGracePeriodSeconds": 1, "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler"}
        return {"metadata": {"labels": dict(self.labels)}, "spec": spec | {"securityContext": {}}}


@dataclass(eq=False, slots=True)
class SimPod:
    """One pod. `address` is shown by the API only; its ports listen where `workload` says.

    `gone` is set when the pod is deleted or killed: running port-forwards end as they do in a container runtime.
    """

    namespace: str
    name: str
    uid: str
    address: str
    created: str  # RFC 3339
    template: PodTemplate
    labels: Mapping[str, str]
    owner: Json | None = None  # an ownerReference
    hostname: str = ""
    subdomain: str = ""
    running: bool = False
    ready: bool = False
    restarts: int = 0
    deleted: str | None = None  # metadata.deletionTimestamp: the pod is terminating
    workload: Workload | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def version(self) -> str:
        """The workload's APP_VERSION."""
        versions = [c.env["APP_VERSION"] for c in self.template.containers if "APP_VERSION" in c.env]
        return versions[0] if versions else ""

    def port_number(self, target_port: int | str) -> int | None:
        """The number of a Service's targetPort in this pod (pkg/api/v1/pod: FindPort); None: it has no such name."""
        if isinstance(target_port, int):
            return target_port
        ports = (p for container in self.template.containers for p in container.ports)
        return next((p.number for p in ports if p.name == target_port), None)

    def object(self) -> Json:
        """The core/v1 Pod."""
        metadata: Json = {"name": self.name, "namespace": self.namespace, "uid": self.uid}
        metadata |= {"creationTimestamp": self.created, "labels": dict(self.labels)}
        if self.owner:
            metadata["ownerReferences"] = [self.owner]
            metadata["generateName"] = self.name.rpartition("-")[0] + "-"
        if self.deleted:
            metadata |= {"deletionTimestamp": self.deleted, "deletionGracePeriodSeconds": 1}
        spec = self.template.object()["spec"] | {"nodeName": NODE_NAME, "serviceAccountName": "default"}
        spec |= {"serviceAccount": "default", "enableServiceLinks": True, "priority": 0}
        if self.hostname:
            spec |= {"hostname": self.hostname, "subdomain": self.subdomain}
        return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": self._status()}

    def _status(self) -> Json:
        ready = self.ready and self.running
        flags = {"Initialized": True, "Ready": ready, "ContainersReady": ready, "PodScheduled": True}
        conditions = [
            {"type": kind, "status": str(flag), "lastProbeTime": None, "lastTransitionTime": self.created}
            for kind, flag in flags.items()
        ]
        status: Json = {"phase": "Running" if self.running else "Pending", "conditions": conditions}
        status |= {"hostIP": NODE_ADDRESS, "startTime": self.created, "qosClass": "BestEffort"}
        if self.running:
            status |= {"podIP": self.address, "podIPs": [{"ip": self.address}]}
        status["containerStatuses"] = [
            self._container_status(container, ready) for container in self.template.containers
        ]
        return status

    def _container_status(self, container: Container, ready: bool) -> Json:
        waiting = {"waiting": {"reason": "ContainerCreating"}}
        state: Json = {"running": {"startedAt": self.created}} if self.running else waiting
        status: Json = {"name": container.name, "image": container.image, "imageID": f"sha256:{container.image}"}
        status |= {"ready": ready or (self.running and not container.readiness), "restartCount": self.restarts}
        return status | {"started": self.running, "state": state, "lastState": {}}
